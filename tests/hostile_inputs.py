"""What a stranger may have put into a frame set, a model or a list, and the one line that it ends with: part of docs/bad-inputs.md."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.config import Settings, load
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.schema import SCHEMA
from pipeline.frames.sources.json_stream import open_json
from pipeline.frames.sources.published import read_yaml
from pipeline.frames.sources.youtube3d import read_regressor
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel
from pipeline.models.weights import load_encoder, load_pose_model
from pipeline.reports.freihand import read_predictions
from pipeline.storage import read_bytes
from tests.start_errors import Case, World
from tests.tiny_sets import write_tiny_set

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""YAML whose ten lines stand for a thousand million words."""


def frame_set(world: World, **changes: Any) -> None:
    """A frame set whose manifest was changed; `shard`: of its first shard."""
    uri = world.folder / "set"
    write_tiny_set(str(uri), splits={"train": 8})
    values = json.loads((uri / "manifest.json").read_text())
    values["shards"][0] |= changes.pop("shard", {})
    (uri / "manifest.json").write_text(json.dumps(values | changes))
    FrameSet.open(str(uri)).load("train", columns=("joints_3d",))


def manifest_text(world: World, text: str) -> None:
    (world.folder / "manifest.json").write_text(text)
    FrameSet.open(str(world.folder))


def large_manifest(world: World) -> None:
    with open(world.folder / "manifest.json", "wb") as file:
        file.truncate(2**33)  # without a byte on the disk
    FrameSet.open(str(world.folder))


def unpacking_shard(world: World) -> None:
    """A few hundred bytes that unpack to megabytes."""
    uri = world.folder / "set"
    write_tiny_set(str(uri), splits={"train": 8})
    (shard,) = (uri / "shards").iterdir()
    table = pq.read_table(shard)
    zeros = pa.array([bytes([number]) * 2**20 for number in range(8)], pa.binary())
    group = table.set_column(table.schema.get_field_index("jpeg"), SCHEMA.field("jpeg"), zeros)
    with pq.ParquetWriter(shard, group.schema, compression="zstd") as writer:
        writer.write_table(group)
    world.patch.setattr("pipeline.frames.shards._MAX_BYTES", 2**22)  # instead of gigabytes
    FrameSet.open(str(uri)).load("train")


def weights(name: str, data: bytes) -> Callable[[World], None]:
    def start(world: World) -> None:
        (world.folder / name).write_bytes(data)
        load_encoder(str(world.folder / name))

    return start


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def program(world: World, name: str) -> None:
    torch.save({"conv1.weight": Runs(world.folder / "ran")}, world.folder / name)
    try:
        load_encoder(str(world.folder / name))
    finally:
        assert not (world.folder / "ran").exists()


def script(world: World) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(world.folder / "x.pth"))
    load_encoder(str(world.folder / "x.pth"))


def checkpoint(world: World, change: Callable[[dict[str, Any]], Any]) -> None:
    """A pose model's whose meta.json was changed before it was sealed."""
    model = PoseModel(build_encoder(EncoderSettings(width=8)))
    settings = {"head": model.settings.model_dump(), "views": {"size": 64}}
    meta: dict[str, Any] = {"kind": "pose", "settings": settings}
    change(meta)
    save_checkpoint(world.folder, model, None, meta)
    load_pose_model(str(world.folder))


def nested_meta(world: World) -> None:
    checkpoint(world, lambda meta: None)
    (world.folder / "checksums.json").unlink()
    (world.folder / "meta.json").write_text('{"a": ' + "[" * 100_000)
    load_pose_model(str(world.folder))


def nested_stream(world: World) -> None:
    (world.folder / "x.json").write_text("[" * 100_000 + "]" * 100_000)
    with open_json(str(world.folder / "x.json")) as stream:
        stream.value()


def yaml_file(text: str) -> Callable[[World], None]:
    def start(world: World) -> None:
        (world.folder / "meta.yml").write_text(text)
        read_yaml(str(world.folder / "meta.yml"))

    return start


class Anything(Settings):
    values: dict[str, Any] = {}


def settings_file(text: str) -> Callable[[World], None]:
    def start(world: World) -> None:
        (world.folder / "x.yaml").write_text(text)
        load(Anything, ["--config", str(world.folder / "x.yaml")])

    return start


