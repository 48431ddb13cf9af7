"""Where a model comes from: its own training, the encoder that it started from, and so on, as far as the files tell."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import EquihandError
from pipeline.frames.listing import list_inputs
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.schema import add_digests, digest_to_hex
from pipeline.models.shipped import model_uri
from pipeline.models.weights import read_meta
from pipeline.storage import join, preflight, read_json

_LONGEST = 8


@dataclass(frozen=True)
class SourceRecord:
    """One source of a frame set."""

    name: str
    uri: str
    counts: dict[str, int]
    """Rows by split."""
    license: str | None
    """As its label files state it; None where they do not, or could not be read."""


@dataclass(frozen=True)
class StageRecord:
    """One training: the newest comes first in a lineage."""

    uri: str
    kind: str
    """"pose", "pretrain", "peclr-released", "weights file" or "unknown"."""
    meta: dict[str, Any]
    sources: list[SourceRecord] = field(default_factory=list)
    problem: str | None = None
    """What could not be read, for the reader of the card."""

    @property
    def settings(self) -> dict[str, Any]:
        """The training's settings; empty for files that hold none."""
        return self.meta.get("settings", {})


def trace(uri: str) -> list[StageRecord]:
    """The trainings behind a model, newest first. What cannot be reached is noted, never left out silently."""
    stages: list[StageRecord] = []
    following: str | None = uri
    while following is not None and len(stages) < _LONGEST:
        stages.append(_stage(following))
        following = stages[-1].settings.get("init")
    return stages


def _stage(uri: str) -> StageRecord:
    try:
        preflight(model_uri(uri))  # answers within seconds also where the storage does not
        meta = read_meta(uri)
    except EquihandError as error:
        return StageRecord(uri, "unknown", {}, problem=f"not reachable when this was written: {error}")
    kind = meta.get("format") or meta.get("kind") or "weights file"
    frame_set = meta.get("settings", {}).get("frame_set")
    if frame_set is None:
        return StageRecord(uri, kind, meta)
    uris = [frame_set] if isinstance(frame_set, str) else [each["uri"] for each in frame_set]
    try:
        preflight(*uris)
        manifests = [read_manifest(each) for each in uris]
    except EquihandError as error:
        return StageRecord(uri, kind, meta, problem=f"frame set not reachable when this was written: {error}")
    # The digest of several sets is that of all their rows (see frames/mixing.py).
    digest = digest_to_hex(add_digests(int(manifest.digest, 16) for manifest in manifests))
    changed = digest != meta.get("frame_set_digest")
    problem = (
        "the frame set has changed since this training; its sources are listed as they are now" if changed else None
    )
    return StageRecord(uri, kind, meta, [source for each in manifests for source in _sources(each)], problem)


def _sources(manifest: Manifest) -> list[SourceRecord]:
    records = []
    for name, counts in manifest.counts.items():
        source = manifest.settings[name].settings.get("source", {}) if name in manifest.settings else {}
        uri = str(source.get("uri", ""))
        stated = _stated_license(uri) if source.get("kind") == "labelled_video" else None
        records.append(SourceRecord(name, uri, counts, stated))
    return records


def _stated_license(uri: str) -> str | None:
    """The licence in the first label file of a folder of labelled videos."""
    try:
        labels = sorted(list_inputs(uri, (".labels.json",)).uris())
        value = read_json(labels[0]).get("license") if labels else None
    except EquihandError:
        return None
    return str(value) if value else None


def run_result(uri: str) -> dict[str, Any]:
    """result.json of a run folder; empty where the URI is none."""
    try:
        return dict(read_json(join(uri, "result.json")))
    except EquihandError:
        return {}
