"""Whole ingests with quality filters, a list of splits, and everything bad at once."""

import json
import shutil
from contextlib import nullcontext

import pytest
from PIL import Image

from jobs.ingest import IngestJob, run
from jobs.terminal import TerminalProgress
from pipeline.errors import DataError
from pipeline.frames.card import _reject_rows
from pipeline.frames.ingest import ingest
from pipeline.frames.manifest import read_manifest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.rejects import CHOICE_REASONS, REASONS
from pipeline.frames.track import Detection
from pipeline.storage import exists, join
from tests.frames.bad_inputs import IMAGE_CASES, Images
from tests.frames.clips import hand_label, write_clip
from tests.frames.inline_ray import PLACES, map_inline
from tests.frames.test_ingest import read_set

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """6 clips of 8 frames. The pictures of a clip hardly differ; every fourth label has a small box."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        hands = [hand_label(k) for k in range(8)]
        for hand in hands[::4]:
            x0, y0, _, _ = hand["box"]
            hand["box"] = [x0, y0, x0 + 20, y0 + 18]
        frames = [{"index": k, "hands": [hand]} for k, hand in enumerate(hands)]
        write_clip(folder, f"clip_{i}", labels={"frames": frames})
    return folder


def settings_for(clips, **changes) -> IngestSettings:
    source = {"kind": "labelled_video", "uri": str(clips), "name": "s", **changes.pop("source", {})}
    return IngestSettings.model_validate({"source": source, "image_size": 48, **changes})


def test_what_is_left_out_by_choice_is_counted_and_is_no_damage(clips, tmp_path):
    quality = {"min_hand_px": 30, "min_change": 20}
    manifest = ingest(settings_for(clips, quality=quality), str(tmp_path))  # far more than max_reject_fraction
    read, rows = read_set(str(tmp_path))
    assert read == manifest
    counts = manifest.rejects["s"]
    assert counts["small_hand"] == 12
    assert set(counts) == {"small_hand", "near_duplicate"} <= set(CHOICE_REASONS)
    assert len(rows) + sum(counts.values()) == 6 * 8
    assert counts["near_duplicate"] >= 24
    assert {row["clip_id"] for row in rows} == {f"s/clip_{i}" for i in range(6)}  # a clip keeps its first
    assert manifest.settings["s"].settings["quality"]["min_change"] == 20


def test_choices_do_not_hide_damage(clips, tmp_path):
    folder = tmp_path / "clips"
    for i in range(4):
        frames = [{"index": k, "hands": [hand_label(k)] if k != 1 else []} for k in range(4)]
        write_clip(folder, f"c{i}", num_frames=4, labels={"frames": frames})
    with pytest.raises(DataError, match=r"25% of the frames had to be left out"):
        ingest(settings_for(folder, quality={"min_change": 64}), str(tmp_path / "frames"))


def test_nothing_kept_is_said_with_the_filter_that_did_it(clips, tmp_path):
    with pytest.raises(DataError, match="not one usable hand; left out: blurred 48"):
        ingest(settings_for(clips, quality={"min_sharpness": 1e6}), str(tmp_path))


def test_other_filters_are_another_ingest(clips, tmp_path):
    ingest(settings_for(clips), str(tmp_path))
    with pytest.raises(DataError, match=r"quality\.min_hand_px None -> 30"):
        ingest(settings_for(clips, quality={"min_hand_px": 30}), str(tmp_path))


def test_a_frame_set_of_before_the_filters_is_known_again(clips, tmp_path):
    first = ingest(settings_for(clips), str(tmp_path))
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values["settings"]["s"]["settings"]["quality"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert ingest(settings_for(clips), str(tmp_path)).digest == first.digest


def test_splits_by_a_list(clips, tmp_path):
    listed = {f"clip_{i}": ("train", "val", "test")[i % 3] for i in range(6)}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    out = str(tmp_path / "frames")
    settings = settings_for(clips, splits={"file": str(tmp_path / "list.json")})
    first = ingest(settings, out)
    _, rows = read_set(out)
    assert {(row["clip_id"], row["split"]) for row in rows} == {(f"s/{name}", split) for name, split in listed.items()}
    assert first.counts == {"s": {"train": 16, "val": 16, "test": 16}}
    # The same list, written in another way and elsewhere, is the same ingest; another list is not.
    (tmp_path / "moved.csv").write_text("".join(f"{name},{split}\n" for name, split in listed.items()))
    assert ingest(settings_for(clips, splits={"file": str(tmp_path / "moved.csv")}), out) == first
    (tmp_path / "list.json").write_text(json.dumps({**listed, "clip_0": "val"}))
    with pytest.raises(DataError, match=r"other settings \(splits\.file [0-9a-f]{32} -> [0-9a-f]{32}\)"):
        ingest(settings, out)
    assert read_manifest(out) == first


def test_a_clip_that_no_split_is_given_stops_before_any_work(clips, tmp_path):
    (tmp_path / "list.txt").write_text("clip_0 train\nclip_9 val\n")
    with pytest.raises(DataError, match=r"list\.txt: 'clip_9' is not in the source; did you mean"):
        ingest(settings_for(clips, splits={"file": str(tmp_path / "list.txt")}), str(tmp_path / "frames"))
    assert not exists(join(str(tmp_path), "frames"))


def test_all_bad_images_at_once(tmp_path):
    images = Images(tmp_path)
    expected: dict[str, int] = {}
    num_rows = 3
    for number, case in enumerate(case for case in IMAGE_CASES if not case.stops and case.change is None):
        num_before = len(images.entries)
        case.make(images)
        for entry in images.entries[num_before:]:  # each in a folder of its own
            folder, _, name = entry["file"].rpartition("/")
            if folder == "good":
                continue
            entry["file"] = f"{number:02d}/{folder}/{name}"
            if (old := images.root / folder / name).exists():
                (images.root / entry["file"]).parent.mkdir(parents=True)
                old.rename(images.root / entry["file"])
        num_rows += case.num_kept
        for reason, count in case.left_out.items():
            expected[reason] = expected.get(reason, 0) + count
    source = {**images.source(), "name": "s", "max_reject_fraction": 0.9}
    manifest = ingest(IngestSettings.model_validate({"source": source, "image_size": 64}), str(tmp_path / "frames"))
    read_set(str(tmp_path / "frames"))
    assert manifest.rejects["s"] == expected
    assert manifest.num_rows == num_rows
    assert all(manifest.reject_examples[reason] for reason in expected)


def test_the_job_says_what_was_a_choice(clips, tmp_path, monkeypatch, capsys):
    from contextlib import nullcontext

    from jobs.terminal import TerminalProgress

    settings = settings_for(clips, quality={"min_hand_px": 30}).model_dump()
    run(IngestJob(**settings, output=str(tmp_path)), TerminalProgress(), nullcontext)
    line = next(line for line in capsys.readouterr().out.splitlines() if "small_hand" in line)
    assert "choice" in line
    assert "12" in line


def detected(tmp_path, monkeypatch, shown: list[int], **source) -> IngestSettings:
    """A folder of 20 images; the detector finds a hand in those whose numbers are `shown`."""
    module = "pipeline.frames.sources.image_folder"

    def detector(*_):
        return lambda image, with_joints: (
            [Detection((10, 10, 40, 40), "right", 0.9)] if round(image.getpixel((0, 0))[0] / 10) in shown else []
        )

    monkeypatch.setattr(f"{module}.require_mediapipe", lambda: None)
    monkeypatch.setattr(f"{module}.shared_detector", detector)
    (tmp_path / "in").mkdir()
    for number in range(20):
        Image.new("RGB", (64, 64), (10 * number,) * 3).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "hands.task").write_bytes(b"model")
    values = {"kind": "image_folder", "uri": str(tmp_path / "in"), "detector": {"model": str(tmp_path / "hands.task")}}
    return IngestSettings.model_validate({"source": {**values, **source}, "image_size": 48})


def test_frames_without_a_hand_are_no_damage_to_a_detector(tmp_path, monkeypatch):
    settings = detected(tmp_path, monkeypatch, [7], max_reject_fraction=0.0)
    manifest = ingest(settings, str(tmp_path / "out"))
    assert manifest.num_rows == 1
    assert manifest.rejects == {"in": {"no_hand": 19}}
    assert [row[1:5] for row in _reject_rows(manifest)] == [("no_hand", REASONS["no_hand"], 19, "choice")]


def test_damage_beside_frames_without_a_hand_is_still_damage(tmp_path, monkeypatch):
    settings = detected(tmp_path, monkeypatch, [7], max_reject_fraction=0.04)
    (tmp_path / "in" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"5% of the frames.*no_hand 18.*; unreadable_image: the image is truncated"):
        ingest(settings, str(tmp_path / "out"))


def test_a_source_without_any_hand_names_the_detector(tmp_path, monkeypatch):
    settings = detected(tmp_path, monkeypatch, [])
    (tmp_path / "in" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"not one frame shows a hand to source\.detector\.model=") as caught:
        ingest(settings, str(tmp_path / "out"))
    assert "no_hand 19" in str(caught.value)
    assert "source.detector.min_confidence=0.5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_notes_on_the_input_are_kept_and_said(clips, tmp_path, capsys):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "notes.txt").write_text("not read")
    note = f"{folder}: 1 file of another kind was left out: 1 .txt"
    job = IngestJob.model_validate({**settings_for(folder).model_dump(), "output": str(tmp_path / "out")})
    with TerminalProgress() as progress:
        run(job, progress, nullcontext)
    assert read_manifest(str(tmp_path / "out")).notes == {"s": [note]}
    assert capsys.readouterr().out.count(f"note: {note}") == 1
