"""What a run tells Prometheus, through Ray's own export: every node serves the figures of the processes on it.

Prometheus knows them as `ray_<name>`, with the labels run_id, job (the kind of run) and worker ("0", "1", ..., "driver"). New figures come
at logged steps only. Ray forgets a gauge that it has not been told for two of its intervals (of 10 s), so gauges are told again in
between, by a thread that is there anyway. Where there is no Ray, nothing is told.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

REPEAT_S = 5.0
"""After which a gauge is told again."""

TAGS = ("run_id", "job", "worker")


class Metric(NamedTuple):
    """One that Prometheus gets."""

    kind: Literal["gauge", "counter", "histogram"]
    text: str
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


METRICS: Mapping[str, Metric] = {
    "equihand_frames_per_second": Metric("gauge", "Frames a second of all workers together since the last logged step"),
    "equihand_frames_seen": Metric("gauge", "Frames that the run has seen, those before a restart too"),
    "equihand_loss": Metric("gauge", "Mean loss since the last logged step"),
    "equihand_bad_frames": Metric("gauge", "Frames of the run that could not be read"),
    "equihand_bad_steps": Metric("gauge", "Steps of the run whose loss or gradients were not finite"),
    "equihand_checkpoint_timestamp_seconds": Metric(
        "gauge", "When the newest checkpoint was there, seconds since 1970; before that, when the workers started"
    ),
    "equihand_step_seconds": Metric(
        "histogram",
        "Mean time of a step since the last logged one",
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
    ),
    "equihand_data_wait_seconds": Metric("counter", "Seconds for which this worker has waited for data"),
    "equihand_waiting_for_nodes_seconds": Metric(
        "gauge", "For how long the run has been waiting for workers, and so for nodes; 0 where they are there"
    ),
}
"""All of them, by the name that they are told under."""

_OF_RUN = {
    "frames_per_second": "equihand_frames_per_second",
    "loss": "equihand_loss",
    "bad_frames": "equihand_bad_frames",
    "bad_steps": "equihand_bad_steps",
}
"""What the first worker tells for all, of what it reports (`Worker.report`)."""

Tell = Callable[[str, float], None]
"""Takes a metric's name and its value: of a counter what has come, of a histogram one observation."""


def teller(run_id: str, job: str, worker: str) -> Tell:
    """Tells the metrics of one process of a run."""
    import ray

    if not ray.is_initialized():
        return lambda name, value: None
    tags = {"run_id": run_id, "job": job, "worker": worker}
    made: dict[str, Any] = {}  # of this Ray session; made when first told, so that none says 0 before it is known

    def tell(name: str, value: float) -> None:
        kind = METRICS[name].kind
        if not math.isfinite(value) or (kind == "counter" and value <= 0):
            return
        if name not in made:
            made[name] = _made(name)
            made[name].set_default_tags(tags)
        if kind == "gauge":
            made[name].set(value)
        elif kind == "counter":
            made[name].inc(value)
        else:
            made[name].observe(value)

    return tell


def exported(name: str) -> tuple[str, ...]:
    """The names under which Prometheus has a metric."""
    kind = METRICS[name].kind
    if kind == "histogram":
        return tuple(f"ray_{name}_{part}" for part in ("bucket", "count", "sum"))
    return (f"ray_{name}_total" if kind == "counter" else f"ray_{name}",)


class WorkerGauges:
    """Tells the metrics of one worker of a training."""

    def __init__(self, tell: Tell, rank: int) -> None:
        self._tell, self._is_first, self._waited = tell, rank == 0, 0.0
        self._gauges: dict[str, float] = {}
        self._repeated_at = time.monotonic()
        self.checkpoint_is_there()

    def logged(self, metrics: Mapping[str, Any], frames_seen: int, waited_s: float) -> None:
        """At a logged step. metrics: as reported, with "step" and "frames_per_second". frames_seen: by all workers, in the run so far.
        waited_s: seconds for which this worker's process has waited for data so far."""
        if self._is_first:
            for name, told in _OF_RUN.items():
                if name in metrics:
                    self._set(told, float(metrics[name]))
            self._set("equihand_frames_seen", frames_seen)
        if metrics.get("frames_per_second") and metrics.get("step"):
            self._tell("equihand_step_seconds", frames_seen / metrics["step"] / metrics["frames_per_second"])
        self._tell("equihand_data_wait_seconds", waited_s - self._waited)
        self._waited = waited_s

    def checkpoint_is_there(self) -> None:
        """One has been written just now, or the training begins."""
        if self._is_first:
            self._set("equihand_checkpoint_timestamp_seconds", time.time())

    def repeat(self) -> None:
        """Called every now and then, by any thread."""
        if time.monotonic() - self._repeated_at >= REPEAT_S:
            self._repeated_at = time.monotonic()
            for name, value in [*self._gauges.items()]:
                self._tell(name, value)

    def _set(self, name: str, value: float) -> None:
        self._gauges[name] = value
        self._tell(name, value)


def _made(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    metric = METRICS[name]
    if metric.kind == "histogram":
        return Histogram(name, metric.text, boundaries=[*metric.bounds], tag_keys=TAGS)
    return (Counter if metric.kind == "counter" else Gauge)(name, metric.text, tag_keys=TAGS)
