"""The data card of a frame set: one self-contained HTML page, and its numbers as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from pipeline.drawing.charts import finger_dots, legend, line_chart, marker_legend
from pipeline.drawing.page import Picture, page_environment
from pipeline.drawing.svg import linear_axis, number
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.inspect_columns import Measures
from pipeline.frames.inspect_distribution import Distribution, merged
from pipeline.frames.inspect_sample import Sample
from pipeline.frames.manifest import Manifest, VideoGroup
from pipeline.frames.rejects import REASONS, choices
from pipeline.frames.schema import SPLITS
from pipeline.frames.verify import Verification
from pipeline.hands import BONES, FINGER_JOINTS, JOINTS, MIDDLE_MCP, MIDDLE_PIP
from pipeline.views import ViewSettings

_NUM_BINS = 32
_MAX_LINES = 6  # sources with a line of their own in a histogram; more are shown as one
_NARROW = 1.03  # distributions are exact to 1 %, so a narrower chart would show their classes
_SEGMENTS = ("palm", "first", "middle", "tip")
"""Bones of a finger from the wrist outwards."""
_SHOWN_VIEWS = ("size", "rotation_deg", "translation", "scale", "brightness", "saturation", "hue")


@dataclass(frozen=True)
class CardData:
    """All that a card says."""

    frame_set: FrameSet
    created_at: str
    """UTC, ISO 8601."""
    box_margins: dict[str, float]
    """Side of the crops in hand boxes, by source."""
    measures: dict[str, Measures]
    """Of every row, by source."""
    sample: Sample
    seed: int
    """Of the sample and the views."""
    verification: Verification | None
    """None where the set was not checked."""
    sheets: list[tuple[str, int, Picture]]
    """(split, number of crops, contact sheet)."""
    labelled: Picture | None
    view_pairs: Picture
    view_settings: ViewSettings


def card_json(data: CardData) -> dict[str, Any]:
    """The card's numbers as plain values; distributions by their quantiles (exact to 1 %)."""
    manifest, sample = data.frame_set.manifest, data.sample
    sources = np.array(sample.rows["source"].to_pylist(), dtype=object)
    return {
        "frame_set": data.frame_set.uri,
        "created_at": data.created_at,
        "digest": manifest.digest,
        "num_rows": manifest.num_rows,
        "num_clips": manifest.num_clips,
        "num_shards": len(manifest.shards),
        "image_size": manifest.image_size,
        "group_size": manifest.group_size,
        "counts": manifest.counts,
        "hands": manifest.hands,
        "rejects": manifest.rejects,
        "reject_examples": manifest.reject_examples,
        "notes": manifest.notes,
        "videos": {
            source: [group.model_dump(mode="json") for group in groups] for source, groups in manifest.videos.items()
        },
        "settings": {source: record.model_dump(mode="json") for source, record in manifest.settings.items()},
        "verification": data.verification.to_json() if data.verification else None,
        "sample": {
            "seed": data.seed,
            "num_rows": sample.rows.num_rows,
            "num_row_groups": sample.num_row_groups,
            "problems": sample.problems,
        },
        "sources": {
            source: {
                **_source_json(measured),
                "box_margin": data.box_margins[source],
                "sharpness": Distribution(sample.sharpness[sources == source]).summary(),
                "brightness": Distribution(sample.brightness[sources == source]).summary(),
            }
            for source, measured in data.measures.items()
        },
    }


def _source_json(measured: Measures) -> dict[str, Any]:
    rows, labelled = measured.num_rows, measured.num_labelled
    return {
        "num_rows": rows,
        "num_clips": len(measured.clips.hashes),
        "bytes_per_frame": measured.num_bytes / rows,
        "jpeg_bytes_per_frame": measured.jpeg_bytes / rows,
        "left_fraction": measured.num_left / rows,
        "enlarged_fraction": measured.num_enlarged / rows,
        "full_group_fraction": measured.num_full_groups / rows,
        "labelled_fraction": labelled / rows,
        "labelled_2d_only_fraction": measured.num_labelled_2d / rows,
        "all_joints_inside_fraction": measured.num_all_joints_inside / labelled if labelled else None,
        "joints_inside_fraction": {
            name: inside / known
            for name, inside, known in zip(
                JOINTS, measured.joints_inside.tolist(), measured.joints_known.tolist(), strict=True
            )
            if known
        },
        "clip_frames": _clip_frames(measured).summary(),
        "clip_seconds": _clip_seconds(measured).summary(),
        "hand_px": measured.hand_px.summary(),
        "group_gap_s": measured.group_gap_s.summary(),
        "group_gap_frames": measured.group_gap_frames.summary(),
        "confidence": measured.confidence.summary(),
        "depth_m": measured.depth_m.summary(),
        "focal_px": measured.focal_px.summary(),
        "bones_mm": {
            f"{JOINTS[parent]}-{JOINTS[child]}": bone.summary()
            for (parent, child), bone in zip(BONES, measured.bones_mm, strict=True)
            if bone.num
        },
    }


