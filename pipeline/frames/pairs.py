"""Mined pairs of a frame set: for each frame a partner from another video, kept beside the set.

    <frame set>/pairs/<name>/pairs.json                   written last
    <frame set>/pairs/<name>/shards/<shard>.parquet       one for each shard, the same rows in the same order and row groups

A row brings its partner's JPEG along. So a reader takes the same stretch of two files, and pairs stream like the frames
themselves, whatever the size of the set; the price is that the JPEGs of the paired splits are stored twice. The frame set
itself is not touched.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pydantic

from pipeline.errors import DataError
from pipeline.frames.schema import SCHEMA
from pipeline.storage import exists, join, read_json, write_json

if TYPE_CHECKING:
    from pipeline.frames.frame_set import FrameSet

VERSION = 1

SCHEMA_OF_PAIRS = pa.schema(
    [
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("keypoints", pa.list_(pa.float32())),
        pa.field("pair_frame_id", pa.string(), nullable=False),
        pa.field("pair_clip_id", pa.string(), nullable=False),
        pa.field("pair_timestamp_s", SCHEMA.field("timestamp_s").type),
        pa.field("pair_distance", pa.float32()),
        pa.field("pair_keypoints", pa.list_(pa.float32())),
        pa.field("pair_jpeg", pa.binary()),
    ]
)
"""Columns beside a frame set's.

frame_id          as in the frame set's shard, row for row
keypoints         21x2 row-major, pixels of the crop, FreiHAND order; null where there are none
pair_frame_id     the partner; a frame without one has its own id, clip and time here, and no JPEG
pair_clip_id      the partner's clip
pair_timestamp_s  the partner's time in its clip
pair_distance     between the two normalised poses: root mean square over the 42 numbers; null without a partner
pair_keypoints    the partner's keypoints
pair_jpeg         the partner's crop; null without a partner
"""


class PairsInfo(pydantic.BaseModel):
    """What pairs.json says."""

    version: int = VERSION
    created_at: datetime
    frame_set_digest: str
    """Of the frame set that was mined; pairs of another state of it do not fit its rows."""
    splits: list[str]
    num_rows: int
    num_without_keypoints: int
    num_without_partner: int
    """With keypoints, but no other video in their split."""
    mean_distance: float | None
    settings: dict[str, Any]


def pairs_shard(uri: str, name: str, path: str) -> str:
    """URI of the pairs that lie beside the shard at `path` (as in the manifest)."""
    return join(uri, "pairs", name, path)


def write_pairs_info(uri: str, name: str, info: PairsInfo) -> None:
    """Publish pairs."""
    write_json(join(uri, "pairs", name, "pairs.json"), info.model_dump(mode="json"))


def read_pairs_info(frame_set: "FrameSet", name: str, split: str) -> PairsInfo:
    """What is known of the pairs `name` of a frame set. Raises DataError where they are missing or do not fit the set."""
    target = join(frame_set.uri, "pairs", name, "pairs.json")
    again = f"run python -m jobs.mine --frame_set {frame_set.uri} --name {name}"
    if not exists(target):
        raise DataError(f"{frame_set.uri}: has no pairs '{name}'; {again}")
    try:
        info = PairsInfo.model_validate(read_json(target))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{target}: '{'.'.join(map(str, first['loc']))}' {first['msg']}; {again}") from None
    if info.version != VERSION:
        raise DataError(f"{target}: has version {info.version}, this code reads {VERSION}; {again}")
    if info.frame_set_digest != frame_set.manifest.digest:
        raise DataError(f"{target}: was mined before the frame set changed; {again}")
    if split not in info.splits:
        raise DataError(f"{target}: holds pairs of {', '.join(info.splits)}, not of split '{split}'; {again}")
    return info


def beside(table: pa.Table, mined: pa.Table, name: str) -> pa.Table:
    """A frame set's rows with the columns of their pairs. Raises DataError where the rows are not the same."""
    if not mined["frame_id"].combine_chunks().equals(table["frame_id"].combine_chunks()):
        raise DataError(f"{name}: its rows are not those of the frame set's shard; mine the pairs again")
    for column in mined.column_names:
        if column != "frame_id":
            table = table.append_column(column, mined[column])
    return table
