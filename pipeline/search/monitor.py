"""What the driver does while trials run: MLflow child runs, and progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from pipeline.errors import warn
from pipeline.progress import Progress
from pipeline.search.space import trial_settings
from pipeline.tracked import Run
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.validation import score_figures

_OPEN: dict[str, "SearchMonitor"] = {}


class _Forward(tune.Callback):
    """Tune pickles its callbacks with its state, so this one only knows the name of its monitor."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        _OPEN[self.run_id].result(trial.trial_id, trial.config, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _OPEN[self.run_id].ended(trial.trial_id, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _OPEN[self.run_id].ended(trial.trial_id, "FAILED")


class SearchMonitor:
    """Logs each trial as a child run of the search, and moves the progress bar by epochs."""

    def __init__(self, run_id: str, parent: Run, base: FinetuneSettings, progress: Progress) -> None:
        self.run_id, self.parent, self.base, self.progress = run_id, parent, base, progress
        self._runs: dict[str, Run] = {}
        self._epochs: dict[str, float] = {}
        self._best = float("inf")
        self._figures: dict[str, float] = {}
        _OPEN[run_id] = self

    def callback(self) -> Any:
        """The callback for Tune's RunConfig."""
        return _Forward(self.run_id)

    def result(self, trial_id: str, values: dict[str, Any], result: dict[str, Any]) -> None:
        """A trial reported."""
        if "score" not in result:
            return
        for text in result.get("warnings", []):
            warn(text)
        names = ("loss", "learning_rate", "frames_per_second", "score")
        metrics = {
            key: float(value) for key, value in result.items() if key in names or key.startswith(("loss_", "val_"))
        }
        self._run(trial_id, values).log_metrics(metrics, step=int(result["step"]))
        self._best = min(self._best, result["score"])
        self._figures = score_figures(result, self._best, "best ")
        self._epochs[trial_id] = result["epoch"]
        self._show()

    def ended(self, trial_id: str, status: str) -> None:
        """A trial is over, by itself, by the scheduler, or by an error."""
        self._epochs[trial_id] = self.base.epochs
        self._end(trial_id, status)
        self._show()

    def close(self, status: str) -> None:
        """The search is over; status of the trials that are not."""
        _OPEN.pop(self.run_id, None)
        for trial_id in list(self._runs):
            self._end(trial_id, status)

    def _end(self, trial_id: str, status: str) -> None:
        if trial_id in self._runs:
            self._runs[trial_id].finish(status)
            del self._runs[trial_id]

    def _run(self, trial_id: str, values: dict[str, Any]) -> Run:
        """The child run of a trial, opened when it first reports."""
        if trial_id not in self._runs:
            settings = trial_settings(self.base, values)
            self._runs[trial_id] = self.parent.child(f"{self.run_id}-{trial_id}", "trial", settings)
        return self._runs[trial_id]

    def _show(self) -> None:
        self.progress.update(round(sum(self._epochs.values())), trials=len(self._epochs), **self._figures)


@contextmanager
def search_monitor(run_id: str, parent: Run, base: FinetuneSettings, progress: Progress) -> Iterator[SearchMonitor]:
    """A monitor of the trials that run in the block. Those that are not over at its end have ended as the block did."""
    monitor, status = SearchMonitor(run_id, parent, base, progress), "FAILED"
    try:
        yield monitor
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        monitor.close(status)