def build_card(data: CardData) -> str:
    """The card as an HTML page. Names and paths in the data are shown as text, whatever they contain."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(percent=_percent, size_text=_size_text)
    uri, manifest = data.frame_set.uri, data.frame_set.manifest
    every = list(data.measures.values())
    return environment.get_template("card.html.jinja").render(
        data=data,
        manifest=manifest,
        name=uri.rstrip("/").rpartition("/")[2] or uri,
        num_rows=sum(m.num_rows for m in every),
        num_bytes=sum(m.num_bytes for m in every),
        num_left=sum(m.num_left for m in every),
        num_labelled=sum(m.num_labelled for m in every),
        splits=[split for split in SPLITS if manifest.rows_in(split)],
        sources=_source_rows(data),
        histograms=_histograms(data),
        labels=_labels(merged_measures(every)) if any(m.num_labelled for m in every) else None,
        rejects=_reject_rows(manifest),
        videos=[(source, group, _clock_notes(group)) for source, groups in manifest.videos.items() for group in groups],
        settings={source: _settings_yaml(record.settings) for source, record in manifest.settings.items()},
        shown_views={name: _range(getattr(data.view_settings, name)) for name in _SHOWN_VIEWS},
    )


def merged_measures(parts: Sequence[Measures]) -> Measures:
    """Of all sources together."""
    total = Measures()
    for part in parts:
        total.merge(part)
    return total


@dataclass(frozen=True)
class _Histogram:
    title: str
    unit: str
    chart: Markup
    legend: Markup
    middle: str
    note: str


def _histograms(data: CardData) -> list[_Histogram]:
    measures, sample = data.measures, data.sample
    of_row = np.array(sample.rows["source"].to_pylist(), dtype=object)
    sharpness = {source: Distribution(sample.sharpness[of_row == source]) for source in measures}
    brightness = {source: Distribution(sample.brightness[of_row == source]) for source in measures}
    rows = sum(m.num_rows for m in measures.values())
    enlarged = sum(m.num_enlarged for m in measures.values()) / rows
    whole = sum(m.num_full_groups for m in measures.values()) / rows
    clip_frames = {source: _clip_frames(m) for source, m in measures.items()}
    longest = max(d.high for d in clip_frames.values())
    timed = any(m.group_gap_s.num for m in measures.values())
    size = data.frame_set.manifest.image_size
    drawn = f"Of {number(sample.rows.num_rows)} sampled crops."
    cards = [
        _histogram(
            "Hand size",
            "px of the source",
            {s: m.hand_px for s, m in measures.items()},
            f"Longer side of the hand's box. {_percent(enlarged)} of the hands had fewer pixels than their crop and were enlarged.",
            "frames",
        ),
        _histogram(
            "Sharpness",
            "variance of the Laplacian",
            sharpness,
            f"{drawn} In the hand's box of crops of {size} px; the measure of quality.min_sharpness.",
            "crops",
        ),
        _histogram("Brightness", "mean luminance, 0 to 255", brightness, drawn, "crops"),
        _histogram(
            "Clip length",
            "frames",
            clip_frames,
            f"The longest clip holds {_percent(longest / rows)} of all frames.",
            "clips",
            whole=True,
        ),
        _histogram(
            "Time between group frames" if timed else "Steps between group frames",
            "s" if timed else "frames of the source",
            {s: m.group_gap_s if timed else m.group_gap_frames for s, m in measures.items()},
            f"{_percent(whole)} of the frames are in whole groups of {data.frame_set.manifest.group_size}.",
            "pairs",
            whole=not timed,
        ),
        _histogram(
            "Confidence",
            "0 to 1",
            {s: m.confidence for s, m in measures.items()},
            "Of the detection or annotation, where there is one.",
            "frames",
        ),
    ]
    return [card for card in cards if card is not None]


def _histogram(
    title: str, unit: str, by_source: Mapping[str, Distribution], note: str, what: str, whole: bool = False
) -> _Histogram | None:
    """One outline a source, each as shares of its own total. None where there are no values. whole: whole numbers only."""
    together = merged(list(by_source.values()))
    if not together.num:
        return None
    # Every source keeps its colour, also where another one has no values.
    used = dict(by_source) if len(by_source) <= _MAX_LINES else {f"all {len(by_source)} sources": together}
    low, high = together.low, together.high
    # A long tail would leave nothing of the rest to see; what lies beyond is said.
    tail = together.quantile(0.99)
    cut = high > 2 * tail > 0
    end = tail if cut else high
    if low <= 0.4 * end:
        low = 0.0
    elif end < _NARROW * low:  # as good as one value
        low, end = 0.9 * low, 1.1 * end
    if whole:
        first, last = math.floor(low), math.ceil(end)
        step = max(1, math.ceil((last - first) / _NUM_BINS))
        edges = np.arange(first, last + step + 1, step) - 0.5  # a whole number lies in the middle of its class
        axis = linear_axis([], min(5, len(edges)), low=float(edges[0]), high=float(edges[-1]))
    else:
        axis = linear_axis([low, end], 5)
        edges = np.linspace(axis.low, axis.high, _NUM_BINS + 1)
    series = {}
    for source, distribution in used.items():
        # Values at the chart's ends may be counted a little beyond them.
        shown = np.concatenate([[0.0], edges[1:-1], [edges[-1] if cut else np.inf]])
        shares = 100 * distribution.histogram(shown) / max(1, distribution.num)
        series[source] = _outline(edges, shares) if distribution.num else []
    beyond = sum(d.num - float(d.histogram([0, edges[-1]]).sum()) for d in used.values()) / together.num
    if cut and beyond > 0:
        note += f" {_percent(beyond)} lie beyond the chart, the largest at {number(high)}."
    medians = [_median(d, whole) for d in used.values()]
    return _Histogram(
        title=title,
        unit=unit,
        chart=line_chart(series, title, unit, f"% of {what}", x_axis=axis, y_axis=_share_axis(series)),
        legend=legend(list(used), medians) if len(used) > 1 else Markup(),
        middle="" if len(used) > 1 else medians[0],
        note=note,
    )


def _median(distribution: Distribution, whole: bool) -> str:
    if not distribution.num:
        return "none"
    value = distribution.quantile(0.5)
    return f"median {number(round(value) if whole else value)}"


def _share_axis(series: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    return linear_axis([0.0, *(y for line in series.values() for _, y in line)], 4, low=0.0)


def _outline(edges: np.ndarray, heights: np.ndarray) -> list[tuple[float, float]]:
    """The upper edge of a histogram's bars, down to the axis at both ends."""
    points = [(float(edges[0]), 0.0)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(float(left), float(height)), (float(right), float(height))]
    return [*points, (float(edges[-1]), 0.0)]


