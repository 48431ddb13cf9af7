"""Which values a search tries, and which trials it ends early: Optuna's sampler and pruner, asked trial by trial.

Nothing of Optuna is stored. A search that goes on tells a new study what the trials have reached, in their order.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord

_STATES = {COMPLETED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class Proposals:
    """The study. Not for several threads at a time."""

    def __init__(
        self,
        space: dict[str, BaseDistribution],
        known: Sequence[TrialRecord],
        *,
        seed: int,
        first: dict[str, Any] | None,
        grace_epochs: int,
        reduction_factor: int,
    ) -> None:
        """known: trials so far. first: values to begin with. grace_epochs: before that no trial is ended; reduction_factor: at each
        rung of ASHA, one trial in this many goes on."""
        self._space = space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A sampler of the same seed would propose once more what the known trials got from it.
            sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True)
        pruner = optuna.pruners.SuccessiveHalvingPruner(grace_epochs, reduction_factor)
        self._study = optuna.create_study(sampler=sampler, pruner=pruner)
        self._trials: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        for record in known:
            self._remember(record)
        if first is not None and all(record.values != first for record in known):
            self._study.enqueue_trial(first)

    def _remember(self, record: TrialRecord) -> None:
        self._study.enqueue_trial(record.values)
        self._trials[record.number] = self._study.ask(self._space)
        for metrics in record.history:
            self.is_hopeless(record.number, metrics)
        if record.state != RUNNING:
            self.ended(record)

    def propose(self, number: int) -> dict[str, Any]:
        """Values for a new trial of this number."""
        self._trials[number] = self._study.ask(self._space)
        return dict(self._trials[number].params)

    def is_hopeless(self, number: int, metrics: dict[str, float]) -> bool:
        """Whether to end a trial, which has reached that. What it has told before, in another process, is not judged again."""
        trial, epoch = self._trials[number], int(metrics["epoch"])
        if epoch <= self._reported.get(number, -1):
            return False
        self._reported[number] = epoch
        trial.report(metrics["score"], epoch)
        return trial.should_prune()  # it notes the rung that was reached, too

    def ended(self, record: TrialRecord) -> None:
        """A trial is over."""
        state = _STATES[record.state] if record.best is not None else TrialState.FAIL
        values = record.best if state == TrialState.COMPLETE else None
        self._study.tell(self._trials[record.number], values, state, skip_if_finished=True)
