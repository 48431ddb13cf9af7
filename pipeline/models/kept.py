"""The checkpoints that a training keeps in a folder of storage: the newest two, and the best.

    <folder>/checkpoint_000007/     see checkpoints.py; complete once checksums.json is there

Training goes on from the newest one that is as it was written: one that was cut off or changed costs the steps since the
one before it. Each checkpoint brings the metrics of all earlier ones along, so nothing else has to be kept beside them, and
going back to an older one forgets what came after it. Neither Ray Train nor Tune knows of them.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DamagedError, DataError, FullError, StorageError, warn
from pipeline.models.checkpoints import (
    CHECKSUMS,
    HISTORY,
    META,
    SaveCheckpoint,
    check_checkpoint,
    read_checkpoint,
    read_part,
    seal,
)
from pipeline.run_log import log
from pipeline.storage import (
    copy_from_local,
    copy_to_local,
    delete,
    exists,
    is_local,
    join,
    list_folders,
    local_path,
    read_json,
    with_patience,
    write_bytes,
    write_json,
)

_NEWEST_KEPT = 2  # so that there is one before the newest
_NUMBERED = re.compile(r"checkpoint_(\d+)")
_OLDER = re.compile(r"checkpoint_\d{4}-|step-\d+")  # as Ray Train and studies named them


class OutOfTime(Exception):
    """The given time is over, and the training has kept where it is."""


class Kept:
    """A training's checkpoints."""

    def __init__(self, uri: str, num_best: int = 1, deadline: float | None = None) -> None:
        """num_best: how many are kept besides the newest two. deadline: seconds since 1970 after which `keep` ends the work."""
        self.uri, self.num_best, self.deadline = uri, num_best, deadline
        self.newest: str | None = None
        """URI of the checkpoint that was resumed from or kept last."""
        self.history: list[dict[str, float]] = []
        """Metrics at each checkpoint so far."""
        self.recent: list[dict[str, Any]] = []
        """What was reported last when the checkpoint that was resumed from was begun."""
        self._scores: dict[str, float | None] = {}
        self._before_s = 0.0
        self._started = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Time spent, in all processes that worked on it, up to their last checkpoint."""
        return self._before_s + time.monotonic() - self._started

    def resume(self, directory: str | Path, say: Callable[[str], None] = warn) -> Path | None:
        """A local directory with the newest whole checkpoint, to go on from; None where there is none yet.

        directory: for copies from storage. say: receives what is wrong with newer ones. Raises DataError where there are
        checkpoints, but all are damaged.
        """
        problems: list[str] = []
        for uri in reversed(checkpoints_in(self.uri)):
            try:
                found = fetch(uri, directory)
                past = read_json(str(found / HISTORY)) if (found / HISTORY).exists() else {}
            except DamagedError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"{problem}; going on from the checkpoint before it, {uri}")
            self.newest = uri
            self.history, self._before_s = past.get("metrics", []), past.get("wall_s", 0.0)
            self.recent = past.get("recent", self.history[-1:])
            return found
        if problems:
            raise DataError(
                f"{self.uri}: none of its checkpoints can be read: {'; '.join(problems)}; put copies of these files back, or "
                "delete these checkpoints' folders to start anew"
            )
        return None

    def keep(
        self, save: SaveCheckpoint, metrics: dict[str, Any], recent: Sequence[dict[str, Any]] = (), last: bool = False
    ) -> None:
        """Save a checkpoint of now. metrics: "score", smaller is better, says which are the best; without it, it is none of
        them. recent: the last that was reported, of which it is not known that it has arrived. Raises OutOfTime after the
        deadline, unless it is the last one."""
        match = _NUMBERED.fullmatch(_name(self.newest)) if self.newest else None
        uri = join(self.uri, f"checkpoint_{int(match[1]) + 1 if match else 1:06d}")
        self.history.append({key: value for key, value in metrics.items() if isinstance(value, int | float)})
        with tempfile.TemporaryDirectory() as directory:
            save(Path(directory))
            past = {"metrics": self.history, "wall_s": round(self.wall_s, 1), "recent": [*recent] or self.history[-1:]}
            write_json(str(Path(directory, HISTORY)), past)
            seal(directory, HISTORY)
            try:
                with_patience(lambda: _upload(Path(directory), uri))
            except FullError:
                with contextlib.suppress(StorageError):  # a part of it would take what room there is
                    delete(uri)
                raise
        self.newest = uri
        log("checkpoint", uri=uri, metrics=self.history[-1])
        self._scores[uri] = metrics.get("score")
        self._delete_others()
        if self.deadline is not None and time.time() > self.deadline and not last:
            raise OutOfTime

    def _delete_others(self) -> None:
        assert self.newest is not None
        there = checkpoints_in(self.uri, unfinished=True)
        known = there[: there.index(self.newest) + 1]  # what comes after is damaged: it was not resumed from
        for uri in known:
            if uri not in self._scores:
                self._scores[uri] = score_of(uri)
        scored = [(score, uri) for uri in known if (score := self._scores[uri]) is not None]
        kept = {*known[-_NEWEST_KEPT:], *(uri for _, uri in sorted(scored)[: self.num_best])}
        for uri in there:
            if uri not in kept:
                delete(uri)


def checkpoints_in(uri: str, unfinished: bool = False) -> list[str]:
    """URIs of the checkpoints in a folder, oldest first. unfinished: also those whose upload broke off."""
    names = [_name(folder) for folder in list_folders(uri)]
    numbered = sorted((int(match[1]), name) for name in names if (match := _NUMBERED.fullmatch(name)))
    older = sorted(name for name in names if _OLDER.match(name))
    found = [join(uri, name) for name in [*older, *(name for _, name in numbered)]]
    return [each for each in found if unfinished or any(exists(join(each, file)) for file in (META, CHECKSUMS))]


def fetch(uri: str, directory: str | Path) -> Path:
    """A local directory with a checkpoint, itself or a copy below `directory`. Raises DamagedError where it is not whole."""
    if is_local(uri):
        found = Path(local_path(uri))
    else:
        found = Path(directory, _name(uri))
        copy_to_local(uri, found)
    try:
        check_checkpoint(found, uri)
    except DamagedError:
        if not is_local(uri):
            shutil.rmtree(found)
        raise
    return found


def read_best(uri: str, first: str | None = None) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """URI, weights and meta of the best checkpoint of a run's folder that can be read; of a search, of all its trials.

    first: the one to try before. Warns of what is damaged. Raises DataError where none can be read.
    """
    problems: list[str] = []
    if first is not None:
        try:
            return first, *read_checkpoint(first)
        except DataError as error:
            problems.append(str(error))
    folders = [uri, *list_folders(join(uri, "trials"))]
    others = [each for folder in folders for each in reversed(checkpoints_in(folder)) if each != first]
    scores = {each: score_of(each) for each in others}
    for other in sorted(others, key=lambda each: (scores[each] is None, scores[each] or 0.0)):
        try:
            weights, meta = read_checkpoint(other)
        except DataError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem}; {other} is taken in its place")
        return other, weights, meta
    raise DataError(
        f"{uri}: no checkpoint of this run can be read: {'; '.join(problems) or 'there is none'}; put copies of these files "
        "back, or train again"
    )


def read_history(uri: str) -> list[dict[str, float]]:
    """Metrics at all checkpoints of a training so far, of the newest checkpoint that tells them."""
    for checkpoint in reversed(checkpoints_in(uri)):
        with contextlib.suppress(DamagedError):
            history: list[dict[str, float]] = read_part(checkpoint, HISTORY)["metrics"]
            return history
    return []


def score_of(uri: str) -> float | None:
    """The score of a checkpoint, smaller is better; None where it has none, or cannot be read."""
    try:
        score = read_part(uri, META).get("metrics", {}).get("score")
    except DamagedError:
        return None
    return None if score is None else float(score)


def _upload(directory: Path, uri: str) -> None:
    """What says that a checkpoint is there comes last."""
    delete(uri)
    last = [(name, path.read_bytes()) for name in (META, CHECKSUMS) if (path := directory / name).exists()]
    for name, _ in last:
        (directory / name).unlink()
    copy_from_local(directory, uri)
    for name, data in last:
        (directory / name).write_bytes(data)  # for another attempt
        write_bytes(join(uri, name), data)


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
