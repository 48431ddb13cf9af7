"""Look at a frame set: measure it, check it, and write its data card (card.html and card.json)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline import views as random_views
from pipeline.config import Settings, Uri
from pipeline.drawing import figures
from pipeline.drawing.page import Picture
from pipeline.errors import DataError
from pipeline.frames.card import CardData, build_card, card_json
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.inspect_columns import Measures, PairwiseSum, measure_shard
from pipeline.frames.inspect_sample import Sample, draw_sample
from pipeline.frames.inspect_shards import MIN_SHARDS_FOR_RAY, map_shards
from pipeline.frames.manifest import Manifest, Shard
from pipeline.frames.verify import Verification, verify
from pipeline.progress import SILENT, Progress
from pipeline.storage import join, preflight, write_bytes, write_json
from pipeline.views import CROP_MARGIN, ViewSettings

_NUM_DRAWN = 24
_NUM_PAIRS = 24


class InspectSettings(Settings):
    """What is looked at, and how closely."""

    frame_set: Uri
    """URI of the frame set."""
    output: Uri | None = None
    """URI of a folder for card.html and card.json (and verify.json). none writes no card, which makes sense with
    `verify` only."""
    verify: bool = False
    """Whether to check every shard against the manifest first. A damaged set gets no card."""
    decode: float = Field(default=1.0, ge=0, le=1)
    """Share of the JPEGs that `verify` decodes. The digest covers their bytes in any case."""
    sample: int = Field(default=2000, ge=1)
    """Number of crops that are decoded for sharpness, brightness and pictures. Everything else is measured on every
    row."""
    tiles: int = Field(default=48, ge=1, le=480)
    """Largest number of crops on the contact sheet of each split."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sample and of the views on the card."""
    views: ViewSettings = ViewSettings()
    """The random views of which pairs are shown."""
    use_ray: bool | None = None
    """Whether to read shards with Ray Data instead of in this process. none does so for sets of 64 shards and more."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.output is None and not self.verify:
            raise ValueError("setting 'output' is required (or verify, to check the set only)")
        return self


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    manifest: Manifest
    verification: Verification | None
    card: dict[str, Any] | None
    """What card.json holds; None where no output was asked for."""
    page: str = ""
    """What card.html holds."""


def wants_ray(settings: InspectSettings, manifest: Manifest) -> bool:
    """Whether the set is to be read with Ray Data."""
    return len(manifest.shards) >= MIN_SHARDS_FOR_RAY if settings.use_ray is None else settings.use_ray


def inspect(settings: InspectSettings, progress: Progress = SILENT) -> Inspection:
    """Inspect a frame set. Needs a running Ray where `wants_ray`.

    Raises DataError with a line for each thing that is wrong where verify finds any (verify.json is written before), where
    a shard cannot be read, and where no sampled crop decodes.
    """
    preflight(settings.frame_set)
    if settings.output:
        preflight(settings.output, write=True)
    frame_set = FrameSet.open(settings.frame_set)
    use_ray = wants_ray(settings, frame_set.manifest)
    verification = None
    if settings.verify:
        verification = verify(frame_set, settings.decode, use_ray, progress)
        if settings.output:
            write_json(join(settings.output, "verify.json"), verification.to_json())
        if not verification.is_sound:
            # What lies beside the shards may be the missing one.
            lines = [*verification.lines(), *verification.warnings, f"{settings.frame_set}: {verification.summary()}"]
            raise DataError(*lines)
    if settings.output is None:
        return Inspection(frame_set.manifest, verification, None)
    data = gather(settings, frame_set, verification, use_ray, progress)
    card, page = card_json(data), build_card(data)
    write_bytes(join(settings.output, "card.html"), page.encode())
    write_json(join(settings.output, "card.json"), card)  # last: it says that the page is there
    return Inspection(frame_set.manifest, verification, card, page)


def gather(
    settings: InspectSettings,
    frame_set: FrameSet,
    verification: Verification | None,
    use_ray: bool,
    progress: Progress = SILENT,
) -> CardData:
    """All that the card says."""
    manifest = frame_set.manifest
    margins = {source: box_margin(manifest, source) for source in manifest.counts}
    sums = {source: PairwiseSum() for source in manifest.counts}

    progress.start("read columns", manifest.num_rows, "rows")
    work = partial(_measure, frame_set.uri, manifest.image_size, manifest.group_size, margins)
    for shard, measured in map_shards(work, manifest.shards, use_ray):
        sums[shard.source].add(measured)
        progress.advance(shard.num_rows)
    progress.finish()

    measures = {source: each.total() for source, each in sums.items()}

    progress.start("decode a sample", None, "crops")
    sample = draw_sample(frame_set, settings.sample, settings.seed, margins)
    progress.advance(sample.rows.num_rows)
    progress.finish()
    if not sample.rows.num_rows:
        raise DataError(
            f"{settings.frame_set}: none of {len(sample.problems)} sampled crops decodes, e.g. {sample.problems[0]}"
        )
    return CardData(
        frame_set=frame_set,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        box_margins=margins,
        measures=measures,
        sample=sample,
        seed=settings.seed,
        verification=verification,
        sheets=[
            (split, *sheet)
            for split in manifest.splits()
            if (sheet := _contact_sheet(sample, split, manifest.image_size, settings.tiles)) is not None
        ],
        labelled=_labelled_sheet(sample, manifest.image_size),
        view_pairs=_view_pairs(sample, manifest.image_size, settings.views, settings.seed),
        view_settings=settings.views,
    )


def box_margin(manifest: Manifest, source: str) -> float:
    """Side of a source's crops in hand boxes."""
    return float(manifest.settings[source].settings.get("box_margin", CROP_MARGIN))


