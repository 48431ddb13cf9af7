"""What Tune is told, and what it leaves."""

import _thread
import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.search.tuning import NUMBER, run_trials
from pipeline.training.background import is_any_left


class Endless:
    """A trial after another."""

    def __init__(self) -> None:
        self.num = 0

    def next(self):
        self.num += 1
        return {NUMBER: self.num}

    def reported(self, given, metrics):
        return False

    def ended(self, given, error):
        raise AssertionError(error)


def test_an_interrupted_search_leaves_no_call_behind(ray_cluster, tmp_path):
    """Ray crashes where it is shut down under one. Trials are where the driver is, so that they understand relative paths."""

    def trial(values, folder: str) -> None:
        Path(folder, "began").write_text(os.getcwd())
        while not Path(folder, "over").exists():
            time.sleep(0.1)

    def interrupt() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.1)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_trials("left", Endless(), trial, {"folder": str(tmp_path)}, 2, 1, {"CPU": 1.0}, {})
    assert not is_any_left()
    assert (tmp_path / "began").read_text() == os.getcwd()
    (tmp_path / "over").touch()
