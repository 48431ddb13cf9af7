"""What a search has left in its folder, also while it still runs.

<search>/settings.yaml          what it was started with
<search>/trials/0007/           see search/records.py
<search>/result.json            once it is over
<search>/winner/result.json     once its winner was trained and tested; see `Campaign.winner`
<search>/logs/*-driver.jsonl    one for each start; see run_log.py
"""

import json
from dataclasses import dataclass, field
from typing import Any

import pydantic

from pipeline.errors import DamagedError, DataError, MissingError, StorageError, one_line, warn
from pipeline.runs import read_result
from pipeline.search.records import TrialRecord, read_records
from pipeline.search.space import Dimension, Space
from pipeline.storage import absolute, exists, join, list_files, read_bytes, read_json
from pipeline.text_files import parse_yaml

_FIRST_LINES = 5  # of a log; they tell of the start
_WINNER = {"best_trial", "test", "arms", "verdict", "beats_constant", "conclusions", "chosen", "best_checkpoint"}


@dataclass(frozen=True)
class Campaign:
    """A search, as its folder tells it."""

    folder: str
    """URI."""
    settings: dict[str, Any]
    """Of settings.yaml, as plain values: those of another version of the code are shown, too."""
    settings_text: str = ""
    space: Space = field(default_factory=dict)
    records: list[TrialRecord] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    """Empty as long as it is not over."""
    winner: dict[str, Any] = field(default_factory=dict)
    """{"best_trial", "test": {"split", "num_frames"}, "arms": {"winner", "default": {"seeds": [{"metrics"}], "mean", "deviation": metrics}},
    "verdict": {"error": metric that decides}, "beats_constant", "conclusions": sentences, "chosen": {"seed"}, "best_checkpoint",
    "registration": None or {"name", "version", "alias"}, "identity": {"arms": {"winner": its settings}}}, and more that is not shown. There
    may be no arm "default". Empty without a winner."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """What the driver noted at each start: time, host, cores, versions, settings."""

    @property
    def run_id(self) -> str:
        """Name of the search."""
        return self.folder.rstrip("/").rsplit("/", 1)[-1]

    @property
    def finetune(self) -> dict[str, Any]:
        """Settings of every trial, apart from what the space varies."""
        return self.settings["finetune"]

    @property
    def num_trials(self) -> int | None:
        """Trials in all, as the last start asked for them; None of a population, whose members are trials of each generation."""
        if self.settings.get("scheduler") == "pbt":
            return None
        asked = [start["settings"]["num_trials"] for start in self.starts if "num_trials" in start.get("settings", {})]
        return max(int([self.settings.get("num_trials") or 0, *asked][-1]), len(self.records))


def read_campaign(folder: str) -> Campaign:
    """Raises DataError where the folder is not that of a search."""
    folder = absolute(folder)
    text, settings = _settings(folder)
    return Campaign(
        folder=folder,
        settings=settings,
        settings_text=text,
        space=_space(settings),
        records=read_records(folder),
        result=read_result(folder) or {},
        winner=_winner(folder),
        starts=_starts(folder),
    )


def _settings(folder: str) -> tuple[str, dict[str, Any]]:
    uri = join(folder, "settings.yaml")
    try:
        data = read_bytes(uri)
    except MissingError:
        raise DataError(f"{folder}: not the folder of a search (settings.yaml is missing)") from None
    try:
        settings = parse_yaml(data)
    except ValueError as error:
        raise DataError(
            f"{uri}: damaged ({one_line(error)}); start the search's command again, which mends it"
        ) from None
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(name), dict) for name in ("finetune", "space")
    ):
        raise DataError(f"{folder}: the run in this folder is not a search (its settings have no finetune and space)")
    return data.decode(errors="replace"), settings


def _space(settings: dict[str, Any]) -> Space:
    """What this version understands of the space; values of the rest are shown as they are."""
    space: Space = {}
    for name, values in settings["space"].items():
        try:
            space[name] = Dimension.model_validate(values)
        except pydantic.ValidationError as error:
            warn(
                f"setting 'space.{name}' of the search: not known to this version ({one_line(error.errors()[0]['msg'])})"
            )
    return space


def _winner(folder: str) -> dict[str, Any]:
    uri = join(folder, "winner", "result.json")
    if not exists(uri):
        return {}
    try:
        found = read_json(uri)
        if isinstance(found, dict) and found.keys() >= _WINNER:
            return found
        problem = f"{uri}: not the result of a winner"
    except DamagedError as error:
        problem = str(error)
    warn(f"{problem}; the report leaves the winner out")
    return {}


def _starts(folder: str) -> list[dict[str, Any]]:
    """What the driver's logs begin with, the oldest first. A log that cannot be read costs no report."""
    found = []
    try:
        for name in sorted(list_files(join(folder, "logs"), "-driver.jsonl")):
            lines = [json.loads(line) for line in read_bytes(name).splitlines()[:_FIRST_LINES]]
            told = {line["message"]: line for line in lines}
            found.append(told["started"] | {"settings": told.get("settings", {}).get("settings", {})})
    except (StorageError, ValueError, KeyError, TypeError) as error:
        warn(f"{join(folder, 'logs')}: {one_line(error)}; the report says less of where the search ran")
    return found
