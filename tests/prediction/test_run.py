"""Prediction from end to end: what is read, what is written, what is said."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.predict import run
from pipeline.errors import DataError, SettingsError
from pipeline.frames.detect import DetectorSettings, shared_detector
from pipeline.frames.manifest import read_manifest
from pipeline.frames.rejects import Rejects
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.weights import LoadedPoseModel
from pipeline.prediction.cameras import Cameras
from pipeline.prediction.inputs import IMAGES_PER_PIECE, InputSettings, kind_of, list_pieces
from pipeline.prediction.overlay import draw_hands, write_video_overlay
from pipeline.prediction.run import PoseActor, PredictSettings, ReadPieces, finish_piece, notes, prepare, row_from_json
from pipeline.prediction.table import SCHEMA
from pipeline.storage import join, read_bytes, read_json, write_json
from tests.conftest import real_data
from tests.frames.clips import CAMERA, FPS, HEIGHT, WIDTH, write_clip, write_images
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    network = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings())
    torch.nn.init.normal_(network.head.get_parameter("together.3.bias"), 0, 0.1)
    settings = {"head": network.settings.model_dump(), "views": {"size": 32}}
    save_checkpoint(folder, network, {}, {"kind": "pose", "settings": settings})
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[str, str]:
    """A folder of images, one of them broken, and its boxes file."""
    root = tmp_path_factory.mktemp("images")
    entries = write_images(root, {"a": 3, "b": 2}, boxes_per_image=2)
    entries[0]["hands"] = ["left", "right"]
    entries[1]["boxes_xyxy"] = []
    (root / "b" / "00001.jpg").write_bytes(b"no image")
    boxes = root / "boxes.json"
    boxes.write_text(json.dumps(entries))
    return str(root), str(boxes)


def in_process(settings: PredictSettings) -> tuple[list, Rejects]:
    """What tasks and actors do, here."""
    prepared = prepare(settings)
    read, actor = ReadPieces(prepared.settings, prepared.kind, prepared.plan), PoseActor(settings.model, 2, False)
    rows, rejects = [], Rejects()
    for piece in prepared.pieces:
        for block in read.blocks(piece):
            for meta in actor(block)["meta"]:
                values = json.loads(meta)
                if "frame_id" in values:
                    rows.append(row_from_json(values))
                else:
                    rejects.merge(Rejects.from_json(values["rejects"]))
    return rows, rejects


def check_rows(table) -> None:
    """What holds for every row: joints_2d is the projection of joints_3d + wrist_3d."""
    for row in table.to_pylist():
        joints = np.array(row["joints_3d"]).reshape(21, 3)
        assert joints[0].tolist() == [0, 0, 0]
        pixels = (joints + row["wrist_3d"]) @ np.array(row["camera"]).reshape(3, 3).T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], np.reshape(row["joints_2d"], (21, 2)), atol=0.05)


def test_images_with_boxes_through_ray(ray_cluster, model, images, tmp_path):
    root, boxes = images
    output = str(tmp_path / "out")
    job = PredictSettings(model=model, input=root, boxes=boxes, output=output, overlay=True, batch_size=3, passes=2)
    result = run(job)
    assert result == read_json(join(output, "predict.json"))
    assert result["kind"] == "images"
    assert (result["num_hands"], result["num_frames"]) == (6, 3)
    assert result["hands"] == {"left": 1, "right": 5}
    assert result["rejects"]["counts"] == {"no_hand": 1, "unreadable_image": 1}
    assert result["rejects"]["examples"]["unreadable_image"][0].endswith("b/00001.jpg")
    table = pq.read_table(join(output, "predictions.parquet"))
    assert table.schema.equals(SCHEMA)
    assert json.loads(table.schema.metadata[b"equihand.passes"]) == 2
    assert table["name"].to_pylist() == ["a/00000.jpg"] * 2 + ["a/00002.jpg"] * 2 + ["b/00000.jpg"] * 2
    assert table["track"].to_pylist() == [0, 1] * 3
    assert set(table["scale_source"].to_pylist()) == {"none"}
    assert set(table["camera_source"].to_pylist()) == {"default"}
    assert table["confidence"].null_count == 6
    assert table["timestamp_s"].null_count == 6
    assert table["crop"].to_pylist()[0][0] < 0 < table["crop"].to_pylist()[1][0]  # the left hand was mirrored
    check_rows(table)
    said = "\n".join(result["notes"])
    assert "camera unknown for 6 of 6 hands" in said
    assert "size unknown for 6 of 6 hands" in said
    assert "left out: no_hand 1" in said
    assert result["overlays"] == 3
    with Image.open(io.BytesIO(read_bytes(join(output, "overlay", "a/00000.jpg.jpg")))) as picture:
        assert picture.size == (WIDTH, HEIGHT)


def test_video_with_labels_in_s3_through_ray(ray_cluster, model, tmp_path, s3):
    from pipeline.storage import copy_from_local

    write_clip(tmp_path / "clips", "one", num_frames=6, hand="left")
    write_clip(tmp_path / "clips", "two", num_frames=4)
    copy_from_local(tmp_path / "clips", join(s3, "clips"))
    output = join(s3, "out")
    job = PredictSettings(
        model=model, input=join(s3, "clips"), output=output, scale="labels", smooth=True, overlay=True, stride=2
    )
    result = run(job)
    assert (result["kind"], result["num_hands"], result["overlays"]) == ("video", 5, 2)
    assert result["scale_source"] == {"given": 5}
    assert result["camera_source"] == {"given": 5}
    table = pq.read_table(io.BytesIO(read_bytes(join(output, "predictions.parquet"))))
    assert table["frame_index"].to_pylist() == [0, 2, 4, 0, 2]
    assert table["frame_id"].to_pylist()[1] == "one#0/000002"
    np.testing.assert_allclose(table["timestamp_s"].to_pylist(), [0, 0.2, 0.4, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(table["camera"].to_pylist()[0], CAMERA.ravel())
    check_rows(table)
    with av.open(io.BytesIO(read_bytes(join(output, "overlay", "one.mp4"))), "r") as video:
        assert len(list(video.decode(video=0))) == 3


def test_images_are_listed_as_for_an_ingest(model, images, tmp_path):
    for number in (1, 2, 10):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"of a Mac")
    (tmp_path / "notes.txt").write_text("not read")
    write_json(str(tmp_path / ".k.json"), {".\\10.png": CAMERA.tolist(), "2.PNG": CAMERA.tolist()})
    settings = InputSettings(
        input=str(tmp_path), detector=DetectorSettings(model="m.task"), cameras=str(tmp_path / ".k.json")
    )
    assert kind_of(str(tmp_path)) == "images"
    rejects = Rejects()
    (piece,) = list_pieces(settings, "images", rejects)
    assert [entry["file"] for entry in piece.content["entries"]] == ["1.png", "2.png", "10.png"]
    assert rejects.notes == [
        f"{tmp_path}: 1 file of another kind was left out: 1 .txt",
        f"{tmp_path}/.k.json: 1 name was not in the input, such as '2.PNG' (there is '2.png': upper and lower case differ)",
    ]
    cameras = Cameras(settings.cameras)
    found = cameras.find("10.png")
    assert found is not None
    assert found.tolist() == CAMERA.tolist()
    assert cameras.find("2.png") is None
    (tmp_path / "._a.mp4").write_bytes(b"")
    assert kind_of(str(tmp_path)) == "images"


def test_frame_set_keeps_its_ids_and_cameras(model, tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 8, "test": 20}, image_size=48, broken=frozenset({8}))
    settings = PredictSettings(model=model, input=uri, output=str(tmp_path / "out"), split="test", scale="labels")
    rows, rejects = in_process(settings)
    assert len(rows) == 19
    assert rejects.counts == {"unreadable_image": 1}
    table = finish_piece(rows, settings, "frame set", 0.03)
    assert table["frame_id"].to_pylist()[0] == "tiny/test-00000/000001"
    assert table["scale_source"].to_pylist() == ["given"] * 19
    np.testing.assert_allclose(table["bone_length_m"].to_pylist(), 0.0316, atol=1e-3)
    np.testing.assert_allclose(table["camera"].to_pylist()[0], [48, 0, 24, 0, 48, 24, 0, 0, 1], atol=1e-4)
    check_rows(table)


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")
def test_a_detector_finds_hands_in_single_images(model, tmp_path):
    frame = real_data("frames") / "seq_00" / "00000.jpg"
    shutil.copy(frame, tmp_path / "hand.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "none.jpg")
    detector = {"model": str(real_data("hand_landmarker.task"))}
    settings = PredictSettings.model_validate(
        {"model": model, "input": str(tmp_path), "output": str(tmp_path / "out"), "detector": detector}
    )
    rows, rejects = in_process(settings)
    assert settings.detector.model is not None
    shared_detector(settings.detector.model, settings.detector).close()
    shared_detector.cache_clear()
    assert {row["name"] for row in rows} <= {"hand.jpg"}
    assert rejects.counts["no_hand"] >= 1
    assert all(0 < row["confidence"] <= 1 for row in rows)


def test_scales(model, images, tmp_path):
    root, boxes = images
    settings = PredictSettings(model=model, input=root, boxes=boxes, output=str(tmp_path))
    rows, _ = in_process(settings)
    plain = finish_piece(rows, settings, "images", 0.03)
    mean = finish_piece(rows, settings.model_copy(update={"scale": "mean-bone"}), "images", 0.03)
    given = finish_piece(rows, settings.model_copy(update={"bone_length_mm": 30.0}), "images", 0.05)
    for table, source in ((mean, "mean-bone"), (given, "given")):
        np.testing.assert_allclose(
            np.array(table["joints_3d"].to_pylist()), 0.03 * np.array(plain["joints_3d"].to_pylist()), rtol=1e-4
        )
        assert set(table["scale_source"].to_pylist()) == {source}
        check_rows(table)
    assert plain["bone_length_m"].null_count == plain.num_rows


def test_notes_say_only_what_applies(model):
    from collections import Counter

    from pipeline.models.weights import load_pose_model

    loaded: LoadedPoseModel = load_pose_model(model)
    settings = PredictSettings(model=model, input="x", output="y")
    counts = {"hand": Counter(right=2), "scale_source": Counter(given=2), "camera_source": Counter(given=2)}
    (only,) = notes(settings, counts, loaded, Rejects())
    assert only.startswith("confidence is what the input gave")


def test_pieces_of_images(tmp_path):
    for number in range(IMAGES_PER_PIECE + 1):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:03d}.png")
    settings = PredictSettings(model="m", input=str(tmp_path), output="o")
    pieces = list_pieces(settings, kind_of(str(tmp_path)), Rejects())
    assert [piece.num_frames for piece in pieces] == [IMAGES_PER_PIECE, 1]
    single = str(tmp_path / "004.png")
    (piece,) = list_pieces(settings.model_copy(update={"input": single}), kind_of(single), Rejects())
    assert piece.content == {"entries": [{"file": "004.png"}]}


def test_overlay_draws_on_a_copy(tmp_path):
    image = Image.new("RGB", (100, 80), "grey")
    joints = np.stack([np.linspace(20, 70, 21), np.linspace(20, 60, 21)], 1)
    drawn = draw_hands(image, [joints, joints * np.nan, joints + 1000])
    assert np.asarray(image).std() == 0
    changed = np.argwhere((np.asarray(drawn) != np.asarray(image)).any(-1))
    assert changed.min() >= 12
    assert len(changed) > 50
    path = write_clip(tmp_path, "clip", num_frames=5)
    assert write_video_overlay(str(path), {1: [joints]}, str(tmp_path / "o.mp4")) == 5
    with av.open(str(tmp_path / "o.mp4"), "r") as video:
        assert float(video.streams.video[0].average_rate or 0) == FPS


def refused(kind, match, tmp_path: Path, model: str, **values):
    with pytest.raises(kind, match=match) as raised:
        prepare(PredictSettings.model_validate({"model": model, "output": str(tmp_path / "out"), **values}))
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_is_refused_before_any_work(model, images, tmp_path):
    root, boxes = images
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"test": 4}, image_size=48)
    assert read_manifest(uri).num_rows == 4
    clip = str(write_clip(tmp_path / "v", "clip", num_frames=2))
    refused(SettingsError, "images need either detector.model", tmp_path, model, input=root)
    refused(SettingsError, "'smooth' is for video", tmp_path, model, input=root, boxes=boxes, smooth=True)
    refused(SettingsError, "frame set holds no whole images", tmp_path, model, input=uri, overlay=True)
    refused(SettingsError, "leave out detector.model and boxes", tmp_path, model, input=uri, boxes=boxes)
    refused(DataError, "split 'val' has no frames", tmp_path, model, input=uri, split="val")
    refused(SettingsError, "'split' is for frame sets", tmp_path, model, input=root, boxes=boxes, split="val")
    refused(SettingsError, "boxes file is for images", tmp_path, model, input=clip, boxes=boxes)
    refused(SettingsError, "gives no joints", tmp_path, model, input=root, boxes=boxes, scale="labels")
    refused(DataError, "neither a video", tmp_path, model, input=boxes)
    write_json(str(tmp_path / "k.json"), {"x": 1})
    cameras = str(tmp_path / "k.json")
    refused(DataError, "is not a camera", tmp_path, model, input=root, boxes=boxes, cameras=cameras)
    Image.new("RGB", (8, 8)).save(tmp_path / "v" / "a.png")
    refused(DataError, "1 videos and 1 images", tmp_path, model, input=str(tmp_path / "v"))
