"""A frame set to measure with: crops of 160 px with the detail, and so the JPEG size, of photographed hands."""

import io
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.frames.manifest import IngestRecord, Manifest, Shard, total_digest, write_manifest
from pipeline.frames.schema import digest, digest_to_hex, rows_to_table
from pipeline.storage import join, resolve

_DIFFERENT = 256  # JPEGs; rows repeat them
_GROUP = 4


def write_frames(uri: str, num_rows: int, image_size: int = 160, rows_per_shard: int = 8192) -> Manifest:
    """Write a frame set of one split, train, laid out as ingest lays one out."""
    rng = np.random.default_rng(0)
    jpegs = different_jpegs(image_size, rng)
    shards = []
    for first in range(0, num_rows, rows_per_shard):
        table = rows_to_table(
            _row(number, jpegs[number % _DIFFERENT], rng)
            for number in range(first, min(num_rows, first + rows_per_shard))
        )
        path = f"shards/bench-train-{first // rows_per_shard:05d}.parquet"
        filesystem, target = resolve(join(uri, path))
        filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        pq.write_table(table, target, filesystem=filesystem, row_group_size=256)
        shards.append(
            Shard(
                path=path,
                source="bench",
                split="train",
                num_rows=len(table),
                num_bytes=filesystem.get_file_info(target).size,
                row_groups=[min(256, len(table) - start) for start in range(0, len(table), 256)],
                digest=digest_to_hex(digest(table)),
            )
        )
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(),
        image_size=image_size,
        group_size=_GROUP,
        num_rows=num_rows,
        num_clips=-(-num_rows // _GROUP),
        counts={"bench": {"train": num_rows}},
        hands={"right": num_rows},
        rejects={},
        reject_examples={},
        settings={"bench": IngestRecord(settings={}, listing="", num_clips=-(-num_rows // _GROUP))},
        digest=total_digest(shards),
        shards=shards,
    )
    write_manifest(uri, manifest)
    return manifest


def different_jpegs(image_size: int, rng: np.random.Generator | None = None) -> list[bytes]:
    """The pictures of that set."""
    rng = rng or np.random.default_rng(0)
    return [_jpeg(image_size, rng) for _ in range(_DIFFERENT)]


def _row(number: int, jpeg: bytes, rng: np.random.Generator) -> dict[str, object]:
    clip, index = divmod(number, _GROUP)
    clip_id = f"bench/{clip:07d}"
    return {
        "frame_id": f"{clip_id}/{index:06d}",
        "clip_id": clip_id,
        "frame_index": index,
        "timestamp_s": index / 10,
        "source": "bench",
        "hand": "right",
        "mirrored": False,
        "jpeg": jpeg,
        "crop": [1, 0, 0, 0, 1, 0],
        "joints_3d": rng.normal(size=63),
        "camera": rng.normal(size=9),
        "split": "train",
        "confidence": None,
    }


def _jpeg(size: int, rng: np.random.Generator) -> bytes:
    """Noise whose octaves fall off as those of photographs do."""
    image = np.zeros((size, size, 3))
    for side in (3, 6, 12, 24, 48, 96):
        octave = rng.normal(scale=90 / side**0.75, size=(side, side, 1)) + rng.normal(
            scale=30 / side**0.75, size=(side, side, 3)
        )
        channels = [
            np.asarray(
                Image.fromarray(octave[..., c].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
            )
            for c in range(3)
        ]
        image += np.stack(channels, axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
