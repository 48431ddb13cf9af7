"""Settings of a study: its methods and axes, what every arm has in common, and how cells run."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field, model_validator

from pipeline.config import Settings, merged
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.mixing import FrameSets
from pipeline.models.encoder import EncoderSettings
from pipeline.runs import RunSettings
from pipeline.tracking import TrackingSettings
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe

SCRATCH = "scratch"
"""The method without pretraining; every study has it."""

# Of each section, what is an axis of the study or follows from its budgets, and which setting decides it.
_PRETRAIN_DECIDED = {
    "epochs": "grids.frames",
    "seed": "grids.seeds",
    "encoder": "encoders",
    "init": "encoders",
}
_FINETUNE_DECIDED = {
    "epochs": "finetune.frames",
    "validate_every": "validations",
    "seed": "grids.seeds",
    "labels": "grids.labels",
    "encoder": "encoders",
    "init": "encoders",
}


class StudyPretrain(PretrainRecipe):
    """Pretraining of every arm, where its method says nothing else."""

    frame_set: FrameSets = ""
    """URI of the unlabelled frames, or several with weights. Empty takes the training frames of
    `finetune.frame_set`."""


class StudyFinetune(FinetuneSettings):
    """Fine-tuning of every arm."""

    frame_set: str = ""
    """URI of the labelled frame set, with clips to train, to validate and to test on."""
    frames: int = Field(default=36_000, ge=1)
    """Frames that every fine-tuning sees, counting repeats, whether it has many labels or few."""


class StudyEncoder(EncoderSettings):
    """An encoder, and what it starts from before any pretraining."""

    init: str | None = None
    """URI of a torchvision (ImageNet) file that every method starts from, `scratch` too. none: random weights."""
    relative_cost: float = Field(default=1.0, gt=0)
    """Time for one frame, relative to the encoder that `speed` describes. Used for estimates."""

    def plain(self) -> EncoderSettings:
        """The encoder alone."""
        return EncoderSettings.model_validate(self.model_dump(include=set(EncoderSettings.model_fields)))


class GridSettings(Settings):
    """Cells: every combination of the values of each axis. Cells that several grids name are run once."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,40}$")
    """Name of the grid in the report."""
    axis: Literal["methods", "labels", "unlabelled", "length"]
    """What the report shows of the grid: a table of methods, or the error against labels, unlabelled frames, or
    pretraining length."""
    methods: tuple[str, ...] = Field(min_length=1)
    """Names of the methods to run: those under `methods`, or `scratch`."""
    frames: tuple[int, ...] = Field(min_length=1)
    """Pretraining lengths: frames seen, each of them as two views."""
    unlabelled: tuple[float, ...] = (1.0,)
    """Shares of the unlabelled clips. The clips of a smaller share are among those of a larger one."""
    labels: tuple[float, ...] = Field(min_length=1)
    """Shares of the labelled clips, nested in the same way."""
    encoders: tuple[str, ...] = ()
    """Names of the encoders to run, from `encoders`. Empty takes the first."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds to run. A seed draws clips, initial weights, order and views, the same for all methods."""

    @model_validator(mode="after")
    def _shares(self) -> "GridSettings":
        for name in ("unlabelled", "labels"):
            for share in getattr(self, name):
                if not 0 < share <= 1:
                    raise ValueError(f"setting 'grids.{name}' = {share}: must be above 0 and at most 1")
        if min(self.frames) < 1 or min(self.seeds) < 0:
            raise ValueError("setting 'grids': frames must be 1 or more, seeds 0 or more")
        return self


class FindingsSettings(Settings):
    """Which cells the verdicts are of, decided before there are results."""

    claims: bool = True
    """Whether the study is large enough to claim anything; if not, its report says so in place of verdicts."""
    ours: str = "peclr"
    """Name of the equivariant method."""
    invariant: tuple[str, ...] = ("simclr",)
    """Names of the invariant methods. The best of them is the one to beat."""
    labels: float = Field(default=0.1, gt=0, le=1)
    """Share of the labels at which methods are compared."""


class CellSettings(Settings):
    """What one cell takes of the cluster."""

    cpus: int = Field(default=1, ge=1)
    """Logical CPUs and torch threads of a cell. One more CPU is left free for reading."""
    gpus: float | None = Field(default=None, ge=0, le=1)
    """GPUs of a cell; fractions are possible. none: 1 where the cluster has GPUs, else 0."""


