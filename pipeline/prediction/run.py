"""Batch prediction with Ray Data: tasks read and find hands, actors hold the model, the driver writes the table in order.

<output>/predictions.parquet    one row a hand (table.SCHEMA)
<output>/overlay/               the images or videos with hands drawn over them, where asked for
<output>/predict.json           what was done and what was left out; written last
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from pipeline.config import Uri
from pipeline.errors import DataError, EquihandError, SettingsError
from pipeline.frames.rejects import Rejects
from pipeline.geometry import bone_joints
from pipeline.models.shipped import model_uri
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.prediction.hands import CropPlan, Row, poses_in_source
from pipeline.prediction.inputs import InputSettings, Kind, Piece, check, kind_of, list_pieces, read_piece
from pipeline.prediction.overlay import write_image_overlay, write_video_overlay
from pipeline.prediction.smooth import SmoothSettings, smooth_track
from pipeline.prediction.table import SCHEMA, make_table
from pipeline.progress import SILENT, Progress
from pipeline.ray_cluster import choose_gpus, data_labels, said_when_lost, wait_for_node
from pipeline.ray_map import ray_map
from pipeline.storage import copy_from_local, join, preflight, resolve, write_json

PREDICTIONS = "predictions.parquet"

_ROWS_PER_BLOCK = 32
_READER_MEMORY = 400 * 2**20
"""Of a task that reads: the detector, decoded frames and libraries."""
_BONES = {"middle": "middle MCP to PIP", "wrist-index": "wrist to index MCP"}


class PredictSettings(InputSettings):
    """What is predicted, with which model, and how."""

    model: Uri
    """A pose model: equihand-small, which comes with the package, or the URI of a checkpoint, a run, an exported folder, or
    PeCLR's released fine-tuned file."""
    output: Uri
    """URI of the folder for the results."""
    passes: Literal[1, 2] = 1
    """2 predicts again in the box of the joints found first. It is meant for loose boxes: those of a detector are
    tight, and those of a model are better only where the model is good (see docs/predict.md)."""
    scale: Literal["none", "mean-bone", "labels"] = "none"
    """Unit of joints_3d where `bone_length_mm` is not given. none: lengths of the reference bone. mean-bone: metres,
    for a hand of the training set's mean size. labels: metres by the labels of each hand, where it has some."""
    bone_length_mm: float | None = Field(default=None, gt=1, lt=200)
    """Length of the hands' reference bone that you measured (the model card names the bone). joints_3d is then in
    metres."""
    smooth: bool = False
    """Video only: whether to steady each track with the one-euro filter."""
    smoothing: SmoothSettings = SmoothSettings()
    """That filter."""
    overlay: bool = False
    """Whether to write the images or videos with the hands drawn over them, too."""
    batch_size: int = Field(default=64, ge=1)
    """Number of hands that the model sees at a time."""
    num_actors: int = Field(default=1, ge=1)
    """Processes that hold the model, one GPU each where GPUs are used."""
    use_gpu: bool | None = None
    """Run the model on GPUs; none: if the cluster has one for each actor, and refused where an autoscaler starts nodes."""
    model_labels: dict[str, str] = {}
    """Labels of the cluster's nodes on which the model runs, where they are others than ray.data_labels."""


class Prepared(NamedTuple):
    """A prediction whose settings, input and model fit together."""

    settings: PredictSettings
    kind: Kind
    loaded: LoadedPoseModel
    plan: CropPlan
    pieces: list[Piece]
    rejects: Rejects
    """Found while listing."""


def prepare(settings: PredictSettings) -> Prepared:
    """Check everything that can be checked before long work; needs no Ray. Raises SettingsError or DataError."""
    preflight(settings.input, model_uri(settings.model))
    preflight(settings.output, write=True)
    kind = kind_of(settings.input)
    check(settings, kind)
    if settings.smooth and kind != "video":
        raise SettingsError(f"setting 'smooth' is for video; {settings.input} holds {kind}")
    if settings.overlay and kind == "frame set":
        raise SettingsError("setting 'overlay': a frame set holds no whole images to draw over")
    if settings.scale == "labels" and (settings.boxes or settings.detector.model):
        raise SettingsError("setting 'scale' = 'labels': a boxes file or a detector gives no joints to take it from")
    own = PredictSettings.model_validate(settings.model_dump(include=set(PredictSettings.model_fields)))
    loaded = load_pose_model(settings.model)
    plan = CropPlan.for_model(loaded.view_size, loaded.view_margin, bone_joints(loaded.model.convention.bone))
    rejects = Rejects()
    return Prepared(own, kind, loaded, plan, list_pieces(settings, kind, rejects), rejects)


