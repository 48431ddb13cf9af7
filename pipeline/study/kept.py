"""The checkpoints of a cell that is under way, in storage: the newest, to go on from, and the best one so far."""

import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.storage import copy_from_local, copy_to_local, delete, exists, join, list_folders, read_json, write_json
from pipeline.training.finetune import SaveCheckpoint

_HISTORY = ("step", "epoch", "loss", "val_pa_epe_mm", "val_mpjpe_mm")


class OutOfTime(Exception):
    """The time of the study is over, and this cell has kept where it is."""


class Kept:
    """A cell's folder.

    state.json is written after the checkpoints that it names: whenever the process dies, it names whole ones.
    """

    def __init__(self, uri: str, deadline: float | None) -> None:
        """deadline: seconds since 1970 after which `keep` ends the cell."""
        self.uri, self.deadline = uri, deadline
        self._state_uri = join(uri, "state.json")
        state = read_json(self._state_uri) if exists(self._state_uri) else {}
        self.newest: str | None = state.get("newest")
        self.best: str | None = state.get("best")
        self.score: float | None = state.get("score")
        self.history: list[dict[str, float]] = state.get("history", [])
        """Metrics at each checkpoint."""
        self._before_s: float = state.get("wall_s", 0.0)
        self._started = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Time spent, in all processes that worked on the cell, up to their last checkpoint."""
        return self._before_s + time.monotonic() - self._started

    def fetch_newest(self, directory: str) -> Path | None:
        """A local copy of the newest checkpoint; None for a new cell."""
        return self._fetched(self.newest, directory)

    def fetch_best(self, directory: str) -> Path:
        """A local copy of the best checkpoint."""
        found = self._fetched(self.best, directory)
        assert found is not None, "a cell ends with a checkpoint"
        return found

    def keep(self, save: SaveCheckpoint, metrics: dict[str, Any], last: bool) -> None:
        """Save a checkpoint of now. Raises OutOfTime after the deadline, unless it is the last one."""
        name = f"step-{int(metrics['step']):08d}"
        with tempfile.TemporaryDirectory() as directory:
            save(Path(directory))
            copy_from_local(directory, join(self.uri, name))
        self.newest = name
        if self.score is None or metrics["score"] < self.score:
            self.best, self.score = name, float(metrics["score"])
        self.history.append({key: metrics[key] for key in _HISTORY if key in metrics})
        state = {"newest": self.newest, "best": self.best, "score": self.score, "history": self.history}
        write_json(self._state_uri, {**state, "wall_s": round(self.wall_s, 1)})
        for folder in list_folders(self.uri):
            if folder.rsplit("/", 1)[-1].startswith("step-") and not folder.endswith((self.newest, str(self.best))):
                delete(folder)
        if self.deadline is not None and time.time() > self.deadline and not last:
            raise OutOfTime

    def _fetched(self, name: str | None, directory: str) -> Path | None:
        if name is None:
            return None
        copy_to_local(join(self.uri, name), directory)
        return Path(directory)
