"""Which values a search tries, and which trials it ends early: Optuna's samplers and pruners, asked trial by trial.

Nothing of Optuna is stored. A search that goes on tells a new study what the trials have reached, in their order.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord
from pipeline.search.space import Space, as_parameters, grid, is_in, suggested

Searcher = Literal["tpe", "random", "grid"]
Scheduler = Literal["asha", "hyperband", "median", "none", "pbt"]

_STATES = {COMPLETED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}
_LEAST_FOR_MEDIAN = 4  # trials before one is compared with their median


class Start(NamedTuple):
    """How a trial begins."""

    values: dict[str, Any]
    parent: int | None = None
    """Number of the trial from whose last checkpoint it goes on."""


class Proposals:
    """The study. Not for several threads at a time."""

    def __init__(
        self,
        space: Space,
        known: Sequence[TrialRecord],
        *,
        searcher: Searcher,
        scheduler: Scheduler,
        seed: int,
        first: dict[str, Any] | None,
        epochs: int,
        grace_epochs: int,
        reduction_factor: int,
        objectives: Sequence[str] = (),
        earlier: Sequence[TrialRecord] = (),
    ) -> None:
        """known: trials so far. first: values to begin with. epochs: of a trial that is not ended; grace_epochs: before that none is;
        reduction_factor: at each rung of ASHA, one trial in this many goes on. objectives: names of what counts beside the score.
        earlier: trials of other searches, to learn from."""
        self._space, self._epochs, self._objectives = space, epochs, objectives
        self._grid = grid(space) if searcher == "grid" else None
        self._study = optuna.create_study(
            study_name=f"search-{seed}",  # by which hyperband chooses a trial's bracket
            sampler=_sampler(searcher, seed + len(known)),
            pruner=_pruner(scheduler, epochs, grace_epochs, reduction_factor),
            directions=["minimize"] * (1 + len(objectives)),
        )
        self._trials: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        usable = [record for record in earlier if is_in(space, record.values) and self._reached(record) is not None]
        # Asked for in the order of the known trials, whose numbers count from 0.
        for record in known:
            self._remember(record)
        begin = [] if first is None else [first]
        if usable and not known:
            best = min(usable, key=lambda record: (record.value, record.number)).values
            begin = [best, *(values for values in begin if values != best)]
        for values in begin if self._grid is None else []:
            if all(record.values != values for record in known):
                self._study.enqueue_trial(as_parameters(space, values))
        self._learn(usable)

    def _learn(self, earlier: Sequence[TrialRecord]) -> None:
        """A trial of a passing study knows from which distributions its values come."""
        for record in earlier:
            passing = optuna.create_study()
            passing.enqueue_trial(as_parameters(self._space, record.values))
            trial = passing.ask()
            suggested(self._space, trial)
            reached = self._reached(record)
            self._study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=reached)
            )

    def _reached(self, record: TrialRecord) -> list[float] | None:
        """What the study minimises; None of a trial that was not trained to its end."""
        if record.state != COMPLETED or record.value is None or not record.objectives.keys() >= {*self._objectives}:
            return None
        return [record.value, *(record.objectives[name] for name in self._objectives)]

    def _remember(self, record: TrialRecord) -> None:
        self._ask(record.number, record.values)
        for metrics in record.history:
            self.is_hopeless(record.number, metrics)
        if record.state != RUNNING:
            self.ended(record)

    def propose(self, number: int) -> Start:
        """How a new trial of this number, which counts up from 0, begins."""
        return Start(self._ask(number, None if self._grid is None else self._grid[number]))

    def until(self, number: int) -> int:
        """The epoch at which a trial is over."""
        return self._epochs

    def _ask(self, number: int, values: dict[str, Any] | None) -> dict[str, Any]:
        if values is not None:
            self._study.enqueue_trial(as_parameters(self._space, values))
        self._trials[number] = self._study.ask()
        return suggested(self._space, self._trials[number])

    def is_hopeless(self, number: int, metrics: dict[str, float]) -> bool:
        """Whether to end a trial, which has reached that. What it has told before, in another process, is not judged again."""
        trial, epoch = self._trials[number], int(metrics["epoch"])
        if epoch <= self._reported.get(number, -1):
            return False
        self._reported[number] = epoch
        if self._objectives:
            return False
        trial.report(metrics["score"], epoch)
        return trial.should_prune()  # it notes the rung that was reached, too

    def ended(self, record: TrialRecord) -> None:
        """A trial is over."""
        values = self._reached(record)
        state = _STATES[record.state] if record.best is not None else TrialState.FAIL
        if state == TrialState.COMPLETE and values is None:
            state = TrialState.FAIL
        if self._objectives and state == TrialState.PRUNED:  # by a budget; Optuna knows this of one objective only
            state = TrialState.FAIL
        self._study.tell(self._trials[record.number], values, state, skip_if_finished=True)


def drawn(space: Space, seed: Sequence[int]) -> dict[str, Any]:
    """Random values, by nothing but the seed."""
    number = int(np.random.SeedSequence([*seed]).generate_state(1)[0])
    return suggested(space, optuna.create_study(sampler=optuna.samplers.RandomSampler(number)).ask())


def _sampler(searcher: Searcher, seed: int) -> optuna.samplers.BaseSampler:
    """seed: another one for each time that a search goes on: the same would propose once more what the known trials got from it."""
    if searcher != "tpe":
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Trials that are under way count as bad ones, so that several at a time do not try the same.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(scheduler: Scheduler, epochs: int, grace_epochs: int, reduction_factor: int) -> optuna.pruners.BasePruner:
    if scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(grace_epochs, reduction_factor)
    if scheduler == "hyperband":  # with TPE, what BOHB is
        return optuna.pruners.HyperbandPruner(grace_epochs, epochs, reduction_factor)
    if scheduler == "median":
        return optuna.pruners.MedianPruner(_LEAST_FOR_MEDIAN, grace_epochs)
    return optuna.pruners.NopPruner()