def predict(prepared: Prepared, progress: Progress = SILENT) -> dict[str, Any]:
    """Predict the hands of the input. Needs a running Ray.

    Returns plain JSON, also in <output>/predict.json: {"model", "input", "kind", "output", "num_hands", "num_frames",
    "hands", "scale_source", "camera_source", "rejects", "overlays", "notes", "wall_s"}. Raises DataError where a piece
    cannot be read at all.
    """
    started = time.monotonic()
    settings, kind, loaded, _, pieces, rejects = prepared
    counts = _Counts()
    progress.start("predict hands", sum(piece.num_frames for piece in pieces), "frames")
    done = 0
    with tempfile.TemporaryDirectory(prefix="equihand-predict-") as folder:
        local = Path(folder) / PREDICTIONS
        with pq.ParquetWriter(local, SCHEMA.with_metadata(_metadata(settings, loaded))) as writer:
            for piece, (rows, piece_rejects) in zip(pieces, _run(prepared), strict=True):
                rejects.merge(piece_rejects)
                table = finish_piece(rows, settings, kind, float(loaded.model.mean_bone_length))
                if table.num_rows:
                    writer.write_table(table.replace_schema_metadata(_metadata(settings, loaded)))
                counts.add(table)
                done += piece.num_frames
                progress.update(done, hands=counts.num_hands)
        copy_from_local(local, join(settings.output, PREDICTIONS))
    progress.finish(hands=counts.num_hands, rejects=sum(rejects.counts.values()))
    seconds = time.monotonic() - started
    num_overlays = _write_overlays(prepared, progress) if settings.overlay and counts.num_hands else 0
    result = {
        "model": settings.model,
        "input": settings.input,
        "kind": kind,
        "output": settings.output,
        "num_hands": counts.num_hands,
        "num_frames": counts.num_frames,
        "hands": dict(counts.by["hand"]),
        "scale_source": dict(counts.by["scale_source"]),
        "camera_source": dict(counts.by["camera_source"]),
        "rejects": rejects.to_json(),
        "overlays": num_overlays,
        "notes": notes(settings, counts.by, loaded, rejects),
        "predict_s": round(seconds, 1),
        "wall_s": round(time.monotonic() - started, 1),
    }
    write_json(join(settings.output, "predict.json"), result)
    return result


# --- in tasks and actors


