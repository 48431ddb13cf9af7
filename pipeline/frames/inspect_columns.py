"""What the columns beside the pictures say of a frame set, exactly: every shard's rows are read, their JPEGs are not.

One shard gives one `Measures`; those of several add up, so shards may be read anywhere and in any order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.frames.inspect_distribution import Distribution
from pipeline.frames.manifest import Shard
from pipeline.frames.shards import opened, row_groups
from pipeline.hands import BONES, NUM_JOINTS
from pipeline.storage import join

COLUMNS = ("clip_id", "frame_index", "timestamp_s", "hand", "crop", "joints_3d", "camera", "confidence", "joints_2d")


@dataclass
class Clips:
    """Clips by a hash of their name, because a clip's rows lie scattered over the shards; arrays of the same length."""

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    num_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Time of the first row, seconds; inf where no row has a time."""
    last_s: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def merge(self, other: "Clips") -> None:
        """Add another shard's part of the clips."""
        names = np.concatenate([self.hashes, other.hashes])
        self.hashes, place = np.unique(names, return_inverse=True)
        num_rows = np.zeros(len(self.hashes), np.int64)
        first, last = np.full(len(self.hashes), np.inf), np.full(len(self.hashes), -np.inf)
        np.add.at(num_rows, place, np.concatenate([self.num_rows, other.num_rows]))
        np.minimum.at(first, place, np.concatenate([self.first_s, other.first_s]))
        np.maximum.at(last, place, np.concatenate([self.last_s, other.last_s]))
        self.num_rows, self.first_s, self.last_s = num_rows, first, last


@dataclass
class Measures:
    """Of the rows of one source. Distributions and arrays of counts add up."""

    num_rows: int = 0
    num_bytes: int = 0
    """Of the Parquet files."""
    jpeg_bytes: int = 0
    """Of the column of JPEGs."""
    num_left: int = 0
    """Rows of left hands, which are stored mirrored."""
    num_enlarged: int = 0
    """Rows whose hand had fewer pixels than its crop has."""
    num_labelled: int = 0
    """Rows with joints in 3D and camera, or in the image."""
    num_labelled_2d: int = 0
    """Of them, those with joints in the image only."""
    num_all_joints_inside: int = 0
    """Labelled rows with every joint inside the crop."""
    num_full_groups: int = 0
    """Rows in frame groups of full length."""
    joints_inside: np.ndarray = field(default_factory=lambda: np.zeros(NUM_JOINTS, np.int64))
    """(21,) labelled rows with this joint inside the crop."""
    joints_known: np.ndarray = field(default_factory=lambda: np.zeros(NUM_JOINTS, np.int64))
    """(21,) labelled rows with this joint known."""
    clips: Clips = field(default_factory=Clips)
    hand_px: Distribution = field(default_factory=Distribution)
    """Longer side of the hand's box in the source, pixels."""
    group_gap_s: Distribution = field(default_factory=Distribution)
    """Time between frames that follow each other in a group, seconds."""
    group_gap_frames: Distribution = field(default_factory=Distribution)
    """The same in frames of the source."""
    confidence: Distribution = field(default_factory=Distribution)
    depth_m: Distribution = field(default_factory=Distribution)
    """Mean depth of the hand's joints, metres."""
    focal_px: Distribution = field(default_factory=Distribution)
    """Focal length of the crop's camera, pixels of the crop."""
    bones_mm: list[Distribution] = field(default_factory=lambda: [Distribution() for _ in BONES])
    """Length of each bone of hands.BONES, millimetres."""

    def merge(self, other: "Measures") -> None:
        """Add another's rows."""
        for item in fields(self):
            mine, its = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, int | np.ndarray):
                setattr(self, item.name, mine + its)
            elif isinstance(mine, list):
                for one, another in zip(mine, its, strict=True):
                    one.merge(another)
            else:
                mine.merge(its)


class PairwiseSum:
    """Adds up the measures of many shards, those of like size first.

    One after the other, all clips so far would be sorted again for every shard: for 20 million photographs, each a clip of
    its own, that takes the better part of an hour.
    """

    def __init__(self) -> None:
        self._sums: list[Measures] = []
        """Each of more than twice as many rows as the one after it."""

    def add(self, part: Measures) -> None:
        """One more shard's; it is no longer the caller's."""
        self._sums.append(part)
        while len(self._sums) > 1 and self._sums[-2].num_rows <= 2 * self._sums[-1].num_rows:
            last = self._sums.pop()
            self._sums[-1].merge(last)

    def total(self) -> Measures:
        """Of all shards."""
        total = Measures()
        for part in reversed(self._sums):
            total.merge(part)
        return total


