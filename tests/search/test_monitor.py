from contextlib import suppress

from pipeline.progress import SILENT
from pipeline.search.monitor import search_monitor
from pipeline.tracked import Run
from pipeline.tracking_queue import Queue
from pipeline.training.finetune_recipe import FinetuneSettings


def test_trials_are_recorded_as_children_that_end_as_they_did(tmp_path):
    base = FinetuneSettings(frame_set="frames", epochs=2)
    parent = Run(str(tmp_path), "search", "s")
    result = {"score": 1.0, "epoch": 1.0, "step": 4, "loss": 2.0, "wall_s": 3.0}
    with suppress(KeyboardInterrupt), search_monitor("s", parent, base, SILENT) as monitor:
        monitor.result("a", {}, result)
        monitor.result("b", {}, result)
        monitor.ended("a", "FINISHED")
        raise KeyboardInterrupt
    records = [record for record, _ in Queue(tmp_path).waiting()]
    assert [(record["do"], record["run"][1]) for record in records] == [
        *[(do, "s-a") for do in ("open", "text", "metrics")],
        *[(do, "s-b") for do in ("open", "text", "metrics")],
        ("finish", "s-a"),
        ("finish", "s-b"),
    ]
    assert records[0]["parent"] == ["search", "s"]
    assert records[2]["values"] == {"score": 1.0, "loss": 2.0}
    assert (records[2]["step"], records[-2]["status"], records[-1]["status"]) == (4, "FINISHED", "KILLED")
