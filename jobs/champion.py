"""Versions of a model in MLflow's registry: which is the champion, and back to the one before.

    python -m jobs.champion hand-pose                        # lists them
    python -m jobs.champion hand-pose --promote 4            # version 4 becomes the champion, whatever its verdict
    python -m jobs.champion hand-pose --rollback true        # the one before becomes the champion again

Searches register their winners (`--winner.register_as hand-pose`). `mlflow.pyfunc.load_model("models:/hand-pose@champion")` loads the one in use.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from jobs.runtime import Job, run_job
from jobs.terminal import TerminalProgress
from pipeline.campaign.registration import metrics_of, verdict_of
from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.evaluation.metric_names import metric_name
from pipeline.progress import SILENT, Progress
from pipeline.registry import NAME, Version, promote, rollback, versions
from pipeline.tracking import TrackingSettings

_SHOWN = ("pa_epe_mm", "constant_pa_epe_mm", "pa_skill", "root_relative_epe_mm", "epe_2d")


class ChampionSettings(Settings):
    """Settings of the job."""

    name: str = Field(pattern=NAME)
    """Name of the registered model. It may also stand first, without `--name`."""
    promote: int | None = Field(default=None, ge=1)
    """Version that becomes the champion."""
    rollback: bool = False
    """Make the version champion again that was it before this one."""
    tracking: TrackingSettings = TrackingSettings()
    """MLflow, whose registry has the model."""

    @model_validator(mode="after")
    def _one_change(self) -> "ChampionSettings":
        if self.rollback and self.promote is not None:
            raise ValueError("setting 'rollback': not together with 'promote'")
        return self


def run(settings: ChampionSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; {"name", "champion": number or None, "before": that until now, where it changed, "versions": [{"version", "aliases",
    "created_at", "metrics", "split", "verdict"}]}, the newest first.

    Raises SettingsError where there is no such model or version, or no champion before.
    """
    name, changed = settings.name, {}
    said = ""
    if settings.promote is not None:
        before = promote(settings.tracking, name, settings.promote)
        changed = {"before": before}
        said = f"version {settings.promote} is the champion now" + (f", after version {before}" if before else "")
    elif settings.rollback:
        left, back = rollback(settings.tracking, name)
        changed = {"before": left}
        said = f"version {back} is the champion again, in place of version {left}"
    found = versions(settings.tracking, name)
    if not found:
        raise SettingsError(
            f"'{name}' has no versions at {settings.tracking.uri}; a search with --winner.register_as {name} makes one"
        )
    if isinstance(progress, TerminalProgress):
        _show(name, found, progress)
        progress.note(said) if said else None
    champion = next((version.number for version in found if version.is_champion), None)
    return {"name": name, "champion": champion, **changed, "versions": [_as_json(version) for version in found]}


def _as_json(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "created_at": version.created_at.isoformat(timespec="seconds"),
        "metrics": metrics_of(version),
        "split": version.tags.get("equihand.split"),
        "verdict": verdict_of(version),
    }


def _show(name: str, found: Sequence[Version], progress: TerminalProgress) -> None:
    every = [metrics_of(version) for version in found]
    keys = [key for key in _SHOWN if any(key in metrics for metrics in every)]
    rows = [
        [
            version.number,
            ", ".join(version.aliases),
            f"{version.created_at:%Y-%m-%d %H:%M}",
            *(round(metrics[key], _named(key)[1]) if key in metrics else None for key in keys),
            f"{version.tags.get('equihand.test_digest', '')[:8]} {version.tags.get('equihand.split', '')}",
            version.tags.get("equihand.search", ""),
        ]
        for version, metrics in zip(found, every, strict=True)
    ]
    columns = ["version", "alias", "since (UTC)", *(_named(key)[0] for key in keys), "tested on", "search"]
    progress.table(name, columns, rows)
    for version in found:
        if version.aliases and (verdict := verdict_of(version)):
            progress.note(f"version {version.number}: {verdict}")


def _named(key: str) -> tuple[str, int]:
    """Column title and decimals of a metric."""
    known = metric_name(key.removeprefix("constant_"))
    label = f"constant pose's {known.label}" if key.startswith("constant_") else known.label
    return (f"{label} ({known.unit})" if known.unit else label), known.decimals


@dataclass(frozen=True)
class _ChampionJob(Job[ChampionSettings]):
    def load(self, argv: Sequence[str] | None) -> ChampionSettings:
        """The name may stand first, before all settings."""
        given = list(sys.argv[1:] if argv is None else argv)
        if given and not given[0].startswith("-"):
            given = [f"--name={given[0]}", *given[1:]]
        return super().load(given)


JOB = _ChampionJob("champion", ChampionSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
