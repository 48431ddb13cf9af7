"""What a report says, as plain data: saved as JSON beside the report, it can be rendered again."""

from typing import Any, Self

from pipeline.drawing.page import PageData, Picture
from pipeline.frames.frame_set import FrameSet
from pipeline.reports.verdict import Verdict


class Stage(PageData):
    """One stage of the run."""

    name: str
    seconds: float
    skipped: bool = False
    """Finished in an earlier run; `seconds` is what it took then."""


class Environment(PageData):
    """Where the run took place."""

    num_cpus: int | None = None
    memory_gb: float | None = None
    accelerator: str = ""
    """Name of the accelerator; empty where there was none."""
    platform: str = ""
    versions: dict[str, str] = {}
    """Library -> version."""


class FrameSetSection(PageData):
    """The counts of a frame set, as in its manifest."""

    name: str
    """What it is for: "Pretraining", "Labelled hands", ..."""
    uri: str = ""
    digest: str = ""
    image_size: int | None = None
    """Side of the crops, pixels."""
    num_rows: int
    num_clips: int | None = None
    counts: dict[str, dict[str, int]] = {}
    """Source -> split -> frames."""
    hands: dict[str, int] = {}
    """Hand -> frames."""
    rejects: dict[str, dict[str, int]] = {}
    """Source -> reason -> how many were left out."""
    reject_examples: dict[str, list[str]] = {}
    """Reason -> names of some that were left out."""
    contact_sheet: Picture | None = None

    @classmethod
    def of(cls, frame_set: FrameSet, name: str, contact_sheet: Picture | None = None) -> Self:
        """The section on a frame set."""
        manifest = frame_set.manifest
        shared = {
            key: getattr(manifest, key) for key in sorted(cls.model_fields.keys() & type(manifest).model_fields.keys())
        }
        return cls(name=name, uri=frame_set.uri, contact_sheet=contact_sheet, **shared)


class ViewsSection(PageData):
    """The two views of each frame."""

    grid: Picture | None = None
    settings: dict[str, Any] = {}
    """Flat view settings worth showing."""


class Pretraining(PageData):
    """The pretraining run."""

    run_id: str = ""
    history: dict[str, list[tuple[float, float]]] = {}
    """Metric -> (optimiser step, value) in order."""
    facts: dict[str, Any] = {}
    """Label -> value of what is worth saying in a line: encoder, objective, epochs, batch, workers."""
    neighbours: Picture | None = None


class Trial(PageData):
    """One trial of a search."""

    name: str
    config: dict[str, Any]
    """Flat settings that the search varied."""
    value: float | None = None
    """The metric at the trial's end; None where it never reported."""
    state: str = "completed"
    """"completed", "stopped" (early, by the scheduler) or "failed"."""
    rungs: list[tuple[float, float]] = []
    """(epoch, metric) at each report."""
    seconds: float | None = None
    seed_scores: list[float] = []
    """The metric of each of its seeds, where it was trained with several."""
    objectives: dict[str, float] = {}
    """What else it is judged by."""
    parent: str | None = None
    """Name of the trial from whose checkpoint it went on."""


class Search(PageData):
    """A search over settings."""

    metric: str
    """Name of the metric that the search improves."""
    unit: str = ""
    lower_is_better: bool = True
    trials: list[Trial]
    best: str = ""
    """Name of the best trial."""
    constant: float | None = None
    """What always answering one fixed hand reaches by the same metric; None where it is not known."""


class Curve(PageData):
    """Share of joints within an error threshold (PCK)."""

    thresholds_mm: list[float]
    shares: list[float]
    """0 to 1."""


class ModelResult(PageData):
    """What one model reached on the test frames."""

    name: str
    metrics: dict[str, float | None]
    """Metric -> value; names as in `metric_names.METRICS`."""
    joint_errors_mm: list[float] | None = None
    """Mean error of each joint after Procrustes alignment: 21, FreiHAND order."""
    pck: Curve | None = None
    """Before alignment."""
    pa_pck: Curve | None = None
    """After Procrustes alignment."""


class Overlays(PageData):
    """Predicted and true hands of some frames."""

    title: str
    """"Good", "Median", "Worst"."""
    picture: Picture


class Results(PageData):
    """The comparison of the models."""

    models: list[ModelResult]
    yardsticks: list[ModelResult] = []
    """What answers without looking reach on the same frames: constant poses, training poses taken blindly."""
    baseline: str = ""
    """Name of the model to which the others' differences are shown."""
    test_set: str = ""
    """Which frames: set, split, number."""
    overlays: list[Overlays] = []
    probes: dict[str, dict[str, float]] = {}
    """Model or encoder -> what its frozen features know; names as in `metric_names.PROBE_METRICS`."""


class ReportData(PageData):
    """Everything that a report shows; sections that are None or empty are left out."""

    title: str = "Equihand report"
    subtitle: str = ""
    created_at: str = ""
    """UTC, ISO 8601."""
    run_ids: dict[str, str] = {}
    """Kind of run ("pretrain", "search", ...) -> run id."""
    verdict: Verdict | None = None
    environment: Environment | None = None
    stages: list[Stage] = []
    frame_sets: list[FrameSetSection] = []
    views: ViewsSection | None = None
    pretraining: Pretraining | None = None
    search: Search | None = None
    results: Results | None = None
    settings: dict[str, str] = {}
    """Title -> YAML of the resolved settings."""

    def to_json(self) -> bytes:
        """All of it as JSON."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The inverse of `to_json`."""
        return cls.model_validate_json(data)
