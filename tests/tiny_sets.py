"""Small frame sets for tests, written directly (no ingest): each frame shows its own number as colours."""

import io
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.frames.manifest import IngestRecord, Manifest, Shard, total_digest, write_manifest
from pipeline.frames.schema import digest, digest_to_hex, rows_to_table
from pipeline.storage import join, resolve


def write_tiny_set(
    uri: str,
    *,
    splits: dict[str, int],
    image_size: int = 32,
    group_size: int = 4,
    rows_per_shard: int = 64,
    row_group_size: int = 16,
    labelled: bool = True,
    source: str = "tiny",
    seed: int = 0,
    broken: frozenset[int] = frozenset(),
    wobble: float = 0.0,
    in_2d: Callable[[int], bool] = lambda number: False,
) -> Manifest:
    """Write a frame set with `splits` = {split: frames} in clips of `group_size` frames.

    Labelled frames hold a plausible hand that moves with the picture's bright square, so that a model can learn it.
    broken: numbers of rows (over the whole set) whose JPEG is cut off. wobble: standard deviation by which each frame's
    joints differ from that hand, metres. in_2d: of which rows (by number) only the joints in the image are known.
    """
    rng = np.random.default_rng(seed)
    hand = rng.normal(scale=0.03, size=(21, 3))
    hand[0], hand[9], hand[10] = (0, 0, 0), (0, -0.09, 0), (0, -0.12, 0.01)
    shards, number = [], 0
    for split, count in splits.items():
        rows = []
        for index in range(count):
            clip, frame_index = divmod(index, group_size)
            clip_id = f"{source}/{split}-{clip:05d}"
            centre = rng.uniform(-0.05, 0.05, size=2)
            camera = np.array([[image_size, 0, image_size / 2], [0, image_size, image_size / 2], [0, 0, 1]])
            joints = hand + np.array([*centre, 0.5])
            if wobble:
                joints[1:] += rng.normal(scale=wobble, size=(20, 3))
            pixels = joints @ camera.T / joints[:, 2:]
            jpeg = _jpeg(image_size, number, pixels[0], rng)
            flat = labelled and in_2d(number)
            rows.append(
                {
                    "frame_id": f"{clip_id}/{frame_index:06d}",
                    "clip_id": clip_id,
                    "frame_index": frame_index,
                    "timestamp_s": frame_index / 10,
                    "source": source,
                    "hand": "right",
                    "mirrored": False,
                    "jpeg": jpeg[: len(jpeg) // 8] if number in broken else jpeg,
                    "crop": [1, 0, 0, 0, 1, 0],
                    "joints_3d": joints if labelled and not flat else None,
                    "camera": camera if labelled and not flat else None,
                    "joints_2d": pixels[:, :2] if flat else None,
                    "split": split,
                    "confidence": None,
                }
            )
            number += 1
        for first in range(0, count, rows_per_shard):
            table = rows_to_table(rows[first : first + rows_per_shard])
            path = f"shards/{source}-{split}-{first // rows_per_shard:05d}.parquet"
            filesystem, target = resolve(join(uri, path))
            filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            pq.write_table(table, target, filesystem=filesystem, row_group_size=row_group_size)
            groups = [min(row_group_size, len(table) - start) for start in range(0, len(table), row_group_size)]
            shards.append(
                Shard(
                    path=path,
                    source=source,
                    split=split,
                    num_rows=len(table),
                    num_bytes=filesystem.get_file_info(target).size,
                    row_groups=groups,
                    digest=digest_to_hex(digest(table)),
                )
            )
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(),
        image_size=image_size,
        group_size=group_size,
        num_rows=sum(splits.values()),
        num_clips=sum(-(-count // group_size) for count in splits.values()),
        counts={source: dict(splits)},
        hands={"right": sum(splits.values())},
        rejects={},
        reject_examples={},
        settings={source: IngestRecord(settings={}, listing="", num_clips=0)},
        digest=total_digest(shards),
        shards=shards,
    )
    write_manifest(uri, manifest)
    return manifest


def _jpeg(size: int, number: int, point: np.ndarray, rng: np.random.Generator) -> bytes:
    """A smooth random background with a bright square at `point` (pixels)."""
    low = rng.integers(0, 160, size=(4, 4, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(low).resize((size, size), Image.Resampling.BICUBIC))
    x, y = (int(np.clip(value, 2, size - 3)) for value in point[:2])
    image[y - 2 : y + 3, x - 2 : x + 3] = (255, 230, 200)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