@dataclass(frozen=True)
class _SourceRow:
    name: str
    counts: dict[str, int]
    num_clips: int
    clip_length: str
    hand_px: str
    left: str
    labelled: str
    bytes_per_frame: float


def _source_rows(data: CardData) -> list[_SourceRow]:
    return [
        _SourceRow(
            name=source,
            counts=data.frame_set.manifest.counts[source],
            num_clips=len(m.clips.hashes),
            clip_length=_span(_clip_frames(m), whole=True),
            hand_px=_span(m.hand_px),
            left=_percent(m.num_left / m.num_rows),
            labelled=_percent(m.num_labelled / m.num_rows),
            bytes_per_frame=m.num_bytes / m.num_rows,
        )
        for source, m in data.measures.items()
    ]


@dataclass(frozen=True)
class _Labels:
    facts: list[tuple[str, str]]
    bones: Markup
    bone_legend: Markup
    hidden: str
    histograms: list[_Histogram]


def _labels(total: Measures) -> _Labels:
    inside = total.joints_inside / np.maximum(total.joints_known, 1)
    order = np.argsort(inside, kind="stable")[:3]
    hidden = [f"{JOINTS[j].replace('_', ' ')} {_percent(inside[j])}" for j in order if inside[j] < 1]
    reference = total.bones_mm[BONES.index((MIDDLE_MCP, MIDDLE_PIP))]
    charts = [
        _histogram("Depth", "m", {"all": total.depth_m}, "Mean of the hand's joints.", "frames"),
        _histogram(
            "Reference bone", "mm", {"all": reference}, "Middle finger, MCP to PIP: the unit of 2.5D poses.", "frames"
        ),
        _histogram(
            "Focal length", "px of the crop", {"all": total.focal_px}, "Grows as the hand gets smaller.", "frames"
        ),
    ]
    medians: dict[str, dict[str, float]] = {}
    for (_, child), bone in zip(BONES, total.bones_mm, strict=True):
        finger = next(name for name, joints in FINGER_JOINTS.items() if child in joints)
        if bone.num:
            medians.setdefault(finger, {})[_SEGMENTS[FINGER_JOINTS[finger].index(child)]] = bone.quantile(0.5)
    return _Labels(
        facts=[
            ("labelled frames", number(total.num_labelled)),
            ("of them in the image only", number(total.num_labelled_2d)),
            ("with every joint inside the crop", _percent(total.num_all_joints_inside / total.num_labelled)),
            ("joints inside the crop", _percent(float(total.joints_inside.sum() / max(1, total.joints_known.sum())))),
            ("depth, m", _span(total.depth_m)),
            ("focal length, px", _span(total.focal_px)),
        ],
        bones=finger_dots(medians, "Median bone lengths") if medians else Markup(),
        bone_legend=marker_legend([s for s in _SEGMENTS if any(s in row for row in medians.values())]),
        hidden="Least often inside the crop: " + ", ".join(hidden) + "."
        if hidden
        else "Every joint lies inside its crop.",
        histograms=[chart for chart in charts if chart is not None],
    )


