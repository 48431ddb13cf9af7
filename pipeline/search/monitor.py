"""What the driver does while trials run: MLflow child runs, and progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import warn
from pipeline.progress import Progress
from pipeline.search.records import FAILED, TrialRecord
from pipeline.search.space import trial_settings
from pipeline.tracked import Run
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.validation import score_figures


class SearchMonitor:
    """Logs each trial as a child run of the search, and moves the progress bar by epochs."""

    def __init__(self, run_id: str, parent: Run, base: FinetuneSettings, progress: Progress) -> None:
        self.run_id, self.parent, self.base, self.progress = run_id, parent, base, progress
        self._runs: dict[int, Run] = {}
        self._epochs: dict[int, float] = {}
        self._best = float("inf")
        self._figures: dict[str, float] = {}

    def result(self, record: TrialRecord, metrics: dict[str, Any]) -> None:
        """A trial reported."""
        for text in metrics.get("warnings", []):
            warn(text)
        self._log(record, metrics)
        self._best = min(self._best, metrics["score"])
        self._figures = score_figures(metrics, self._best, "best ")
        self._epochs[record.number] = metrics["epoch"]
        self._show()

    def ended(self, record: TrialRecord) -> None:
        """A trial is over, by itself, by the search, or by an error."""
        self._epochs[record.number] = self.base.epochs
        self._end(record.number, "FAILED" if record.state == FAILED else "FINISHED")
        self._show()

    def known(self, record: TrialRecord) -> None:
        """A trial was over before this driver began. All of it is told once more, with the times at which it was: MLflow may lack
        the last of it, and else nothing changes there."""
        for metrics in record.history:
            self._log(record, metrics)
        if record.history:
            self._runs.pop(record.number).finish("FINISHED", at=record.history[-1].get("reported_at"))
            self._best = min(self._best, record.best or self._best)
        self._epochs[record.number] = self.base.epochs
        self._show()

    def _log(self, record: TrialRecord, metrics: dict[str, Any]) -> None:
        names = ("loss", "learning_rate", "frames_per_second", "score")
        figures = {
            key: float(value) for key, value in metrics.items() if key in names or key.startswith(("loss_", "val_"))
        }
        self._run(record).log_metrics(figures, step=int(metrics["step"]), at=metrics.get("reported_at"))

    def close(self, status: str) -> None:
        """The search is over; status of the trials that are not."""
        for number in list(self._runs):
            self._end(number, status)

    def _end(self, number: int, status: str) -> None:
        if number in self._runs:
            self._runs.pop(number).finish(status)

    def _run(self, record: TrialRecord) -> Run:
        """The child run of a trial, opened when it first reports."""
        if record.number not in self._runs:
            settings = trial_settings(self.base, record.values)
            self._runs[record.number] = self.parent.child(f"{self.run_id}-{record.name}", "trial", settings)
        return self._runs[record.number]

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
