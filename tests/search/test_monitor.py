from contextlib import suppress

from pipeline.progress import SILENT, Progress
from pipeline.search.monitor import search_monitor
from pipeline.search.records import COMPLETED, FAILED, TrialRecord
from pipeline.search.settings import SearchSettings
from pipeline.tracked import Run
from pipeline.tracking_queue import Queue
from pipeline.training.finetune_recipe import FinetuneSettings

SETTINGS = SearchSettings(finetune=FinetuneSettings(frame_set="frames", epochs=2))
REACHED = {
    "score": 1.0,
    "epoch": 1.0,
    "step": 4,
    "loss": 2.0,
    "val_pa_epe_mm": 1.0,
    "wall_s": 3.0,
    "reported_at": 1000.0,
}


def test_trials_are_recorded_as_children_that_end_as_they_did(tmp_path):
    parent = Run(str(tmp_path), "search", "s")
    a, b, c = (TrialRecord(number, {}) for number in range(3))
    with suppress(KeyboardInterrupt), search_monitor("s", parent, SETTINGS, SILENT, 2) as monitor:
        monitor.result(a, REACHED)
        monitor.result(b, REACHED)
        monitor.result(c, REACHED)
        a.state, c.state = COMPLETED, FAILED
        monitor.ended(a)
        monitor.ended(c)
        raise KeyboardInterrupt
    records = [record for record, _ in Queue(tmp_path).waiting()]
    assert [(record["do"], record["run"][1]) for record in records] == [
        *[(do, f"s-{name}") for name in ("0000", "0001", "0002") for do in ("open", "text", "metrics")],
        ("finish", "s-0000"),
        ("finish", "s-0002"),
        ("finish", "s-0001"),
    ]
    assert records[0]["parent"] == ["search", "s"]
    assert records[2]["values"] == {"score": 1.0, "loss": 2.0, "val_pa_epe_mm": 1.0}
    assert (records[2]["step"], records[2]["time"]) == (4, 1_000_000)
    assert [record["status"] for record in records[-3:]] == ["FINISHED", "FAILED", "KILLED"]


def test_a_trial_that_was_over_before_is_told_again_with_its_own_times(tmp_path):
    parent = Run(str(tmp_path), "search", "s")
    over = TrialRecord(0, {}, COMPLETED, history=[REACHED, {**REACHED, "step": 8, "reported_at": 1010.0}])
    with search_monitor("s", parent, SETTINGS, SILENT, 2) as monitor:
        monitor.known(over)
        monitor.known(TrialRecord(1, {}, FAILED))  # before it reported anything: MLflow has never heard of it
    records = [record for record, _ in Queue(tmp_path).waiting() if record["do"] not in ("open", "text")]
    assert [(record["do"], record["time"]) for record in records] == [
        ("metrics", 1_000_000),
        ("metrics", 1_010_000),
        ("finish", 1_010_000),
    ]


class Shown(Progress):
    """Keeps what was shown last."""

    def update(self, done, **figures):
        self.done, self.figures = done, figures

    def show(self, columns, rows):
        self.rows = rows


def test_the_best_trials_stand_first_and_the_bar_counts_all_seeds(tmp_path):
    shown = Shown()
    with search_monitor("s", Run(str(tmp_path), "search", "s"), SETTINGS, shown, 4) as monitor:
        records = [TrialRecord(number, {"optimiser.learning_rate": 0.1 / (number + 1)}) for number in range(9)]
        for record in records:
            reached = {**REACHED, "score": 9.0 - record.number, "val_pa_epe_mm": 9.0}
            record.history = [reached]
            monitor.result(record, reached)
        records[8].seed_scores = [1.0, 2.0]
        monitor.other_seed(records[8], {**REACHED, "of_seed": 1})
        records[0].state = COMPLETED
        monitor.ended(records[0])
    assert shown.done == 7 + (2 + 1) + 4
    assert shown.figures["best PA-EPE mm"] == 1.0
    assert [row[0] for row in shown.rows] == ["0008", "0007", "0006", "0005", "0004", "0001", "0002", "0003"]
    assert shown.rows[0][3:] == [1.5, "learning_rate 0.0111"]
    logged = [r for r, _ in Queue(tmp_path).waiting() if r["do"] == "metrics" and "score_mean" in r["values"]]
    assert logged == []  # that trial is not over
