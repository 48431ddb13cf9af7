"""What a search is: its settings, and whether they fit each other."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Settings, Uri
from pipeline.errors import SettingsError
from pipeline.ray_cluster import START_TIMEOUT_S
from pipeline.runs import RunSettings
from pipeline.search.proposals import Scheduler, Searcher
from pipeline.search.space import DEFAULT_SPACE, Space, grid
from pipeline.tracking import TrackingSettings
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe

Objective = Literal["latency_ms", "model_mb"]


class SearchSettings(Settings):
    """A search over fine-tuning settings, and those of the pretraining before it."""

    finetune: FinetuneSettings
    """Settings of every trial, apart from what the space varies. `best_by` says by what trials are judged."""
    pretrain: PretrainRecipe | None = None
    """A pretraining before every trial's fine-tuning, which starts from it; the space may vary it too (pretrain.NAME). Trials with the
    same pretraining share one. none: all start from finetune.init."""
    space: Space = DEFAULT_SPACE
    """What varies: {name of a fine-tuning setting: {uniform: [smallest, largest]}}, or log_uniform, integer, log_integer, choice,
    fixed, each with `when: {other setting: value}` where it means something only then. `augmentation` is the strength of the
    random views."""
    searcher: Searcher = "tpe"
    """What proposes values: tpe learns from the trials before, random does not, grid tries all combinations of choices."""
    scheduler: Scheduler = "asha"
    """What ends trials early: asha and hyperband those that are not among the best at one of their rungs (hyperband with tpe is what
    BOHB is), median those that are worse than half of the others were by then, none none. pbt trains a population of `num_trials`
    instead: every `perturb_epochs` its worst quarter goes on from the weights of its best one, with changed values."""
    objectives: tuple[Objective, ...] = ()
    """What counts beside the score: latency_ms, of one frame on the trial's device; model_mb, size of the weights. The search then
    looks for the best compromises (the Pareto front), and ends no trial early: it needs scheduler none."""
    num_trials: int = Field(default=16, ge=1)
    """Number of trials in all. A search of which more are asked for goes on."""
    add_trials: int = Field(default=0, ge=0)
    """Trials more than those that the search has finished, or than `num_trials`, whichever are more."""
    seeds_per_trial: int = Field(default=1, ge=1)
    """Trainings of a trial, with different seeds; it is judged by their mean. The second begins once the first has not been ended
    early, so that hopeless values cost no more."""
    perturb_epochs: int | None = Field(default=None, ge=1)
    """With scheduler pbt, epochs after which members are compared. none: an eighth of all."""
    warm_start: tuple[Uri, ...] = ()
    """Earlier searches (folders of their runs), from whose finished trials this one learns, as far as its space holds their values.
    It begins with the best of them."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Largest number of trials at a time. none: as many as the CPUs and GPUs of the cluster hold, also those that come later."""
    trial_workers: int = Field(default=1, ge=1)
    """Training processes of one trial. Several are workers of Ray Train, each with `cpus_per_trial` and one GPU, where the batch or the
    model is too large for one device; a trial then takes some seconds more to start, and one more logical CPU."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """Logical CPUs, and torch threads, of one trial (of each of its workers)."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """GPUs of one trial; fractions are possible (with one worker). none: 1 where the cluster has GPUs, else 0, and refused where an autoscaler starts
    nodes."""
    trial_labels: dict[str, str] = {}
    """Labels of the cluster's nodes that run trials, such as {ray-subcluster: training}; {} takes any."""
    start_timeout_s: float = Field(default=START_TIMEOUT_S, gt=0)
    """Seconds for which the search waits for a node that holds a trial."""
    grace_epochs: int | None = Field(default=None, ge=1)
    """Epochs before a trial may be stopped. none: a quarter of all epochs."""
    reduction_factor: int = Field(default=3, ge=2)
    """At each of its rungs ASHA continues only the best trials: one in this many."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Seconds after which no further trial begins, and those that are under way end at their next validation. Counted from each start
    of the search. none: without an end."""
    budget_hours: float | None = Field(default=None, gt=0)
    """The same for the hours that all trials have trained together, over all starts: times the GPUs of a trial, where it has some.
    none: without an end."""
    seed: int = Field(default=5, ge=0)
    """Seed of what proposes values."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.objectives and self.scheduler != "none":
            raise ValueError(
                f"setting 'objectives': a trial that is worse in one may be better in another, so none is ended early; use scheduler "
                f"none instead of {self.scheduler}"
            )
        if self.scheduler == "pbt":
            if self.num_trials < 2:
                raise ValueError("setting 'num_trials': a population (scheduler pbt) has at least two members")
            for name in ("seeds_per_trial", "add_trials", "warm_start", "pretrain", "trial_workers"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"setting '{name}': not with scheduler pbt")
            if self.searcher == "grid":
                raise ValueError("setting 'searcher' = 'grid': a population (scheduler pbt) draws its values")
        if self.trial_workers > 1 and self.pretrain is not None:
            raise ValueError(
                "setting 'pretrain': trials of several workers (trial_workers) do not pretrain; pretrain first, and name it as finetune.init"
            )
        labels = next((name for name in self.space if name.startswith("labels")), None)
        if self.trial_workers > 1 and labels is not None:
            raise ValueError(
                f"setting 'space.{labels}': all trials have the same labels where trial_workers is more than 1"
            )
        if self.trial_workers > 1 and self.gpus_per_trial not in (None, 0, 1):
            raise ValueError(
                f"setting 'gpus_per_trial' = {self.gpus_per_trial:g}: each of several workers (trial_workers) has one GPU or none"
            )
        return self

    def wanted(self, finished: int) -> int:
        """Trials in all, where so many have finished; of a grid no more than it has."""
        wanted = max(self.num_trials, finished) + self.add_trials if self.add_trials else self.num_trials
        return min(wanted, len(grid(self.space))) if self.searcher == "grid" else wanted


def check_population(settings: SearchSettings, started: dict[str, object]) -> None:
    """started: settings that the search was started with. Raises SettingsError where a population would change its size."""
    size = started.get("num_trials")
    if settings.scheduler == "pbt" and size is not None and size != settings.num_trials:
        raise SettingsError(
            f"setting 'num_trials' = {settings.num_trials}: the population of this search has {size} members, which stay as many; use "
            "another run.run_id"
        )