def measure_shard(uri: str, shard: Shard, image_size: int, group_size: int, box_margin: float) -> Measures:
    """The measures of one shard. Raises DataError where it cannot be read.

    uri: of the frame set. box_margin: side of the shard's crops in hand boxes.
    """
    shard_uri = join(uri, shard.path)
    with opened(shard_uri) as file:
        result = Measures(num_bytes=shard.num_bytes, jpeg_bytes=_jpeg_bytes(file.metadata))
    for table in row_groups(shard_uri, COLUMNS):
        result.num_rows += table.num_rows
        result.num_left += pc.sum(pc.equal(table["hand"], "left")).as_py() or 0
        scale = np.sqrt(np.abs(np.linalg.det(_lists(table, "crop", (2, 3))[:, :, :2])))
        with np.errstate(divide="ignore"):
            result.hand_px.add(image_size / (scale * box_margin))
        result.num_enlarged += int((scale > 1).sum())
        result.confidence.add(table["confidence"].drop_null().to_numpy())
        _measure_clips(table, group_size, result)
        _measure_labels(table, image_size, result)
    return result


def groups_of(clips: Sequence[str], indexes: Sequence[int], group_size: int) -> np.ndarray:
    """The number of the frame group that each row is in: runs of one clip with ascending frames, at most group_size long.

    Two groups of one clip that happen to follow each other may so be taken for one where the first is not full; with many
    clips that hardly happens.
    """
    numbers = np.zeros(len(clips), np.int64)
    start = 0
    for row in range(1, len(clips)):
        new = clips[row] != clips[row - 1] or indexes[row] <= indexes[row - 1] or row - start >= group_size
        start = row if new else start
        numbers[row] = numbers[row - 1] + new
    return numbers


def name_hash(name: str) -> int:
    """64 bits that stand for a name. Among ten million names the chance that any two share them is 1 in 400,000."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _jpeg_bytes(metadata: pq.FileMetaData) -> int:
    """Stored bytes of the JPEG column, from the file's footer."""
    columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    column = columns["jpeg"]
    return sum(metadata.row_group(i).column(column).total_compressed_size for i in range(metadata.num_row_groups))


def _lists(table: pa.Table, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """(n, *shape) float64 of a list column; NaN where null or of another length."""
    column = table[name].combine_chunks()
    length = int(np.prod(shape))
    result = np.full((len(column), length), np.nan)
    fits = pc.fill_null(pc.equal(pc.list_value_length(column), length), False)
    values = column.filter(fits).flatten().to_numpy(zero_copy_only=False)
    result[fits.to_numpy(zero_copy_only=False)] = values.reshape(-1, length)
    return result.reshape(-1, *shape)


def _measure_clips(table: pa.Table, group_size: int, result: Measures) -> None:
    names = table["clip_id"].to_pylist()
    times = table["timestamp_s"].to_numpy()  # NaN where null
    hashes = {name: name_hash(name) for name in set(names)}
    each = np.array([hashes[name] for name in names], np.uint64)
    known = np.isfinite(times)
    result.clips.merge(
        Clips(each, np.ones(len(each), np.int64), np.where(known, times, np.inf), np.where(known, times, -np.inf))
    )
    indexes = table["frame_index"].to_numpy().astype(np.int64)
    groups = groups_of(names, indexes.tolist(), group_size)
    sizes = np.bincount(groups)
    result.num_full_groups += int(sizes[sizes == group_size].sum())
    same = np.diff(groups) == 0
    gaps = np.abs(np.diff(times))[same]
    result.group_gap_s.add(gaps[np.isfinite(gaps)])
    result.group_gap_frames.add(np.diff(indexes)[same])


def _measure_labels(table: pa.Table, image_size: int, result: Measures) -> None:
    joints, cameras = _lists(table, "joints_3d", (21, 3)), _lists(table, "camera", (3, 3))
    result.focal_px.add(((cameras[:, 0, 0] + cameras[:, 1, 1]) / 2)[np.isfinite(cameras).all((1, 2))])
    labelled = np.isfinite(joints).all(2).any(1) & np.isfinite(cameras).all((1, 2))
    in_image = _lists(table, "joints_2d", (21, 2))
    in_image = in_image[np.isfinite(in_image).all(2).any(1) & ~labelled]
    result.num_labelled += int(labelled.sum()) + len(in_image)
    result.num_labelled_2d += len(in_image)
    joints, cameras = joints[labelled], cameras[labelled]
    with np.errstate(invalid="ignore", divide="ignore"):
        pixels = joints @ cameras.transpose(0, 2, 1)
        pixels = np.where(joints[..., 2:] > 0, pixels[..., :2] / pixels[..., 2:], np.inf)
        pixels = np.where(np.isfinite(joints).all(2, keepdims=True), pixels, np.nan)
        pixels = np.concatenate([pixels, in_image])
        known = ~np.isnan(pixels).any(2)
        inside = known & ((pixels >= 0) & (pixels <= image_size)).all(2)
    result.joints_known += known.sum(0)
    result.joints_inside += inside.sum(0)
    result.num_all_joints_inside += int(inside.all(1).sum())
    if len(joints):
        result.depth_m.add(np.nanmean(joints[..., 2], axis=1))
    for distribution, (parent, child) in zip(result.bones_mm, BONES, strict=True):
        lengths = 1000 * np.linalg.norm(joints[:, child] - joints[:, parent], axis=1)
        distribution.add(lengths[np.isfinite(lengths)])
