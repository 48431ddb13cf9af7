"""What a search knows of its trials. It lies beside their checkpoints, so that a search can go on from it, whatever happens to Tune.

<search>/trials/0007/trial.json     the values that the trial tries, and how it ended (written by the driver)
<search>/trials/0007/checkpoint_*   its checkpoints, with what it reached at each (written by the trial; see models/kept.py)
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics at each of its checkpoints; they tell "epoch", "score" (smaller is better) and "reported_at" (seconds since 1970)."""

    @property
    def name(self) -> str:
        """For people, and of its folder."""
        return f"{self.number:04d}"

    @property
    def best(self) -> float | None:
        """The smallest score that it reached; None before the first."""
        return min((metrics["score"] for metrics in self.history), default=None)


def folder_of(search: str, number: int) -> str:
    """URI of a trial's folder."""
    return join(search, "trials", f"{number:04d}")


def write_record(search: str, record: TrialRecord) -> None:
    """Keep what is not in the trial's checkpoints."""
    known = {"number": record.number, "values": record.values, "state": record.state, "error": record.error}
    with_patience(lambda: write_json(join(folder_of(search, record.number), _FILE), known))


def read_records(search: str) -> list[TrialRecord]:
    """All trials of a search, by number. Warns of those that cannot be gone on with."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [record for record in pool.map(_read, list_folders(join(search, "trials"))) if record is not None]
    return sorted(found, key=lambda record: record.number)


def _read(folder: str) -> TrialRecord | None:
    try:
        record = TrialRecord(**read_json(join(folder, _FILE)))
    except (MissingError, DamagedError, TypeError) as error:
        if checkpoints_in(folder):
            warn(f"{folder}: left out, as what it tried is not known ({error})")
        return None
    record.history = [metrics for metrics in read_history(folder) if "score" in metrics]
    return record