def _measure(uri: str, image_size: int, group_size: int, margins: dict[str, float], shard: Shard) -> Measures:
    return measure_shard(uri, shard, image_size, group_size, margins[shard.source])


def _contact_sheet(sample: Sample, split: str, image_size: int, tiles: int) -> tuple[int, Picture] | None:
    """How many, and random crops of a split; None where none of them was drawn."""
    rows = _rows_where(sample, [value == split for value in sample.rows["split"].to_pylist()])[:tiles]
    if not rows:
        return None
    png = figures.contact_sheet(sample.frames(rows, image_size), max_frames=tiles)
    return len(rows), Picture(png=png, alt=f"{len(rows)} random crops of split {split}")


def _labelled_sheet(sample: Sample, image_size: int) -> Picture | None:
    """Labelled joints drawn on random crops; None where no drawn row has labels."""
    labels = [sample.rows[name].to_pylist() for name in ("joints_3d", "camera", "joints_2d")]
    pixels = [_pixels(*of_row) for of_row in zip(*labels, strict=True)]
    rows = _rows_where(sample, [points is not None for points in pixels])[:_NUM_DRAWN]
    if not rows:
        return None
    frames = sample.frames(rows, image_size)
    cases = [figures.Case(image=frame, predicted=pixels[row]) for frame, row in zip(frames, rows, strict=True)]
    return Picture(
        png=figures.overlays(cases, columns=8, tile=160),
        alt="Labelled joints drawn on random crops",
        caption=f"Labels of {len(rows)} random labelled rows, drawn on their crops",
    )


def _view_pairs(sample: Sample, image_size: int, settings: ViewSettings, seed: int) -> Picture:
    """Pairs of random views of random crops, as training would see them."""
    import torch

    rows = list(range(min(_NUM_PAIRS, sample.rows.num_rows)))
    frames = torch.from_numpy(np.ascontiguousarray(sample.frames(rows, image_size)))
    generator = random_views.generator_for(seed)
    drawn = [random_views.sample_views(settings, len(rows), generator) for _ in range(2)]
    both = random_views.apply_views(frames, random_views.cat_views(*drawn), settings)
    first, second = random_views.denormalise(both).split(len(rows))
    return Picture(
        png=figures.view_pairs(first, second, _NUM_PAIRS),
        alt="Pairs of random views of random crops",
        caption="Two random views of each crop, side by side, as pretraining sees them",
    )


def _rows_where(sample: Sample, chosen: Sequence[bool]) -> list[int]:
    return np.flatnonzero(np.asarray(chosen, dtype=bool)).tolist()


def _pixels(
    joints_3d: list[float] | None, camera: list[float] | None, joints_2d: list[float] | None
) -> np.ndarray | None:
    """(21, 2) labelled joints of a row, pixels of its crop; None where it has none."""
    if joints_2d is not None:
        return np.reshape(joints_2d, (21, 2))
    if joints_3d is None or camera is None:
        return None
    points = np.reshape(joints_3d, (21, 3)) @ np.reshape(camera, (3, 3)).T
    return points[:, :2] / points[:, 2:]
