"""What the folders of runs say of themselves: settings, what ran, metrics, their course, and where their model is."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pydantic

from pipeline.config import flatten, flatten_values
from pipeline.errors import DamagedError, DataError, SettingsError
from pipeline.models.checkpoints import META, read_part
from pipeline.models.kept import checkpoints_in, read_best, read_history
from pipeline.runs import read_result
from pipeline.search.records import read_records
from pipeline.search.space import PRETRAIN, trial_pretraining, trial_settings
from pipeline.storage import exists, join, list_files, read_bytes, read_json
from pipeline.text_files import parse_yaml
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe

# By what settings they alone have.
_KINDS = {"study": "grids", "search": "space", "evaluate": "models", "pretrain": "objective", "finetune": "head"}
# Where a run is and where it is recorded, not what it is.
_PLACES = ("run.", "tracking.", "ray.", "output", "title")
_ORIGIN = {
    "mlflow.source.git.commit": "git commit",
    "equihand.git_dirty": "changes that are not committed",
    "equihand.command": "command",
    "equihand.python": "Python",
    "equihand.packages": "packages",
    "equihand.machine": "machine",
}
FRAMES = "digest of the frames"
"""What `RunFolder.origin` calls it."""


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it."""

    name: str
    uri: str
    kind: str
    settings: dict[str, Any]
    """By dotted name, without those that say where the run is kept and recorded. Of a search those of its best trial, as of a
    fine-tuning (and `pretrain.`, of the pretraining before it), and what it searched under `search.`."""
    origin: dict[str, str] = field(default_factory=dict)
    """Digest of the frames, git commit, command ..., as far as they are written down."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Finite numbers of its result, or of its last checkpoint."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics at epochs and checkpoints, in order of "step"."""
    model: str | None = None
    """URI of its pose model."""
    note: str = ""


def read_runs(folders: Sequence[str]) -> list[RunFolder]:
    """The runs in some folders; an evaluation of several models gives several. Raises SettingsError where one is not that of a
    run."""
    return [run for folder, name in names_of(folders).items() for run in _read(folder, name)]


def names_of(folders: Sequence[str]) -> dict[str, str]:
    """{folder: name}: the last parts of their URIs, as many as tell them apart. Raises SettingsError for one given twice."""
    twice = next((folder for place, folder in enumerate(folders) if folder in folders[:place]), None)
    if twice is not None:
        raise SettingsError(f"setting 'runs': {twice} is given twice")
    parts = {folder: folder.rstrip("/").split("/") for folder in folders}
    names = {}
    for folder, own in parts.items():
        num = next(n for n in range(1, len(own) + 1) if sum(each[-n:] == own[-n:] for each in parts.values()) == 1)
        names[folder] = "/".join(own[-num:])
    return names


def _read(folder: str, name: str) -> list[RunFolder]:
    settings = _settings(folder)
    result = read_result(folder)
    kind = (result or {}).get("kind") or next((kind for kind, mark in _KINDS.items() if mark in settings), "run")
    if kind == "evaluate":
        return _evaluated(folder, name, settings)
    if kind == "study":
        return [RunFolder(name, folder, kind, _own(settings), note="a study: its own report compares its cells")]
    logged = _logged(folder)
    history = _history(folder, logged)
    if kind == "search":
        settings, history = _best_trial(folder, settings, result)
    model, note = None, ""
    if result is None:
        is_part = not exists(join(folder, "settings.yaml"))
        state = "a study's cell or a search's trial" if is_part else "has not finished (no result.json)"
        last = f"its metrics are those of step {history[-1]['step']:,.0f}" if history else "it has no checkpoint yet"
        note = f"{state}: {last}"
        metrics = _numbers(history[-1]) if history else {}
        if kind in ("finetune", "search") and history:
            try:
                model = read_best(folder)[0]
            except DataError as error:
                note = f"{note}; {error}"
    else:
        own: dict[str, Any] = {name: result[name] for name in ("score", "wall_s", "num_labels") if name in result}
        metrics = _numbers({**result.get("metrics", {}), **own})
        if kind in ("finetune", "search"):
            model = folder if result.get("best_checkpoint") else None
    origin = _origin(logged, result or {})
    return [RunFolder(name, folder, kind, _own(settings), origin, metrics, history, model, note)]


