"""What a comparison of runs says, as plain data. Wherever a mapping is by run, a run that is not in it does not have the value."""

from typing import Any

from pipeline.drawing.page import PageData
from pipeline.reports.report_data import Overlays
from pipeline.reports.verdict import Comparison, Outcome, Verdict

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ComparedRun(PageData):
    """One of the runs; of an evaluation of several models, one of these."""

    name: str
    """By which all else names it; the folder's, and as much of its path as tells it from the others."""
    letter: str
    """Short name, for charts and pictures."""
    kind: str
    """"pretrain", "finetune", "search", "evaluate", "study", or "run" where that is not known."""
    uri: str
    seed: int | None = None
    note: str = ""
    """What is missing of it, such as that it has not finished."""


class Curve(PageData):
    """One metric of several runs over their training."""

    metric: str
    kind: str
    """Of the runs."""
    x_label: str
    points: dict[str, list[tuple[float, float]]]
    """By run."""
    constant: float | None = None
    """What one fixed hand reaches, where that is the same for all runs."""


class ModelError(PageData):
    """One error of one model on the frames that all were measured on."""

    value: float
    interval: tuple[float, float] | None = None
    """95 %, from resampling clips; None with too few of them."""
    constant: float | None = None
    """The same error of always answering one fixed hand: the best for the labels that the model was trained on."""
    skill: float | None = None
    """Share of the constant's error that the model removes."""
    skill_interval: tuple[float, float] | None = None
    against_first: Comparison | None = None
    """The model against the first one, paired frame by frame; None for the first."""
    p_adjusted: float | None = None
    """p of that after Holm's correction for all models that are compared with the first by this error."""


class Spread(PageData):
    """One number over several seeds."""

    mean: float
    sd: float
    """Standard deviation over the seeds (n - 1)."""
    lowest: float
    highest: float


class SeedGroup(PageData):
    """Runs that differ in their seed only."""

    runs: list[str]
    seeds: list[int]
    errors: dict[str, Spread] = {}
    """On the frames that all were measured on, by error."""
    skills: dict[str, Spread] = {}
    """Skill over the constant, by error."""
    recorded: dict[str, Spread] = {}
    """Metrics that the runs recorded."""
    against_first: Comparison | None = None
    """The group against that of the first run, by the error that is judged, over the seeds that both have (3 at least)."""
    p_adjusted: float | None = None
    """p of that after Holm's correction, where several groups are compared with the first."""


class Measured(PageData):
    """Models measured on the very same frames."""

    frame_set: str
    frame_set_digest: str
    split: str
    num_frames: int
    num_clips: int
    judged: str
    """The error that verdicts are of: "pa_epe_mm", or "epe_2d" where no frame has joints in 3D."""
    errors: dict[str, dict[str, ModelError]]
    """{error, as in metric_names.METRICS: {run: ...}}; the order of runs is theirs."""
    others: dict[str, dict[str, float]]
    """{metric: {run: value}} of those that are not errors."""
    verdict: Verdict
    """Every model against its constant, and against the first model, by the error that is judged."""
    overlays: list[Overlays] = []
    """The same frames with the answer of each model, by letter."""


class Sentence(PageData):
    """A part of the answer, in words."""

    badge: str
    """It in a few words."""
    text: str
    outcome: Outcome = "unclear"
    """"better" or "worse" only where that is more than chance."""


class ComparedRuns(PageData):
    """All of it."""

    title: str = "Comparison of runs"
    created_at: str
    """UTC, ISO 8601."""
    runs: list[ComparedRun]
    answer: list[Sentence]
    """Which is better, by how much, whether that is more than chance, whether any is worse than one fixed hand."""
    notes: list[str] = []
    """What a reader has to know of how the runs were compared."""
    settings: dict[str, dict[str, Any]]
    """{setting: {run: value}} of those that differ."""
    num_same_settings: int
    """Settings that all runs have, with the same value."""
    origin: dict[str, dict[str, str]]
    """{frames, commit, command, ...: {run: value}} of those that differ."""
    recorded: dict[str, dict[str, float]]
    """{metric: {run: value}}, as the runs recorded them, of those that two runs have at least."""
    curves: list[Curve] = []
    groups: list[SeedGroup] = []
    measured: Measured | None = None

    @property
    def letters(self) -> dict[str, str]:
        """{run: letter}."""
        return {run.name: run.letter for run in self.runs}


def letter_of(number: int) -> str:
    """A, B, ..., Z, A2, B2, ..."""
    turn, place = divmod(number, len(LETTERS))
    return LETTERS[place] + (str(turn + 1) if turn else "")
