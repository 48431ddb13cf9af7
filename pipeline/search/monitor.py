"""What the driver does while trials run: MLflow child runs, progress, and a table of the best and the running trials."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import warn
from pipeline.progress import Progress
from pipeline.search.records import FAILED, RUNNING, TrialRecord
from pipeline.search.settings import SearchSettings
from pipeline.search.space import trial_settings
from pipeline.tracked import Run
from pipeline.training.validation import score_figures

_BEST_SHOWN, _RUNNING_SHOWN = 5, 8


class SearchMonitor:
    """Logs each trial as a child run of the search, and moves the progress bar by epochs."""

    def __init__(
        self, run_id: str, parent: Run, settings: SearchSettings, progress: Progress, epochs_of_trial: int
    ) -> None:
        """epochs_of_trial: that the bar counts for each."""
        self.run_id, self.parent, self.settings, self.progress = run_id, parent, settings, progress
        self._epochs_of_trial = epochs_of_trial
        self._runs: dict[int, Run] = {}
        self._epochs: dict[int, float] = {}
        self._records: dict[int, TrialRecord] = {}
        self._best = float("inf")
        self._figures: dict[str, float] = {}

    def said(self, metrics: dict[str, Any]) -> None:
        """A trial told something."""
        for text in metrics.get("warnings", []):
            warn(text)

    def result(self, record: TrialRecord, metrics: dict[str, Any]) -> None:
        """A trial was validated."""
        self._log(record, metrics)
        self._best = min(self._best, metrics["score"])
        self._figures = score_figures(metrics, self._best, self.settings.finetune.best_by, "best ")
        # A member of a population goes on in the middle.
        begun = (
            0 if record.parent is None else (metrics["epoch"] - 1e-9) // self._epochs_of_trial * self._epochs_of_trial
        )
        self._epochs[record.number] = metrics["epoch"] - begun
        self._show(record)

    def other_seed(self, record: TrialRecord, metrics: dict[str, Any]) -> None:
        """The same of its later seeds."""
        self._epochs[record.number] = self.settings.finetune.epochs * metrics["of_seed"] + metrics["epoch"]
        self._show(record)

    def ended(self, record: TrialRecord) -> None:
        """A trial is over, by itself, by the search, or by an error."""
        self._epochs[record.number] = self._epochs_of_trial
        self._log_outcome(record)
        self._end(record.number, "FAILED" if record.state == FAILED else "FINISHED")
        self._show(record)

    def known(self, record: TrialRecord) -> None:
        """A trial was over before this driver began. All of it is told once more, with the times at which it was: MLflow may lack
        the last of it, and else nothing changes there."""
        for metrics in record.history:
            self._log(record, metrics)
        self._log_outcome(record)
        if record.history:
            self._runs.pop(record.number).finish("FINISHED", at=record.history[-1].get("reported_at"))
            self._best = min(self._best, record.best or self._best)
        self._epochs[record.number] = self._epochs_of_trial
        self._show(record)

    def _log(self, record: TrialRecord, metrics: dict[str, Any]) -> None:
        names = ("loss", "learning_rate", "frames_per_second", "score")
        figures = {
            key: float(value) for key, value in metrics.items() if key in names or key.startswith(("loss_", "val_"))
        }
        self._run(record).log_metrics(figures, step=int(metrics["step"]), at=metrics.get("reported_at"))

    def _log_outcome(self, record: TrialRecord) -> None:
        """What is known at the end only."""
        figures = dict(record.objectives)
        if record.seed_scores:
            figures |= {
                "score_mean": statistics.fmean(record.seed_scores),
                "score_sd": statistics.stdev(record.seed_scores),
            }
        if figures and record.history:
            last = record.history[-1]
            self._run(record).log_metrics(figures, step=int(last["step"]), at=last.get("reported_at"))

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
            settings = trial_settings(self.settings.finetune, record.values)
            tags = {} if record.parent is None else {"equihand.parent_trial": f"{self.run_id}-{record.parent:04d}"}
            self._runs[record.number] = self.parent.child(f"{self.run_id}-{record.name}", "trial", settings, tags)
        return self._runs[record.number]

    def _show(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        self.progress.update(round(sum(self._epochs.values())), trials=len(self._epochs), **self._figures)
        self.progress.show(*_table([*self._records.values()], self._epochs))


def _table(records: list[TrialRecord], epochs: dict[int, float]) -> tuple[list[str], list[list[object]]]:
    """The best trials, and those that run: columns and rows."""
    ranked = sorted((r for r in records if r.value is not None), key=lambda r: (r.value, r.number))
    running = [record for record in records if record.state == RUNNING and record not in ranked[:_BEST_SHOWN]]
    rows: list[list[object]] = [
        [
            record.name,
            record.state,
            round(epochs.get(record.number, 0)),
            record.value,
            "  ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in record.values.items()),
        ]
        for record in [*ranked[:_BEST_SHOWN], *running[:_RUNNING_SHOWN]]
    ]
    return ["trial", "state", "epochs", "score", "values"], rows


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def search_monitor(
    run_id: str, parent: Run, settings: SearchSettings, progress: Progress, epochs_of_trial: int
) -> Iterator[SearchMonitor]:
    """A monitor of the trials that run in the block. Those that are not over at its end have ended as the block did."""
    monitor, status = SearchMonitor(run_id, parent, settings, progress, epochs_of_trial), "FAILED"
    try:
        yield monitor
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        monitor.close(status)