def large_array(world: World) -> None:
    """The header of 800 TB, and nothing behind it."""
    header = (
        repr({"descr": "<f8", "fortran_order": False, "shape": (100_000_000, 1_000_000)}).encode().ljust(117) + b"\n"
    )
    (world.folder / "j.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    read_regressor(str(world.folder / "j.npy"))


def array_of_objects(world: World) -> None:
    np.save(world.folder / "j.npy", np.array([Runs(world.folder / "ran")], dtype=object), allow_pickle=True)
    try:
        read_regressor(str(world.folder / "j.npy"))
    finally:
        assert not (world.folder / "ran").exists()


def unpacking_predictions(world: World) -> None:
    world.patch.setattr("pipeline.reports.freihand.MAX_JSON_BYTES", 2**20)  # instead of gigabytes
    with zipfile.ZipFile(world.folder / "pred.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pred.json", b" " * 2**24)
    read_predictions(str(world.folder / "pred.zip"))


CASES = [
    Case("manifest whose shard is ../../etc/passwd", "is not a path below the frame set", 1, lambda w: frame_set(w, shard={"path": "../../etc/passwd"})),
    Case("manifest whose shard is /etc/passwd", "is not a path below the frame set", 1, lambda w: frame_set(w, shard={"path": "/etc/passwd"})),
    Case("manifest whose shard is another bucket's", "is not a path below the frame set", 1, lambda w: frame_set(w, shard={"path": "s3://other/x.parquet"})),
    Case("manifest with crops of 1,000,000 pixels", "less than or equal to 4096", 1, lambda w: frame_set(w, image_size=1_000_000)),
    Case("manifest with 10^15 rows in a row group", "less than or equal to 1000000", 1, lambda w: frame_set(w, shard={"row_groups": [10**15]})),
    Case("manifest of 8 GB", "it is not read", 1, large_manifest),
    Case("manifest nested 100,000 deep", "nested too deeply", 1, lambda w: manifest_text(w, "[" * 100_000)),
    Case("shard that unpacks to gigabytes", "a row group of more than", 1, unpacking_shard),
    Case("published annotations nested 100,000 deep", "nested too deeply", 1, nested_stream),
    Case("weights (.safetensors) whose header has 2^63 bytes", "not a weights file", 1, weights("x.safetensors", struct.pack("<Q", 2**63) + b"{}")),
    Case("weights (.safetensors) that are a pickle", "not a weights file", 1, lambda w: program(w, "x.safetensors")),
    Case("weights (.pth) that hold a program", "Python objects beside tensors, which are never loaded", 1, lambda w: program(w, "x.pth")),
    Case("weights (.pth) that are TorchScript", "not a weights file", 1, script),
    Case("checkpoint whose head has an unknown setting", "the description of the pose model is damaged", 1, lambda w: checkpoint(w, lambda meta: meta["settings"]["head"].update(extra=1))),
    Case("checkpoint with views of 10^9 pixels", "views of 1000000000 pixels", 1, lambda w: checkpoint(w, lambda meta: meta["settings"]["views"].update(size=10**9))),
    Case("checkpoint's meta.json nested 100,000 deep", "nested too deeply", 1, nested_meta),
    Case("published YAML with a tag of Python's (!!python/object)", "could not determine a constructor", 1, yaml_file("color: !!python/object/apply:os.system [exit]")),
    Case("settings YAML with a tag of Python's", "could not determine a constructor", 2, settings_file("values: !!python/name:os.system")),
    Case("YAML whose aliases unfold to 10^9 values", "its aliases (*name) repeat too much", 2, settings_file(LAUGHS)),
    Case("YAML nested 10,000 deep", "nested too deeply", 2, settings_file("values: " + "[" * 10_000)),
    Case("array (.npy) whose header claims 800 TB", "not an array of 16 x 778", 1, large_array),
    Case("array (.npy) of Python objects", "not an array of 16 x 778", 1, array_of_objects),
    Case("zip of predictions that unpacks to gigabytes", "it is not read", 1, unpacking_predictions),
    Case("URI with a line break and signs that steer a terminal", "x\\x1b[2J\\ny: no such file", 1, lambda w: read_bytes(str(w.folder / "x\x1b[2J\ny"))),
]  # fmt: skip


def markdown() -> list[str]:
    """Its part of docs/bad-inputs.md."""
    return [
        "## What strangers made",
        "",
        "Frame sets, models and lists that come from elsewhere may be made to do harm ([security](security.md)). None of these",
        "runs a program, leads out of its folder, or takes more memory than an honest one. `tests/test_hostile_inputs.py` tries each.",
        "",
        "| what is given | exit code | part of the line |",
        "| --- | --- | --- |",
        *(f"| {case.what} | {case.code} | {case.says.replace('*', chr(92) + '*')} |" for case in CASES),
    ]
