"""Runs: what they are called, where they are kept, and with which settings they go on.

A run is named by its id. Same storage and same id: the run goes on from its last checkpoint, or, once finished, is simply
returned. Another id: another run.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from pipeline.config import Settings, Uri, flatten, flatten_values, to_yaml
from pipeline.errors import DamagedError, MissingError, SettingsError, warn
from pipeline.storage import absolute, exists, join, preflight, read_bytes, read_json, write_bytes
from pipeline.text_files import parse_yaml

# What may differ when a run goes on: where and how fast it runs, not what it computes.
_MAY_CHANGE = (
    *("run.", "workers.", "ray.", "tracking.", "winner.", "num_readers", "window_mb"),
    *("optimiser.max_bad_steps", "finetune.optimiser.max_bad_steps"),
    *(
        "num_trials",
        "add_trials",
        "time_budget_s",
        "budget_hours",
        "max_concurrent",
        "cpus_per_trial",
        "gpus_per_trial",
        "trial_labels",
        "start_timeout_s",
    ),
)
_NAMED_BY_PEOPLE = ("space.",)
_SETTINGS = "settings.yaml"


class RunSettings(Settings):
    """Where a run is kept and what it is called."""

    storage: Uri = "runs"
    """URI of the folder that holds the runs."""
    run_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")
    """Name of the run. Give the same name again to continue the run; none makes a new name."""


def new_run_id(kind: str) -> str:
    """A fresh id such as pretrain-20260131-154501-a1b2."""
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def run_folder(name: str, storage: str) -> str:
    """URI of the folder of a run that is named by it, or by its id in `storage`. Raises MissingError where it is not there."""
    folder = absolute(name) if "/" in name or exists(name) else join(absolute(storage), name)
    if not exists(folder):
        raise MissingError(f"{folder}: no such run; give its folder, or its id and where it is (--storage)")
    return folder


def started_with(run: RunSettings) -> dict[str, Any]:
    """The settings that the run was started with, by dotted name; none of a new run."""
    if run.run_id is None:
        return {}
    folder = join(absolute(run.storage), run.run_id)
    return flatten_values(saved_settings(folder, say=lambda _: None) or {})  # `open_run` says what is wrong with them


def open_run(settings: Settings, run: RunSettings, run_id: str) -> tuple[str, dict[str, Any] | None]:
    """The run's folder, and its result where it has finished. Saves the settings; refuses other settings for an old id."""
    preflight(run.storage, write=True)
    folder = join(absolute(run.storage), run_id)
    old = saved_settings(folder)
    if old is not None:
        changed = changes(old, settings)
        if changed:
            name, (before, now) = next(iter(changed.items()))
            raise SettingsError(
                f"run '{run_id}' in {run.storage} was started with {name} = {before!r}, now it is {now!r}; use the same settings to go "
                "on with it, or another run.run_id"
            )
    else:
        write_bytes(join(folder, _SETTINGS), to_yaml(settings).encode())
    return folder, read_result(folder)


def changes(old: dict[str, Any], settings: Settings) -> dict[str, tuple[Any, Any]]:
    """What makes another run of one with settings `old`, as a file gives them: {name: (then, now)}.

    A setting that only one of the two has came or went with a version of the code, but for names that people give (of a search's space),
    and for groups of settings that were none.
    """
    now, then = flatten(settings), flatten_values(old)
    changed = {name: (then[name], now[name]) for name in now.keys() & then.keys() if then[name] != now[name]}
    for one, other, is_new in ((now, then, True), (then, now, False)):
        for name in one.keys() - other.keys():
            group = next((each for each in _groups(name) if each in other), None)
            if group is not None:
                changed[group] = ("none", "given") if is_new else ("given", "none")
            elif name.startswith(_NAMED_BY_PEOPLE) and one[name] not in (None, {}):
                changed[name] = ("not given", one[name]) if is_new else (one[name], "not given")
    return {name: changed[name] for name in sorted(changed) if not name.startswith(_MAY_CHANGE)}


def _groups(name: str) -> list[str]:
    """Names of the groups that a setting is in."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def read_result(folder: str) -> dict[str, Any] | None:
    """The result of a run that has finished. A damaged one does not count: it is made again from the last checkpoint."""
    uri = join(folder, "result.json")
    if not exists(uri):
        return None
    try:
        result = read_json(uri)
        if isinstance(result, dict):
            return result
        problem = f"{uri}: damaged"
    except DamagedError as error:
        problem = str(error)
    warn(f"{problem}; the run counts as not finished")
    return None


def saved_settings(folder: str, say: Callable[[str], None] = warn) -> dict[str, Any] | None:
    """The settings that the run in a folder was started with, as its file gives them; None for a new run, or where they can no longer be
    read, which `say` is told."""
    uri = join(folder, _SETTINGS)
    if not exists(uri):
        return None
    try:
        old = parse_yaml(read_bytes(uri))
        if isinstance(old, dict):
            return old
        problem = "it is empty" if old is None else f"it holds a {type(old).__name__}"
    except ValueError as error:
        problem = str(error)
    say(f"{uri}: damaged ({problem}); the settings given now are taken for those of the run, and kept in its place")
    return None