class SpeedSettings(Settings):
    """What one cell does alone, for the estimate that is printed before a study starts."""

    pretrain: float = Field(default=75.0, gt=0)
    """Frames that one cell processes in a second of pretraining."""
    finetune: float = Field(default=200.0, gt=0)
    """Frames that one cell processes in a second of fine-tuning."""
    cell_s: float = Field(default=6.0, ge=0)
    """Seconds that each cell needs besides, to start, load and test."""
    at_a_time: float = Field(default=2.0, gt=0)
    """Number of cells that run at the same time at that speed."""


class StudySettings(Settings):
    """A study."""

    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()
    title: str = "Equihand study"
    """Title of the report."""

    methods: dict[str, dict[str, Any]] = {}
    """The methods to compare, by name: for each the settings of jobs.pretrain that differ from `pretrain`, nested as
    there. The method `scratch` always exists."""
    encoders: dict[str, StudyEncoder] = {"resnet18": StudyEncoder()}
    """The encoders to train, by name."""
    grids: tuple[GridSettings, ...]
    """Which combinations are run, the most important ones first."""
    findings: FindingsSettings = FindingsSettings()

    pretrain: StudyPretrain = StudyPretrain()
    finetune: StudyFinetune = StudyFinetune()
    validations: int = Field(default=10, ge=1)
    """How often every fine-tuning is validated. Each validation writes a checkpoint, and the best one is tested."""
    test_split: str = "test"
    """Split whose errors are the results."""
    probe_frames: int = Field(default=4000, ge=2)
    """Largest number of a cell's labelled frames on which its ridge probe is fitted."""
    similar_keypoints: Literal["labels", "detector"] = "labels"
    """Where the 2D joints come from when pairs are mined for positives.kind `similar`."""
    detector: DetectorSettings = DetectorSettings()
    """The hand detector, where `similar_keypoints` is `detector`."""

    pretrain_cell: CellSettings = CellSettings()
    finetune_cell: CellSettings = CellSettings()
    max_concurrent: int | None = Field(default=None, ge=1)
    """Largest number of cells at a time. none: as many as the CPUs and GPUs of the cluster hold."""
    speed: SpeedSettings = SpeedSettings()
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop after this many minutes, at the next checkpoints. The same command continues later. Exit code 3 says that
    cells are left."""

    @model_validator(mode="after")
    def _axes_are_axes(self) -> "StudySettings":
        sections: tuple[tuple[str, Settings, dict[str, str]], ...] = (
            ("pretrain", self.pretrain, _PRETRAIN_DECIDED),
            ("finetune", self.finetune, _FINETUNE_DECIDED),
        )
        for section, settings, decided in sections:
            for name, by in decided.items():
                if getattr(settings, name) != type(settings).model_fields[name].default:
                    raise ValueError(f"setting '{section}.{name}': the study decides it; see {by}")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> "StudySettings":
        if SCRATCH in self.methods:
            raise ValueError(f"setting 'methods.{SCRATCH}': is the arm without pretraining, which has no settings")
        for kind in ("encoders", "grids"):
            if not getattr(self, kind):
                raise ValueError(f"setting '{kind}': name at least one")
        for kind, names in (("methods", self.methods), ("encoders", self.encoders)):
            for name in names:
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                    raise ValueError(f"setting '{kind}': '{name}': use letters, digits, '.', '_' and '-'")
        for name in self.methods:
            recipe_of(self.pretrain, self.methods, name)
        known = {"methods": {SCRATCH, *self.methods}, "encoders": set(self.encoders)}
        if len({grid.name for grid in self.grids}) < len(self.grids):
            raise ValueError("setting 'grids': two of them have the same name")
        for grid in self.grids:
            for axis, there in known.items():
                for name in getattr(grid, axis):
                    if name not in there:
                        raise ValueError(
                            f"setting 'grids': '{grid.name}' names '{name}', which is none of {axis}; "
                            f"there are {', '.join(sorted(there))}"
                        )
        for name in (self.findings.ours, *self.findings.invariant):
            if name not in self.methods:
                raise ValueError(f"setting 'findings': '{name}' is none of the methods ({', '.join(self.methods)})")
        return self


def recipe_of(base: PretrainRecipe, methods: Mapping[str, Mapping[str, Any]], name: str) -> PretrainRecipe:
    """How a method pretrains: `base` with what the method changes. Raises ValueError naming method and setting."""
    changes = methods[name]
    for decided, by in {**_PRETRAIN_DECIDED, "frame_set": "pretrain.frame_set"}.items():
        if decided in changes:
            raise ValueError(f"setting 'methods.{name}.{decided}': is the same for all methods; see {by}")
    values = merged(base.model_dump(include=set(PretrainRecipe.model_fields)), changes)
    try:
        return PretrainRecipe.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise ValueError(f"setting 'methods.{where}': {first['msg'].removeprefix('Value error, ')}") from None