def _reject_rows(manifest: Manifest) -> list[tuple[str, str, str, int, str, list[str]]]:
    """(source, reason, what it means, number, kind, examples), the most frequent first."""
    rows = [
        (
            source,
            reason,
            REASONS.get(reason, ""),
            count,
            "choice" if reason in choices(manifest.kind_of(source)) else "damage",
            _own_examples(manifest, source, reason),
        )
        for source, by_reason in manifest.rejects.items()
        for reason, count in by_reason.items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row[3], row[0], row[1]))


def _clock_notes(group: VideoGroup) -> str:
    """What is unusual about the times of some videos, in words."""
    notes = [
        f"{count} {one if count == 1 else many}"
        for count, one, many in (
            (group.num_restarts, "restart of the clock", "restarts of the clock"),
            (group.num_equal, "stamp given twice", "stamps given twice"),
            (group.num_mended, "stamp missing or out of order", "stamps missing or out of order"),
        )
        if count
    ]
    return "; ".join(notes) or "none"


def _own_examples(manifest: Manifest, source: str, reason: str) -> list[str]:
    """Examples are kept by reason for the whole set. Names of clips and their frames begin with their source's; others, such
    as files, may be of any source that left out something for the reason."""
    examples = manifest.reject_examples.get(reason, [])
    own = [name for name in examples if name.startswith(f"{source}/")]
    others = tuple(f"{other}/" for other in manifest.rejects if other != source)
    return own or [name for name in examples if not name.startswith(others)]


def _clip_frames(measured: Measures) -> Distribution:
    return Distribution(measured.clips.num_rows)


def _clip_seconds(measured: Measures) -> Distribution:
    seconds = measured.clips.last_s - measured.clips.first_s
    return Distribution(seconds[np.isfinite(seconds)])


def _span(distribution: Distribution, whole: bool = False) -> str:
    """Such as "48 (12–205)": the median, and where nine tenths of the values lie."""
    if not distribution.num:
        return "–"
    values = [distribution.quantile(share) for share in (0.5, 0.05, 0.95)]
    median, low, high = (number(round(value) if whole else value) for value in values)
    return median if low == high else f"{median} ({low}–{high})"


def _percent(share: float) -> str:
    """Such as "12 %"; what is not nothing is not called 0, and what is not all not 100."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f} %"


def _size_text(num_bytes: float) -> str:
    """Such as "7.9 MB"."""
    power = min(4, int(math.log(max(num_bytes, 1), 1000)))
    return f"{number(num_bytes / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _range(value: Any) -> str:
    return " to ".join(number(v) for v in value) if isinstance(value, tuple) else number(value)


def _settings_yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
