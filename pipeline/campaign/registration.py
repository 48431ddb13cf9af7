"""A campaign's model in MLflow's registry: the champion if it is surely better than the one before on the same frames, else a challenger.

The files of a version are an MLflow model, with the checkpoint (`checkpoint/`) and the card (`MODEL_CARD.md`) beside it. So every later
campaign can test it on its own frames: a champion that was judged on others is judged anew, never by its old numbers.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.campaign.held_out import ModelErrors
from pipeline.campaign.judgement import comparison, is_surely_better
from pipeline.errors import EquihandError
from pipeline.evaluation.statistics import MIN_CLIPS
from pipeline.export.export import ExportSettings, export
from pipeline.models.checkpoints import CHECKSUMS, META, MODEL
from pipeline.registry import CHALLENGER, CHAMPION, Version
from pipeline.reports.verdict import Comparison
from pipeline.tracking import StoredRun, TrackingSettings

CHECKPOINT = "checkpoint"
"""Folder of a version's files."""
_KEY, _VERDICT, _METRIC = "equihand.winner", "equihand.verdict", "equihand.metric."

Measure = Callable[[Version], ModelErrors]
"""Tests a registered version on the candidate's frames."""


def register(
    name: str,
    tracking: TrackingSettings,
    run: StoredRun,
    key: str,
    candidate: ModelErrors,
    error: str,
    tags: Mapping[str, str],
    measure: Measure,
) -> dict[str, Any]:
    """Register a model, once, and give it the alias that it deserves.

    run: which keeps its files. key: names this very model; a version that has it is not made again. error: name of the one that decides.
    The result is plain JSON: {"name", "version", "alias", "uri", "verdict", "champion_before": {"version", "metrics",
    "was_tested_on_these"} or None}. Raises EquihandError where MLflow does not answer.
    """
    version = next((each for each in registry.versions(tracking, name) if each.tags.get(_KEY) == key), None)
    if version is None:
        with tempfile.TemporaryDirectory(prefix="equihand-model-") as folder:
            packed = _packed(candidate.model, name, Path(folder))
            artifacts = f"model-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}"
            version = registry.add_version(
                tracking, name, run, artifacts, packed, {**tags, **_tags(candidate), _KEY: key}
            )
    while True:
        before = registry.champion(tracking, name)
        if before is not None and before.number == version.number:  # it was cut short after that
            return _outcome(version, CHAMPION, verdict_of(version), None)
        known, verdict, is_better = _judged(version, candidate, before, error, measure)
        # The verdict comes first, for whoever sees the alias.
        registry.add_tags(tracking, version, {_VERDICT: verdict})
        if not is_better:
            registry.challenge(tracking, version)
            return _outcome(version, CHALLENGER, verdict, known)
        now = registry.champion(tracking, name)
        if (now and now.number) == (before and before.number):  # else another campaign was faster
            registry.promote(tracking, name, version.number)
            return _outcome(version, CHAMPION, verdict, known)


def _judged(
    version: Version, candidate: ModelErrors, before: Version | None, error: str, measure: Measure
) -> tuple[dict[str, Any] | None, str, bool]:
    """What is known of the champion before; the verdict in words; whether the version becomes champion."""
    own = candidate.errors[error]
    name = f"version {version.number}"
    beats_constant, sentence = False, f"of {name} it is not known whether it beats one fixed hand."
    if own.constant is not None:
        against_constant = comparison(name, [own], "the constant pose", [own.constant], error)
        beats_constant, sentence = (
            is_surely_better(against_constant),
            _said(against_constant.against_constant(), against_constant),
        )
    if before is None:
        what = "first champion" if beats_constant else "challenger, though there is no champion"
        return None, f"{what}: {sentence}", beats_constant
    known: dict[str, Any] = {
        "version": before.number,
        "metrics": {},
        "was_tested_on_these": _was_tested_like(before, candidate),
    }
    try:
        errors = measure(before)
        against = comparison(
            name, [own], f"the champion (version {before.number})", [errors.errors[error].means], error
        )
    except EquihandError as problem:
        remedy = f"`python -m jobs.champion {version.name} --promote {version.number}` makes this one the champion"
        return (
            known,
            f"challenger: version {before.number}, the champion, cannot be tested on these frames ({problem}); {remedy}",
            False,
        )
    known["metrics"] = errors.metrics
    is_better = is_surely_better(against) and beats_constant
    words = _said(against.against_model(), against)
    if not known["was_tested_on_these"]:
        words += " The champion had been tested on other frames, and was tested anew on these."
    if errors.frame_set_digest != candidate.frame_set_digest:
        words += " It was trained on another frame set, which may hold some of these frames."
    if not beats_constant:
        words += f" But {sentence}"
    return known, f"{CHAMPION if is_better else CHALLENGER}: {words}", is_better


def _said(sentence: str, against: Comparison) -> str:
    """With what the numbers lack."""
    few = f" With fewer than {MIN_CLIPS} test clips this is not sure."
    return sentence if against.interval_percent else sentence + few


def _was_tested_like(version: Version, candidate: ModelErrors) -> bool:
    about = {name: version.tags.get(f"equihand.{name}") for name in ("test_digest", "split", "protocol")}
    return candidate.about.is_like(about)


def _outcome(version: Version, alias: str, verdict: str, before: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.number,
        "alias": alias,
        "uri": f"models:/{version.name}/{version.number}",
        "verdict": verdict,
        "champion_before": before,
    }


def _tags(candidate: ModelErrors) -> dict[str, str]:
    """On what it was tested, and with what result."""
    about = candidate.about
    return {
        "equihand.frame_set": about.frame_set,
        "equihand.test_digest": about.test_digest,
        "equihand.split": about.split,
        "equihand.protocol": about.protocol,
        "equihand.num_test_frames": str(about.num_frames),
        **{f"{_METRIC}{name}": f"{value:.6g}" for name, value in candidate.metrics.items()},
    }


def metrics_of(version: Version) -> dict[str, float]:
    """The metrics of a version on the test split of its campaign, by the names of metric_names.METRICS."""
    return {key.removeprefix(_METRIC): float(value) for key, value in version.tags.items() if key.startswith(_METRIC)}


def verdict_of(version: Version) -> str:
    """Why a version has the alias that it got, in words; empty where it is none of ours."""
    return version.tags.get(_VERDICT, "")


def _packed(model: str, name: str, folder: Path) -> Path:
    """The files of a version, below a local folder."""
    export(ExportSettings(model=model, output=str(folder), name=name, onnx=False))
    packed = folder / "mlflow"
    (packed / CHECKPOINT).mkdir()
    for file in (MODEL, META, CHECKSUMS):
        (folder / file).rename(packed / CHECKPOINT / file)
    (folder / "MODEL_CARD.md").rename(packed / "MODEL_CARD.md")
    return packed
