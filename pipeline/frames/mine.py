"""Mining: for each frame of a set, the frame of another video whose 2D pose is most like its own (SiMHand's positives).

2D joints of the crop, from labels or a detector -> centred, divided by their size -> the first components of a PCA -> the
nearest neighbour among the frames of other videos of the same split. The pairs are written beside the frame set
(see pairs.py). Which way a hand is turned in the image is part of its pose here, as in SiMHand (Lin et al., ICLR 2025).
"""

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Settings, Uri
from pipeline.errors import DataError
from pipeline.frames.detect import DetectorSettings, require_mediapipe, shared_detector
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.manifest import Shard
from pipeline.frames.pairs import SCHEMA_OF_PAIRS, PairsInfo, pairs_shard, read_pairs_info, write_pairs_info
from pipeline.frames.shards import opened, read_rows
from pipeline.progress import SILENT, Progress
from pipeline.ray_map import ray_map
from pipeline.storage import delete, exists, join, preflight, write_bytes

_QUERIES_AT_ONCE = 2048
_COLUMNS_AT_ONCE = 32768
_MAX_WRITERS = 128
"""The exchange holds (shards x writers) pieces."""


class MineSettings(Settings):
    """What is mined, and how."""

    frame_set: Uri
    """URI of the frame set."""
    name: str = Field(default="similar", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the pairs, which `objective.positives.pairs` asks for in pretraining."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    """Splits in which pairs are looked for. Both frames of a pair are of the same split."""
    keypoints: Literal["labels", "detector"] = "labels"
    """Where 2D joints come from: labels (projected, where they are in 3D), or the hand detector, run on every crop."""
    detector: DetectorSettings = DetectorSettings()
    """The detector, where it is used."""
    components: int = Field(default=14, ge=2, le=42)
    """Principal components of the 42 coordinates in which poses are compared (SiMHand: 14)."""


def mine(settings: MineSettings, progress: Progress = SILENT) -> PairsInfo:
    """Mine pairs and write them beside the frame set. Needs a running Ray.

    Pairs that are there already, with the same settings and frame set, are left as they are. Raises DataError where there
    are no 2D joints, or fewer than two videos.
    """
    preflight(settings.frame_set, write=True)
    frame_set = FrameSet.open(settings.frame_set)
    manifest = frame_set.manifest
    deciding = settings.model_dump(mode="json", exclude={"frame_set", "name"})
    info_uri = join(settings.frame_set, "pairs", settings.name, "pairs.json")
    if exists(info_uri):
        try:
            old = read_pairs_info(frame_set, settings.name, settings.splits[0])
        except DataError:
            old = None
        if old is not None and old.settings == deciding:
            return old
        delete(info_uri)
    for split in settings.splits:
        if manifest.rows_in(split) == 0:
            raise DataError(f"{settings.frame_set}: split '{split}' is empty; the set has {manifest.counts_text()}")
    if settings.keypoints == "detector":
        if settings.detector.model is None:
            raise DataError("the detector needs detector.model, the URI of MediaPipe's hand_landmarker.task")
        require_mediapipe()
    totals = {"num_rows": 0, "num_without_keypoints": 0, "num_without_partner": 0}
    distances: list[np.ndarray] = []
    for split in settings.splits:
        shards = frame_set.shards(split)
        clips, joints = _read_keypoints(settings, shards, progress)
        partner, distance = _partners(settings, split, clips, joints, progress)
        _write(settings, shards, joints, partner, distance, progress)
        known, paired = ~np.isnan(joints[:, 0]), partner >= 0
        totals["num_rows"] += len(partner)
        totals["num_without_keypoints"] += int((~known).sum())
        totals["num_without_partner"] += int((known & ~paired).sum())
        distances.append(distance[paired])
    every = np.concatenate(distances)
    info = PairsInfo(
        created_at=datetime.now(UTC),
        frame_set_digest=manifest.digest,
        splits=list(settings.splits),
        mean_distance=float(every.mean()) if len(every) else None,
        settings=deciding,
        **totals,
    )
    write_pairs_info(settings.frame_set, settings.name, info)
    return info


def normalised_poses(keypoints: np.ndarray) -> np.ndarray:
    """2D joints (N, 42) without place and size: centred on their mean, root mean square radius 1. NaN rows stay NaN."""
    points = keypoints.reshape(-1, 21, 2)
    points = points - points.mean(1, keepdims=True)
    radius = np.sqrt((points**2).sum(-1).mean(-1))
    return (points / np.maximum(radius, 1e-9)[:, None, None]).reshape(-1, 42)


def principal_components(poses: np.ndarray, num: int) -> np.ndarray:
    """Coordinates (N, num) of poses (N, K) along their directions of largest variance."""
    centred = poses - poses.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(centred @ directions[:, ::-1][:, :num], dtype=np.float32)


def nearest_of_other_videos(
    queries: np.ndarray, of_queries: np.ndarray, points: np.ndarray, of_points: np.ndarray
) -> np.ndarray:
    """For each query (Q, D) the index of the nearest of points (N, D) from another video; -1 where there is none.

    of_queries (Q,), of_points (N,): numbers of the videos.
    """
    best = np.full(len(queries), np.inf, dtype=np.float32)
    found = np.full(len(queries), -1)
    for start in range(0, len(points), _COLUMNS_AT_ONCE):
        part = points[start : start + _COLUMNS_AT_ONCE]
        # Squared distances but for the query's own length, which does not change the order.
        score = (part**2).sum(1) - 2 * queries @ part.T
        score[of_queries[:, None] == of_points[start : start + len(part)]] = np.inf
        column = score.argmin(1)
        value = score[np.arange(len(queries)), column]
        better = value < best
        best[better], found[better] = value[better], start + column[better]
    return found


def video_of(clip_id: str) -> str:
    """The recording behind a clip: two hands of one video are two clips."""
    return clip_id.rsplit("#", 1)[0]


class _KeypointReader:
    """A row group of a shard -> clip ids and 2D joints (N, 42) of its rows; a detector is loaded once a process."""

    def __init__(self, settings: MineSettings) -> None:
        self.settings = settings

    def __call__(self, item: tuple[str, int]) -> tuple[list[str], np.ndarray]:
        path, row_group = item
        detected = self.settings.keypoints == "detector"
        columns = ["clip_id", "jpeg"] if detected else ["clip_id", "joints_3d", "camera", "joints_2d"]
        with opened(join(self.settings.frame_set, path)) as file:
            rows = read_rows(file, columns, [row_group]).to_pylist()
        found = self._detected(rows) if detected else self._labelled(rows)
        return [row["clip_id"] for row in rows], found

    def _labelled(self, rows: list[dict[str, Any]]) -> np.ndarray:
        result = np.full((len(rows), 42), np.nan, dtype=np.float32)
        for i, row in enumerate(rows):
            if row["joints_2d"] is not None:
                result[i] = row["joints_2d"]
            elif row["joints_3d"] is not None and row["camera"] is not None:
                image = np.reshape(row["joints_3d"], (21, 3)) @ np.reshape(row["camera"], (3, 3)).T
                result[i] = (image[:, :2] / image[:, 2:]).ravel()
        return result

    def _detected(self, rows: list[dict[str, Any]]) -> np.ndarray:
        from io import BytesIO

        from PIL import Image

        assert self.settings.detector.model is not None
        detector = shared_detector(self.settings.detector.model, self.settings.detector)
        result = np.full((len(rows), 42), np.nan, dtype=np.float32)
        for i, row in enumerate(rows):
            points = detector.central_hand(Image.open(BytesIO(row["jpeg"])).convert("RGB"))
            if points is not None:
                result[i] = points.ravel()
        return result


def _read_keypoints(settings: MineSettings, shards: list[Shard], progress: Progress) -> tuple[list[str], np.ndarray]:
    """Clip ids and 2D joints (N, 42) of all rows, in the order of the shards."""
    items = [(shard.path, group) for shard in shards for group in range(len(shard.row_groups))]
    clips: list[str] = []
    joints: list[np.ndarray] = []
    progress.start("keypoints", sum(shard.num_rows for shard in shards), "frames")
    lasting = settings.keypoints == "detector"
    for of_clips, found in ray_map(_KeypointReader(settings), items, ordered=True, lasting=lasting):
        clips += of_clips
        joints.append(found)
        progress.advance(len(found))
    progress.finish()
    return clips, np.concatenate(joints)


def _partners(
    settings: MineSettings, split: str, clips: list[str], joints: np.ndarray, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Row number of each row's partner (-1: none), and the distance of their normalised poses."""
    import ray

    known = np.flatnonzero(~np.isnan(joints[:, 0]))
    where = f"{settings.frame_set}, split '{split}'"
    if not len(known):
        hint = (
            "try --keypoints detector" if settings.keypoints == "labels" else "the detector finds no hand in its crops"
        )
        raise DataError(f"{where}: no frame has 2D joints; {hint}")
    videos = np.unique([video_of(clips[row]) for row in known], return_inverse=True)
    if len(videos[0]) < 2:
        raise DataError(f"{where}: all frames are of one video; partners come from another")
    poses = normalised_poses(joints[known])
    points, of_points = principal_components(poses, settings.components), videos[1].reshape(-1)
    shared = ray.put((points, of_points))

    def search(rows: slice) -> tuple[slice, np.ndarray]:
        every, of_every = ray.get(shared)
        return rows, nearest_of_other_videos(every[rows], of_every[rows], every, of_every)

    progress.start("neighbours", len(known), "frames")
    queries = [slice(start, start + _QUERIES_AT_ONCE) for start in range(0, len(known), _QUERIES_AT_ONCE)]
    found = np.full(len(known), -1)
    for rows, nearest in ray_map(search, queries):
        found[rows] = nearest
        progress.advance(len(nearest))
    progress.finish()
    partner = np.full(len(clips), -1)
    distance = np.full(len(clips), np.nan, dtype=np.float32)
    paired = found >= 0
    partner[known[paired]] = known[found[paired]]
    distance[known[paired]] = np.sqrt(((poses[paired] - poses[found[paired]]) ** 2).mean(1))
    return partner, distance


def _write(
    settings: MineSettings,
    shards: list[Shard],
    joints: np.ndarray,
    partner: np.ndarray,
    distance: np.ndarray,
    progress: Progress,
) -> None:
    """Bring every partner's JPEG to the shard of the row that wants it: each shard is read once and written once.

    Tasks of Ray's own instead of ray_map's: each has a result for every writer, which goes there without passing the driver.
    """
    import ray

    ends = np.cumsum([shard.num_rows for shard in shards])
    starts = ends - [shard.num_rows for shard in shards]
    num_writers = min(len(shards), _MAX_WRITERS)
    shard_of = np.searchsorted(ends, np.arange(len(partner)), side="right")
    mined = ray.put((joints, partner, distance))

    @ray.remote(num_cpus=1, num_returns=num_writers)
    def take(number: int) -> Any:
        """What one shard holds for each writer: partners, with the row numbers of those who want them."""
        all_partners = ray.get(mined)[1]
        wanted = np.flatnonzero((all_partners >= starts[number]) & (all_partners < ends[number]))
        with opened(join(settings.frame_set, shards[number].path)) as file:
            table = read_rows(file, ["frame_id", "clip_id", "timestamp_s", "jpeg"])
        pieces = []
        for writer in range(num_writers):
            rows = wanted[shard_of[wanted] % num_writers == writer]
            pieces.append((rows, table.take(all_partners[rows] - starts[number])))
        return pieces if num_writers > 1 else pieces[0]

    @ray.remote(num_cpus=1)
    def write(writer: int, *pieces: tuple[np.ndarray, pa.Table]) -> int:
        all_joints, all_partners, distances = ray.get(mined)
        wanting = np.concatenate([rows for rows, _ in pieces])
        partners = pa.concat_tables([table for _, table in pieces])
        place = {int(row): position for position, row in enumerate(wanting)}
        for number in range(writer, len(shards), num_writers):
            rows = np.arange(starts[number], ends[number])
            with opened(join(settings.frame_set, shards[number].path)) as file:
                own = read_rows(file, ["frame_id", "clip_id", "timestamp_s"])
            index = [place.get(int(row)) for row in rows]
            table = _pairs_table(
                own,
                partners.take(pa.array(index, pa.int64())),
                all_joints[rows],
                all_joints,
                all_partners[rows],
                distances[rows],
            )
            write_bytes(
                pairs_shard(settings.frame_set, settings.name, shards[number].path), _parquet(table, shards[number])
            )
        return sum(shards[number].num_rows for number in range(writer, len(shards), num_writers))

    progress.start("pairs", len(partner), "frames")
    taken = [take.remote(number) for number in range(len(shards))]
    columns = zip(*taken, strict=True) if num_writers > 1 else [taken]
    waiting = [write.remote(writer, *pieces) for writer, pieces in enumerate(columns)]
    while waiting:
        done, waiting = ray.wait(waiting)
        progress.advance(sum(ray.get(done)))
    progress.finish()


def _pairs_table(
    own: pa.Table,
    partners: pa.Table,
    keypoints: np.ndarray,
    all_keypoints: np.ndarray,
    partner: np.ndarray,
    distance: np.ndarray,
) -> pa.Table:
    """A shard's rows of SCHEMA_OF_PAIRS; `partners` has null rows where there is none."""
    alone = pa.array(partner < 0)

    def either(name: str) -> pa.ChunkedArray:
        return pa.compute.if_else(alone, own[name].combine_chunks(), partners[name].combine_chunks())

    def lists(values: np.ndarray) -> pa.Array:
        return pa.array([None if np.isnan(row[0]) else row for row in values], SCHEMA_OF_PAIRS.field("keypoints").type)

    of_partner = np.where((partner < 0)[:, None], keypoints, all_keypoints[partner])
    return pa.table(
        {
            "frame_id": own["frame_id"],
            "keypoints": lists(keypoints),
            "pair_frame_id": either("frame_id"),
            "pair_clip_id": either("clip_id"),
            "pair_timestamp_s": either("timestamp_s"),
            "pair_distance": pa.array(distance, pa.float32(), from_pandas=True),
            "pair_keypoints": lists(of_partner),
            "pair_jpeg": partners["jpeg"],
        },
        schema=SCHEMA_OF_PAIRS,
    )


def _parquet(table: pa.Table, shard: Shard) -> bytes:
    """With the row groups of the shard."""
    sink = pa.BufferOutputStream()
    compression = {name: "NONE" if name == "pair_jpeg" else "ZSTD" for name in table.column_names}
    with pq.ParquetWriter(sink, table.schema, compression=compression) as writer:
        start = 0
        for rows in shard.row_groups:
            writer.write_table(table.slice(start, rows), row_group_size=rows)
            start += rows
    return sink.getvalue().to_pybytes()