def _settings(folder: str) -> dict[str, Any]:
    """What the run was started with; a cell of a study and a trial of a search have it in their checkpoints."""
    uri = join(folder, "settings.yaml")
    if not exists(uri):
        for checkpoint in reversed(checkpoints_in(folder)):
            with suppress(DamagedError):
                found: dict[str, Any] = read_part(checkpoint, META).get("settings", {})
                return found
        raise SettingsError(f"{folder}: not the folder of a run: it has no settings.yaml")
    try:
        values = parse_yaml(read_bytes(uri))
    except ValueError as error:
        raise SettingsError(f"{uri}: damaged ({error})") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{uri}: damaged (it holds no settings)")
    return values


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flatten_values(settings).items() if not name.startswith(_PLACES)}


def _evaluated(folder: str, name: str, settings: dict[str, Any]) -> list[RunFolder]:
    """The models and encoders of an evaluation, each as a run."""
    uri = join(folder, "metrics.json")
    if not exists(uri):
        return [RunFolder(name, folder, "evaluate", _own(settings), note="has not finished (no metrics.json)")]
    outcome = read_json(uri)
    models, encoders = (settings.get(each) or {} for each in ("models", "encoders"))
    shared = {key: value for key, value in settings.items() if key not in ("models", "encoders", "baseline")}
    found = []
    for each, model in {**encoders, **models}.items():
        metrics = {f"probe_{key}": value for key, value in outcome.get("probes", {}).get(each, {}).items()}
        metrics |= outcome["models"].get(each, {}).get("metrics", {})
        found.append(
            RunFolder(
                name=f"{name}/{each}" if len(models) + len(encoders) > 1 else name,
                uri=folder,
                kind="evaluate",
                settings=_own({**shared, "model": model}),
                origin={FRAMES: outcome.get("frame_set_digest", "")},
                metrics=_numbers(metrics),
                model=model if each in models else None,
            )
        )
    return found


def _best_trial(
    folder: str, settings: dict[str, Any], result: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Settings of a search's best trial, with what it searched under "search"; and, of one that is under way, how that trial went."""
    values: dict[str, Any] = (result or {}).get("best_values", {})
    history: list[dict[str, float]] = []
    if result is None:
        scored = [(record.value, record.number, record) for record in read_records(folder) if record.value is not None]
        values, history = (min(scored)[2].values, min(scored)[2].history) if scored else ({}, [])
    base, before = settings.get("finetune", {}), settings.get("pretrain")
    try:
        trained = flatten(trial_settings(FinetuneSettings.model_validate(base), values))
        if before is not None:
            pretrained = flatten(trial_pretraining(PretrainRecipe.model_validate(before), values))
            trained |= {f"{PRETRAIN}{name}": value for name, value in pretrained.items()}
    except (pydantic.ValidationError, KeyError):  # of another version of the code
        trained = flatten_values({**base, **({"pretrain": before} if before else {})}) | values
    elsewhere = ("finetune", "pretrain", *(place.rstrip(".") for place in _PLACES))
    own = {name: value for name, value in settings.items() if name not in elsewhere}
    own["space"] = {
        name: {key: value for key, value in dimension.items() if value not in (None, {})}
        for name, dimension in own.get("space", {}).items()
    }
    return trained | {"search": own}, history


def _logged(folder: str) -> list[dict[str, Any]]:
    """Lines of the logs of the driver and of the first worker, in the order of their starts."""
    lines: list[dict[str, Any]] = []
    for uri in list_files(join(folder, "logs"), ("-driver.jsonl", "-worker-0.jsonl")):
        for text in read_bytes(uri).decode(errors="replace").splitlines():
            with suppress(ValueError):  # a process that was killed may have left half a line
                lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def _origin(logged: Iterable[Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    digest = result.get("frame_set_digest") or ", ".join(each["digest"] for each in result.get("frame_sets", []))
    if digest:
        found[FRAMES] = [digest]
    for line in logged:
        if line.get("message") == "settings" and not digest:
            told = line.get("frame_set_digest") or line.get("tags", {}).get("frame_set_digest")
            found.setdefault(FRAMES, []).extend([told] if told else [])
        if line.get("message") == "provenance":
            for name, label in _ORIGIN.items():
                found.setdefault(label, []).append(str(line.get(name, "")))
    # A run that went on may have done so with other code.
    joined = {label: ", then ".join(dict.fromkeys(filter(None, values))) for label, values in found.items()}
    return {label: text for label, text in joined.items() if text}


def _history(folder: str, logged: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Of the checkpoints, and of the epochs between them as the log has them."""
    points: dict[float, dict[str, float]] = {}
    epochs = [line["metrics"] for line in logged if line.get("message") == "epoch" and "metrics" in line]
    for metrics in [*epochs, *read_history(folder)]:
        numbers = _numbers(metrics)
        if "step" in numbers:
            points[numbers["step"]] = points.get(numbers["step"], {}) | numbers
    return [points[step] for step in sorted(points)]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
