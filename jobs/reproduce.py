"""Do a finished run again, with its own settings on the same frames, and compare what comes out.

    python -m jobs.reproduce runs/finetune-1                  # the run's folder, on any storage; here, on a Ray of its own
    python -m jobs.reproduce s3://bucket/runs/search-2 --run_id search-2-again --ray.address auto

The new run lies beside the old one. It is refused where the frame set is no longer the one that the run has read. On the same kind of
machine with as many workers a run in float32 gives the same numbers; others differ a little, and the table says by how much.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic import Field

from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError, TrainingError, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.mixing import uris_of
from pipeline.progress import SILENT, Progress
from pipeline.runs import read_result
from pipeline.storage import absolute, join, preflight, read_bytes
from pipeline.text_files import parse_yaml

_KINDS = ("pretrain", "finetune", "search")


class ReproduceSettings(Settings):
    """Settings of the job."""

    run: Uri
    """URI of the run's folder. It may also stand first, without `--run`."""
    run_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")
    """Name of the new run. none: that of the old one with "-again"."""
    tolerance: float | None = Field(default=None, ge=0)
    """Largest relative difference of the score (of a pretraining its loss) that counts as reproduced; a larger one ends the job
    with exit code 1. none: it is only told."""


def run(settings: ReproduceSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; {"run", "again", "metrics": {name: [then, now]}, "relative_difference"} of the score.

    Raises SettingsError where the folder holds no finished run of a kind that can be done again, DataError where its frames are
    others now, TrainingError where the score differs by more than the tolerance.
    """
    folder = absolute(settings.run)
    preflight(folder)
    result = read_result(folder)
    if result is None or result.get("kind") not in _KINDS:
        raise SettingsError(f"{folder}: no finished run of {', '.join(_KINDS)}")
    definition: Job[Any] = importlib.import_module(f"jobs.{result['kind']}").JOB
    given = read_settings(folder, definition)
    check_frames(given, result)
    storage, _, name = folder.rpartition("/")
    again = settings.run_id or f"{name}-again"
    if read_result(join(storage, again)) is not None:
        warn(f"{join(storage, again)}: done again before; its result is shown (--run_id NAME does it once more)")
    changes = {"run": given.run.model_copy(update={"storage": storage, "run_id": again})}
    if result["kind"] == "search":
        changes |= _as_it_ended(given, result)
    now = definition.run(given.model_copy(update=changes), progress, session)
    metrics = compared(_metrics(result), _metrics(now))
    score = next((each for each in ("score", "loss") if each in metrics), next(iter(metrics)))
    then, found = metrics[score]
    difference = abs(found - then) / max(abs(then), 1e-12)
    if isinstance(progress, TerminalProgress):
        rows = [
            [each, f"{a:.6g}", f"{b:.6g}", "same" if a == b else f"{(b - a) / max(abs(a), 1e-12):+.2e}"]
            for each, (a, b) in metrics.items()
        ]
        progress.table(f"{name} and {now['run_id']}", ["metric", "then", "now", "difference"], rows)
    if settings.tolerance is not None and difference > settings.tolerance:
        raise TrainingError(
            f"'{score}' was {then:.6g} and is {found:.6g} now: they differ by {difference:.1e}, more than {settings.tolerance:g}"
        )
    return {"run": folder, "again": join(storage, now["run_id"]), "metrics": metrics, "relative_difference": difference}


def _as_it_ended(given: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    """What later starts of a search may have changed: how many trials it has, and what became of its winner."""
    changes: dict[str, Any] = {}
    if given.scheduler != "pbt":
        changes = {"num_trials": len(result["trials"]), "add_trials": 0}
    winner: dict[str, Any] = {"register_as": None}  # the same model is no new version of itself
    if found := result.get("winner"):
        test, arms = found["test"], found["identity"]["arms"]
        winner |= {"seeds": len(found["arms"]["winner"]["seeds"]), "split": test["split"], "protocol": test["protocol"]}
        winner |= {"epochs": arms.get("default", arms["winner"])["epochs"], "frames": None}
    return changes | {"winner": given.winner.model_copy(update=winner)}


def read_settings(folder: str, definition: Job[Any]) -> Any:
    """The settings that a run was started with. Raises SettingsError where this version does not take them."""
    uri = join(folder, "settings.yaml")
    try:
        return definition.settings.model_validate(parse_yaml(read_bytes(uri)))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"{uri}: this version does not take setting '{name}' ({first['msg']}); use that of the run"
        ) from None
    except ValueError as error:
        raise SettingsError(f"{uri}: damaged ({error})") from None


def check_frames(settings: Any, result: Mapping[str, Any]) -> None:
    """Raises DataError where a frame set is not the one that the run has read."""
    known = {each["uri"]: each["digest"] for each in result.get("frame_sets", [])}
    recipe = getattr(settings, "finetune", settings)
    for uri in uris_of(recipe.frame_set):
        digest = FrameSet.open(uri).manifest.digest
        then = known.get(uri, result.get("frame_set_digest"))
        if then is not None and digest != then:
            raise DataError(f"{uri}: its frames are others than those of the run (digest {digest}, then {then})")


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run; of a search also the means of its winner and its default settings on the test split."""
    arms = (result.get("winner") or {}).get("arms", {})
    tested = {f"{arm}_test_{name}": value for arm, of in arms.items() for name, value in of["mean"].items()}
    return {**result["metrics"], **tested}


def compared(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """{name: (then, now)} of the numbers that both have and that do not tell of time."""
    timed = ("seconds", "per_second", "_s", "wall")
    return {
        name: (float(value), float(now[name]))
        for name, value in then.items()
        if isinstance(value, int | float) and isinstance(now.get(name), int | float) and not name.endswith(timed)
    }


@dataclass(frozen=True)
class _ReproduceJob(Job[ReproduceSettings]):
    def load(self, argv: Sequence[str] | None) -> ReproduceSettings:
        """The run may stand first, before all settings."""
        given = list(sys.argv[1:] if argv is None else argv)
        if given and not given[0].startswith("-"):
            given = [f"--run={given[0]}", *given[1:]]
        return super().load(given)


JOB = _ReproduceJob("reproduce", ReproduceSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
