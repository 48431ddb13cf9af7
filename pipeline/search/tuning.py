"""Ray Tune runs the trials: their processes, their resources, another try after a failure. What they try is the search's.

Tune keeps a state of its own, of pickles, which nobody reads: it goes to a temporary folder.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pipeline.errors import EquihandError, causes, one_line
from pipeline.ray_cluster import is_fixed, keep_working_directory
from pipeline.training.background import BackgroundCall

NUMBER = "number"
"""Of the trial, in what it is given."""
NOT_YET: dict[str, Any] = {}
_MOST_PENDING = 4
_END_S = 20.0  # for Tune to end, where the driver leaves it
_RESTARTS = 1  # a lost worker is worth another try; a diverged trial then fails again, from its last checkpoint


class Trials(Protocol):
    """What decides, in the driver."""

    def next(self) -> dict[str, Any] | None:
        """What a trial is given, with its NUMBER; NOT_YET where others have to be over first, None where there is no more."""

    def reported(self, given: dict[str, Any], metrics: dict[str, Any]) -> bool:
        """A trial has reached that; whether to end it."""

    def ended(self, given: dict[str, Any], error: str) -> None:
        """A trial is over; error: why, where it failed."""


_OPEN: dict[str, Trials] = {}
_LEFT: set[str] = set()


class _Ask(Searcher):
    """Tune pickles its parts, so they only know the name of what decides."""

    def __init__(self, key: str) -> None:
        super().__init__(metric="score", mode="min")
        self.key = key

    def suggest(self, trial_id: str) -> Any:
        given = _OPEN[self.key].next()
        return Searcher.FINISHED if given is None else given or None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """See _Tell."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is stored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of it is stored."""


class _Judge(FIFOScheduler):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        is_over = _OPEN[self.key].reported(trial.config, result)
        return str(self.STOP if is_over else self.CONTINUE)


class _Tell(tune.Callback):
    def __init__(self, key: str) -> None:
        self.key = key

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.key in _LEFT:
            raise KeyboardInterrupt  # any Exception would let Tune wait for its trials

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _OPEN[self.key].ended(trial.config, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _OPEN[self.key].ended(trial.config, _reason(trial))


def _reason(trial: Any) -> str:
    """Why a trial failed, in one line."""
    # In Tune's own folder: what its get_error reads is a copy, which comes later.
    path = trial.pickled_error_file
    if path is None or not os.path.exists(path):
        return "no reason given"
    with open(path, "rb") as file:
        error = cloudpickle.load(file)  # written by this process
    innermost = [*causes(error)][-1]
    return (
        str(innermost) if isinstance(innermost, EquihandError) else f"{type(innermost).__name__}: {one_line(innermost)}"
    )


def _place(resources: dict[str, float], labels: dict[str, str]) -> tune.PlacementGroupFactory:
    selectors: dict[str, Any] = {"bundle_label_selector": [labels]} if labels else {}
    return tune.PlacementGroupFactory([{name: value for name, value in resources.items() if value}], **selectors)


def run_trials(
    key: str,
    trials: Trials,
    function: Callable[..., None],
    given: dict[str, Any],
    num: int,
    concurrent: int,
    resources: dict[str, float],
    labels: dict[str, str],
    reuse: bool = True,
) -> None:
    """Call function(values, **given) for each trial, in processes of the cluster, until `trials` has no more.

    key: names the search in this process. num: of trials at most. concurrent: at a time. resources: of each, {"CPU": ..., "GPU": ...}.
    labels: of the nodes that run them. reuse: whether a trial may run in the process of one that is over.
    """
    keep_working_directory()
    # Trials that wait for a node make an autoscaler start it; but each of them was proposed without knowing what the others reach.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1" if is_fixed() else str(_MOST_PENDING))
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial tells more than its score
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said by `trials`
    _OPEN[key] = trials
    try:
        with tempfile.TemporaryDirectory(prefix="equihand-tune-") as directory:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(function, **given), _place(resources, labels)),
                tune_config=tune.TuneConfig(
                    num_samples=num,
                    max_concurrent_trials=concurrent,
                    search_alg=_Ask(key),
                    scheduler=_Judge(key),
                    reuse_actors=reuse,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=directory,
                    failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    callbacks=[_Tell(key)],
                    verbose=0,
                ),
            )
            fit = BackgroundCall(tuner.fit)
            try:
                fit.result()
            finally:
                _LEFT.add(key)
                fit.wait(_END_S)
    finally:
        _LEFT.discard(key)
        del _OPEN[key]