class ReadPieces:
    """Task: a piece as JSON -> blocks of rows; after the last one a row that says what was left out."""

    def __init__(self, settings: PredictSettings, kind: Kind, plan: CropPlan) -> None:
        self.settings, self.kind, self.plan = settings, kind, plan

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for item in batch["piece"]:
            yield from self.blocks(Piece(*json.loads(item)))

    def blocks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Rows of one piece, a few at a time."""
        rejects = Rejects()
        end: dict[str, Any] = {}
        rows: list[Row] = []
        try:
            for row in read_piece(self.settings, self.kind, piece, self.plan, rejects):
                rows.append(row)
                if len(rows) == _ROWS_PER_BLOCK:
                    yield to_block(rows)
                    rows = []
        except EquihandError as error:
            end["error"] = str(error)
        side = piece.content.get("size", self.plan.size)
        yield to_block(rows, {**end, "rejects": rejects.to_json()}, side)


class PoseActor:
    """Actor: holds the model; rows with crops -> rows with poses, the crops left out."""

    def __init__(self, model: str, passes: int, use_gpu: bool) -> None:
        self.loaded = load_pose_model(model)
        self.passes = passes
        if use_gpu:
            self.loaded.model.to("cuda")
        else:
            torch.set_num_threads(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [json.loads(meta) for meta in batch["meta"]]
        is_hand = np.array(["frame_id" in row for row in rows])
        if not is_hand.any():
            return {"meta": batch["meta"]}
        hands = [row_from_json(row) for row, good in zip(rows, is_hand, strict=True) if good]
        posed = iter(self.pose(hands, batch["image"][is_hand]))
        metas = [row_to_json(next(posed)) if good else m for m, good in zip(batch["meta"], is_hand, strict=True)]
        return {"meta": np.array(metas, dtype=object)}

    def pose(self, rows: Sequence[Row], images: np.ndarray) -> list[Row]:
        """Rows with joints_2d (source pixels), joints_3d (bone lengths, camera frame) and view (source -> view)."""
        found = poses_in_source(self.loaded, rows, images, self.passes)
        return [{**row, **pose} for row, pose in zip(rows, found, strict=True)]


_ARRAYS = {
    "crop": (2, 3),
    "camera": (3, 3),
    "box": (4,),
    "joints_2d": (21, 2),
    "joints_3d": (21, 3),
    "view": (2, 3),
}


def row_to_json(row: Row) -> str:
    """A row without its image, as text: small, exact, and the same for rows of every kind."""
    return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items() if k != "image"})


def row_from_json(values: dict[str, Any]) -> Row:
    """Back from `row_to_json`."""
    return {k: np.array(v, dtype=np.float64).reshape(_ARRAYS[k]) if k in _ARRAYS else v for k, v in values.items()}


def to_block(rows: Sequence[Row], end: dict[str, Any] | None = None, side: int = 0) -> dict[str, Any]:
    """Rows as Ray Data takes them: text and images. end: a last row without a hand, with a black image of `side`."""
    metas, images = [row_to_json(row) for row in rows], [row["image"] for row in rows]
    if end is not None:
        metas.append(json.dumps(end))
        images.append(np.zeros((side, side, 3), dtype=np.uint8))
    return {"meta": np.array(metas, dtype=object), "image": np.stack(images)}


# --- in the driver


def _run(prepared: Prepared) -> Iterator[tuple[list[Row], Rejects]]:
    """Rows with poses, and rejects, of each piece in their order.

    Ray Data's own instead of ray_map: rows stream from readers to models, whose batches go across pieces.
    """
    import ray

    settings, pieces = prepared.settings, prepared.pieces
    use_gpu = choose_gpus(settings.use_gpu, settings.num_actors, "use_gpu")
    needs = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {})}
    labels = data_labels() | settings.model_labels
    wait_for_node(needs, labels)
    items = [{"piece": json.dumps(piece)} for piece in pieces]
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        # Asking for memory also keeps Ray Data from running these tasks one by one inside the actors that hold the model.
        .map_batches(
            ReadPieces(settings, prepared.kind, prepared.plan), batch_size=1, num_cpus=1, memory=_READER_MEMORY
        )
        .map_batches(
            PoseActor,
            fn_constructor_kwargs={"model": settings.model, "passes": settings.passes, "use_gpu": use_gpu},
            batch_size=settings.batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=settings.num_actors),
            num_cpus=1,
            num_gpus=1 if use_gpu else 0,
            label_selector=labels,
        )
    )
    dataset.context.execution_options.preserve_order = True
    rows: list[Row] = []
    with said_when_lost(needs, labels):
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            for meta in batch["meta"]:
                values = json.loads(meta)
                if "frame_id" in values:
                    rows.append(row_from_json(values))
                    continue
                if "error" in values:
                    raise DataError(values["error"])
                yield rows, Rejects.from_json(values["rejects"])
                rows = []


def finish_piece(rows: Sequence[Row], settings: PredictSettings, kind: Kind, mean_bone_length: float) -> pa.Table:
    """The table of a piece: smoothed where asked for, scaled."""
    if settings.smooth and kind == "video":
        rows = _smoothed(rows, settings.smoothing)
    given = None if settings.bone_length_mm is None else settings.bone_length_mm / 1000
    return make_table(rows, settings.scale, mean_bone_length, given)


def _smoothed(rows: Sequence[Row], settings: SmoothSettings) -> list[Row]:
    result = list(rows)
    tracks: dict[int, list[int]] = {}
    for position, row in enumerate(rows):
        tracks.setdefault(row["track"], []).append(position)
    for positions in tracks.values():
        members = [rows[position] for position in positions]
        times, joints_2d, joints_3d, camera = (
            np.stack([np.asarray(row[key]) for row in members])
            for key in ("timestamp_s", "joints_2d", "joints_3d", "camera")
        )
        smoothed = smooth_track(times, joints_2d, joints_3d, camera, settings)
        for position, pixels, joints in zip(positions, *smoothed, strict=True):
            result[position] = {**rows[position], "joints_2d": pixels, "joints_3d": joints}
    return result


class _Counts:
    """What the table holds."""

    def __init__(self) -> None:
        self.num_hands = self.num_frames = 0
        self.by: dict[str, Counter[str]] = {name: Counter() for name in ("hand", "scale_source", "camera_source")}

    def add(self, table: pa.Table) -> None:
        self.num_hands += table.num_rows
        self.num_frames += len(set(zip(table["name"].to_pylist(), table["frame_index"].to_pylist(), strict=True)))
        for name, counter in self.by.items():
            counter.update(table[name].to_pylist())


def notes(
    settings: PredictSettings, counts: dict[str, Counter[str]], loaded: LoadedPoseModel, rejects: Rejects
) -> list[str]:
    """What a reader of the joints has to know, one line each."""
    lines = []
    num_hands = sum(counts["hand"].values())
    bone = _BONES[loaded.model.convention.bone]
    if counts["camera_source"]["default"]:
        assumed = f"focal length {settings.focal_factor:g} x the image's longer side"
        lines.append(
            f"camera unknown for {counts['camera_source']['default']} of {num_hands} hands, assumed ({assumed}; "
            "camera_source 'default'): use joints_2d and the pose, not the distance (wrist_3d); setting 'cameras' gives it"
        )
    if counts["scale_source"]["none"]:
        lines.append(
            f"size unknown for {counts['scale_source']['none']} of {num_hands} hands (scale_source 'none'): joints_3d and "
            f"wrist_3d are in lengths of the bone {bone}; settings 'bone_length_mm' or 'scale' give metres"
        )
    if counts["scale_source"]["mean-bone"]:
        lines.append(
            f"joints_3d are metres for a hand of mean size ({bone} {1000 * float(loaded.model.mean_bone_length):.1f} mm; "
            "scale_source 'mean-bone')"
        )
    if num_hands:
        finder = "the detector's" if settings.detector.model else "what the input gave, if anything:"
        lines.append(f"confidence is {finder} that a hand is there; the joints come without one")
    elif settings.detector.model and rejects.counts.get("no_hand"):
        lines.append(
            f"not one frame shows a hand to detector.model={settings.detector.model} with "
            f"detector.min_confidence={settings.detector.min_confidence:g}"
        )
    lines += rejects.notes
    if rejects.counts:
        lines.append(f"left out: {rejects.text()}")
    return lines


def _metadata(settings: PredictSettings, loaded: LoadedPoseModel) -> dict[str, str]:
    return {
        "equihand.model": settings.model,
        "equihand.input": settings.input,
        "equihand.reference_bone": loaded.model.convention.bone,
        "equihand.view_size": str(loaded.view_size),
        "equihand.passes": str(settings.passes),
        "equihand.smoothed": json.dumps(settings.smoothing.model_dump() if settings.smooth else None),
        "equihand.focal_factor": str(settings.focal_factor),
    }


# --- overlays


def _write_overlays(prepared: Prepared, progress: Progress) -> int:
    """Draw every image or video that has hands, each in a task; gives their number."""
    progress.start("draw overlays", len(prepared.pieces), "pieces")
    written = 0
    for files in ray_map(partial(draw_piece, prepared.settings, prepared.kind), prepared.pieces):
        written += files
        progress.advance()
    progress.finish(files=written)
    return written


def draw_piece(settings: PredictSettings, kind: Kind, piece: Piece) -> int:
    """Write the overlays of a piece from the table; gives the number of files."""
    hands = read_hands(settings.output, piece, kind)
    if kind == "video":
        if piece.name not in hands:
            return 0
        target = join(settings.output, "overlay", f"{piece.name}.mp4")
        write_video_overlay(piece.uri, hands[piece.name], target, settings.fps, settings.stride)
        return 1
    for name, by_frame in hands.items():
        target = join(settings.output, "overlay", f"{name}.jpg")
        write_image_overlay(piece.uri, name, by_frame[0], target)
    return len(hands)


def read_hands(output: str, piece: Piece, kind: Kind) -> dict[str, dict[int, list[np.ndarray]]]:
    """Joints (21, 2) of a piece's hands: {name: {frame index: joints}}."""
    names = [piece.name] if kind == "video" else [entry["file"] for entry in piece.content["entries"]]
    filesystem, path = resolve(join(output, PREDICTIONS))
    table = pq.read_table(
        path,
        columns=["name", "frame_index", "joints_2d"],
        filters=[("name", "in", names)],
        filesystem=filesystem,
    )
    hands: dict[str, dict[int, list[np.ndarray]]] = {}
    for row in table.to_pylist():
        joints = np.array(row["joints_2d"]).reshape(21, 2)
        hands.setdefault(row["name"], {}).setdefault(row["frame_index"], []).append(joints)
    return hands
