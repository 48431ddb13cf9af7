"""What a run waits for, said at the terminal and in its log, less and less often, and a deadline."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline import ray_cluster
from pipeline.errors import SettingsError, TrainingError
from pipeline.gauges import REPEAT_S, Tell
from pipeline.ray_cluster import in_words
from pipeline.training.pulse import Sign

_SOON_S = 10.0
_LATE_S = 60.0  # what a worker may need for its imports, a network and a first step, or for a probe
_SILENT_S = 10.0


class Missing(NamedTuple):
    """What a run waits for."""

    kind: str
    text: str
    seconds: float | None = None
    """For how long; None where nobody has counted."""
    first_s: float = _SOON_S
    """After how long it is said."""
    is_limited: bool = True
    """Whether the deadline counts for it."""


def missing(signs: Mapping[int, Sign], num_workers: int) -> Missing | None:
    """What keeps these workers from training; None where they train."""
    ranks = range(num_workers)
    silent = [rank for rank in ranks if rank not in signs or signs[rank].silent > _SILENT_S]
    if silent:
        known = [rank for rank in silent if rank in signs]
        lost = f" ({_workers(known)} not heard of any more)" if known else ""
        return Missing("workers", f"{len(silent)} of {num_workers} workers{lost}")
    doing = {
        what: [rank for rank in ranks if signs[rank].doing == what] for what in {signs[rank].doing for rank in ranks}
    }
    seconds = {what: max(signs[rank].seconds for rank in those) for what, those in doing.items()}
    if "data" in doing:
        return Missing("data", f"data: the readers have given {_workers(doing['data'])} nothing", seconds["data"])
    if "start" in doing:
        return Missing("start", f"the first step of {_workers(doing['start'])}", seconds["start"], _LATE_S)
    what = next((each for each in doing if each not in ("step", "report")), "step")
    if what in doing:
        return Missing(what, f"a {what} of {_workers(doing[what])}", seconds[what], _LATE_S, is_limited=False)
    if "report" in doing:  # a checkpoint that is due waits for the one before it
        text = "a checkpoint to be written (is the storage slow, or away?)"
        return Missing("report", text, seconds["report"], is_limited=False)
    return None


def _workers(ranks: list[int]) -> str:
    return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Watch:
    """Looks at what a run waits for."""

    def __init__(
        self,
        num_workers: int,
        resources: Mapping[str, float],
        deadline_s: float,
        say: Callable[[str], None],
        there: Callable[[Mapping[str, float]], str] = ray_cluster.there,
        can_never_hold: Callable[[Mapping[str, float], int], bool] = ray_cluster.can_never_hold,
        clock: Callable[[], float] = time.monotonic,
        tell: Tell = lambda name, value: None,
    ) -> None:
        """resources: of each worker. there: what the cluster has, in words. can_never_hold: whether it never can. tell: receives for
        how long workers are waited for (gauges.py)."""
        self._num_workers, self._resources, self._deadline = num_workers, resources, deadline_s
        self._worker = f" of ({in_words(resources)})"
        self._say, self._there, self._clock, self._can_never_hold = say, there, clock, can_never_hold
        self._kind, self._since, self._next_s = "", clock(), 0.0
        self._tell, self._told = tell, (-REPEAT_S, 0.0)

    def look(self, signs: Mapping[int, Sign]) -> None:
        """Say what is missing where that is due. Raises TrainingError after the deadline, SettingsError where what is
        missing can never come."""
        now, lacking = self._clock(), missing(signs, self._num_workers)
        if lacking is None:
            self._kind = ""
            self._tell_waited(0.0)
            return
        since = self._since if lacking.seconds is None else now - lacking.seconds
        if lacking.kind != self._kind or since > self._since + _SOON_S / 2:  # what was waited for came in between
            self._kind, self._next_s = lacking.kind, lacking.first_s
            self._since = now if lacking.seconds is None else since
        waited = now - self._since
        self._tell_waited(waited if lacking.kind == "workers" else 0.0)
        is_over = lacking.is_limited and waited >= self._deadline
        if waited < self._next_s and not is_over:
            return
        self._next_s = 2 * waited
        worker = self._worker if lacking.kind == "workers" else ""
        if worker and self._can_never_hold(self._resources, self._num_workers):
            raise SettingsError(ray_cluster.never_text(self._resources, self._num_workers))
        there = "" if lacking.kind == "report" else f"; {self._there(self._resources)}"
        text = f"{lacking.text}{worker} for {waited:.0f} s{there}"
        if is_over:
            raise TrainingError(
                f"gave up waiting for {text}. The deadline is workers.start_timeout_s = {self._deadline:g}; the same command goes on"
            )
        self._say(f"waiting for {text}")

    def _tell_waited(self, seconds: float) -> None:
        """Whole seconds, and only what is new, or was told long ago."""
        now, seconds = self._clock(), float(round(seconds))
        if seconds != self._told[1] or now - self._told[0] >= REPEAT_S:
            self._told = now, seconds
            self._tell("equihand_waiting_for_nodes_seconds", seconds)
