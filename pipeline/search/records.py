"""What a search knows of its trials. It lies beside their checkpoints, so that a search can go on from it, whatever happens to Tune.

<search>/trials/0007/trial.json     the values that the trial tries, and how it ended (written by the driver)
<search>/trials/0007/checkpoint_*   its checkpoints, with what it reached at each (written by the trial; see models/kept.py)
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import DamagedError, MissingError, warn
from pipeline.models.kept import checkpoints_in, read_history
from pipeline.storage import join, list_folders, read_json, with_patience, write_json

RUNNING, COMPLETED, STOPPED, FAILED = "running", "completed", "stopped", "failed"
"""States of a trial: not over yet, trained to its end, ended early as others are better, ended by an error."""
_FILE = "trial.json"
_THREADS = 16


@dataclass
class TrialRecord:
    """One trial."""

    number: int
    values: dict[str, Any]
    """Of the settings that the search varies."""
    state: str = RUNNING
    error: str = ""
    """Why it failed."""
    parent: int | None = None
    """Number of the trial from whose last checkpoint it began; a member of a population goes on from others."""
    seed_scores: list[float] = field(default_factory=list)
    """Best score of each of its seeds, the first one's first, where it was trained with several."""
    objectives: dict[str, float] = field(default_factory=dict)
    """What else it is judged by, smaller is better: "latency_ms", "model_mb"."""
    other_seconds: dict[str, float] = field(default_factory=dict)
    """Of work apart from its first seed: "seed-1", ..., and "pretraining" where it was the trial that pretrained."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics at each of its checkpoints; they tell "epoch", "score" (smaller is better), "wall_s" (seconds of work so far) and
    "reported_at" (seconds since 1970)."""

    @property
    def name(self) -> str:
        """For people, and of its folder."""
        return f"{self.number:04d}"

    @property
    def best(self) -> float | None:
        """The smallest score that it reached with its first seed; None before the first."""
        return min((metrics["score"] for metrics in self.history), default=None)

    @property
    def value(self) -> float | None:
        """What it is judged by: the mean over its seeds."""
        return sum(self.seed_scores) / len(self.seed_scores) if self.seed_scores else self.best

    @property
    def seconds(self) -> float:
        """Of work, of all processes that did some of it."""
        first = float(self.history[-1].get("wall_s", 0.0)) if self.history else 0.0
        return first + sum(self.other_seconds.values())


def folder_of(search: str, number: int) -> str:
    """URI of a trial's folder."""
    return join(search, "trials", f"{number:04d}")


def write_record(search: str, record: TrialRecord) -> None:
    """Keep what is not in the trial's checkpoints."""
    known = {name: value for name, value in asdict(record).items() if name != "history"}
    with_patience(lambda: write_json(join(folder_of(search, record.number), _FILE), known))


def read_records(search: str) -> list[TrialRecord]:
    """All trials of a search, by number. Warns of those that cannot be gone on with."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [record for record in pool.map(_read, list_folders(join(search, "trials"))) if record is not None]
    return sorted(found, key=lambda record: record.number)


def is_ended(search: str, number: int) -> bool:
    """Whether the search has ended a trial, of several workers, that may still run."""
    try:
        return bool(read_json(join(folder_of(search, number), _FILE))["state"] == STOPPED)
    except (MissingError, DamagedError):
        return False


def _read(folder: str) -> TrialRecord | None:
    try:
        record = TrialRecord(**read_json(join(folder, _FILE)))
    except (MissingError, DamagedError, TypeError) as error:
        if checkpoints_in(folder):
            warn(f"{folder}: left out, as what it tried is not known ({error})")
        return None
    record.history = [metrics for metrics in read_history(folder) if "score" in metrics]
    return record
