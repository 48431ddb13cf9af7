"""What a Ray cluster has, and what it could get: nodes of a cluster with an autoscaler come when they are asked for, and go again.

Jobs ask for what they need and wait for it. Only what can never come is refused at once.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.errors import SettingsError, TrainingError, warn
from pipeline.gauges import Tell, teller

START_TIMEOUT_S = 1800.0
"""For which work waits for a first node, where nothing else is set."""
_SOON_S = 10.0
_ASK_AUTOSCALER_EVERY_S = 5.0
_LOOK_S = 2.0
_WAITING = "equihand_waiting_for_nodes_seconds"
_fixed = [False]
_timeout_s = [START_TIMEOUT_S]


def set_start_timeout(seconds: float) -> None:
    """For how long this process's data work waits for a first node."""
    _timeout_s[0] = seconds


def set_fixed(value: bool) -> None:
    """Say whether this process has started the Ray that it uses, of one node for good."""
    _fixed[0] = value


def is_fixed() -> bool:
    """Whether nothing can come to what is there."""
    return _fixed[0]


def data_labels() -> dict[str, str]:
    """Labels of the nodes on which this process's data work runs; empty where any will do."""
    import ray.data

    return dict(ray.data.DataContext.get_current().execution_options.label_selector or {})


def set_data_labels(labels: Mapping[str, str]) -> None:
    """Let this process's data work run only on nodes that have these labels."""
    import ray.data

    ray.data.DataContext.get_current().execution_options.label_selector = dict(labels) or None


def keep_working_directory() -> None:
    """Let the workers of Ray Train and Tune that this process starts stay where they begin, instead of in a folder for each run, so that a
    relative path means to them what it means here."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"


def check_is_in_cluster() -> None:
    """Raises SettingsError in a client outside the cluster (ray://): what trainings and searches keep beside their driver, such as the
    records for MLflow, their controllers write too, which would then be on another machine."""
    import ray

    if ray.util.client.ray.is_connected():
        raise SettingsError(
            "setting 'ray.address' = ray://...: a training or search needs its driver inside the cluster; send it there with "
            "jobs.submit (--address http://HOST:8265), or run it on a node"
        )


def choose_gpus(given: bool | None, num: int, name: str) -> bool:
    """Whether to use GPUs, `num` of them; given: the setting called `name`. Where it is none, they are used if the cluster has them.

    Raises SettingsError for none where an autoscaler starts nodes: which are there just now should not decide.
    """
    if given is not None:
        return given
    import ray

    if not is_fixed() and autoscaler_state() is not None:
        raise SettingsError(
            f"setting '{name}' must be given: nodes of this cluster come and go, so those that are there now do not decide "
            "whether GPUs are used"
        )
    return ray.cluster_resources().get("GPU", 0) >= num


def autoscaler_state() -> Any:
    """What the cluster's autoscaler (of version 2, as KubeRay's) says, as Ray's AutoscalingState; None where there is none."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    try:
        # The session's own connection: this is asked again and again.
        reply.ParseFromString(global_worker.gcs_client.get_cluster_status(timeout_s=5))  # type: ignore[attr-defined]
    except Exception:  # of a client outside the cluster, or a server that is just starting
        return None
    return reply.autoscaling_state if reply.autoscaling_state.autoscaler_state_version else None


def can_never_hold(resources: Mapping[str, float], num: int = 1) -> bool:
    """Whether the autoscaler says so of `num` bundles of these resources that were asked for. False where nobody knows."""
    state = autoscaler_state()
    if state is None:
        return False
    wanted = {name: float(value) for name, value in resources.items() if value}
    single = any(_bundle(request) == wanted for request in state.infeasible_resource_requests)
    gangs = [
        [_bundle(request) for request in gang.requests]
        or [_bundle(request) for each in gang.bundle_selectors for request in each.resource_requests]
        for gang in state.infeasible_gang_resource_requests
    ]
    return single or any(bundles == [wanted] * num for bundles in gangs)


def _bundle(request: Any) -> dict[str, float]:
    return {name: float(value) for name, value in request.resources_bundle.items() if value}


def wait_for_node(
    resources: Mapping[str, float],
    labels: Mapping[str, str] | None = None,
    deadline_s: float | None = None,
    say: Callable[[str], None] = warn,
) -> None:
    """Until a node is there that is large enough for {"CPU": ..., "GPU": ...}, and has these labels; asks an autoscaler for it, and
    says what it waits for. deadline_s: None takes that of `set_start_timeout`.

    Raises SettingsError where no node can ever hold that, TrainingError after the deadline.
    """
    import ray

    labels = labels or {}
    if _is_there(resources, labels):
        return
    if is_fixed():
        raise SettingsError(
            f"{_wanted(resources, labels)} at a time are needed, {there(resources)}; give this Ray more (ray.num_cpus), or ask for less"
        )

    def nothing() -> None:
        """Only its resources matter."""

    needs = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    task = ray.remote(max_retries=0, label_selector=dict(labels), **needs)(nothing).remote()  # type: ignore[call-overload]
    if deadline_s is None:
        deadline_s = _timeout_s[0]
    what = f"a node for ({_wanted(resources, labels)})"
    reminder = Reminder(what, deadline_s, say, lambda: there(resources), _teller())
    asked = time.monotonic()
    try:
        while not _is_there(resources, labels):
            if ray.wait([task], timeout=1)[0]:
                return
            reminder.look()
            if time.monotonic() - asked > _ASK_AUTOSCALER_EVERY_S:
                asked = time.monotonic()
                if can_never_hold(resources):
                    raise SettingsError(never_text(resources, 1, labels))
    finally:
        reminder.over()
        ray.cancel(task, force=True)


@contextmanager
def said_when_lost(
    resources: Mapping[str, float], labels: Mapping[str, str] | None = None, say: Callable[[str], None] = warn
) -> Iterator[None]:
    """While the block runs, say where no node is there (any more) that holds that: Ray waits for one in silence, and asks for it."""
    labels = labels or {}
    ended = threading.Event()

    def watch() -> None:
        reminder: Reminder | None = None
        while not ended.wait(_LOOK_S):
            if _is_there(resources, labels):
                if reminder is not None:
                    reminder.over()
                reminder = None
                continue
            words = f"a node for ({_wanted(resources, labels)})"
            reminder = reminder or Reminder(words, float("inf"), say, lambda: there(resources), _teller())
            reminder.look()

    thread = threading.Thread(target=watch, daemon=True, name="nodes")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LOOK_S)


def never_text(resources: Mapping[str, float], num: int, labels: Mapping[str, str] | None = None) -> str:
    """That this can never come."""
    what = f"{num} x ({_wanted(resources, labels)})" if num > 1 else f"({_wanted(resources, labels)})"
    return (
        f"{what}: no nodes that this cluster may start can hold that; ask for less, or let its autoscaler start larger or more nodes "
        "(maxReplicas, max_workers)"
    )


class Reminder:
    """Says what is waited for, less and less often, and gives up after a deadline."""

    def __init__(
        self,
        what: str,
        deadline_s: float,
        say: Callable[[str], None],
        there: Callable[[], str],
        tell: Tell = lambda name, value: None,
    ) -> None:
        """there: what the cluster has, in words. tell: receives for how long it has been waited for (gauges.py)."""
        self._what, self._deadline_s, self._say, self._there, self._tell = what, deadline_s, say, there, tell
        self._since, self._next_s = time.monotonic(), _SOON_S

    def look(self) -> None:
        """Say it where that is due. Raises TrainingError after the deadline."""
        waited = time.monotonic() - self._since
        self._tell(_WAITING, waited)
        is_over = waited >= self._deadline_s
        if waited < self._next_s and not is_over:
            return
        self._next_s = 2 * waited
        text = f"{self._what} for {waited:.0f} s; {self._there()}"
        if is_over:
            raise TrainingError(f"gave up waiting for {text}. The same command goes on")
        self._say(f"waiting for {text}")

    def over(self) -> None:
        """It is there."""
        self._tell(_WAITING, 0.0)


def _teller() -> Tell:
    """Of data work, which is no run of its own."""
    return teller("data", "data", "driver")


def there(resources: Mapping[str, float]) -> str:
    """What the cluster has, in words, and why these resources may find no place in it."""
    import ray

    return cluster_in_words(ray.nodes(), ray.available_resources(), resources, autoscaler_state())


def cluster_in_words(
    nodes: list[dict[str, Any]], free: Mapping[str, float], wanted: Mapping[str, float], scaling: Any = None
) -> str:
    """The same. nodes: as ray.nodes() lists them; scaling: the autoscaler's state."""
    alive = _resources_of(nodes)
    counted = Counter(in_words(each) for each in alive)
    kinds = " and ".join(f"{count} node{'s' if count > 1 else ''} of ({what})" for what, count in counted.items())
    text = f"the cluster has {kinds or 'no node'}, free: {in_words(free)}{_coming(scaling)}"
    if alive and not any(_holds(node, wanted) for node in alive):
        return f"{text}; no node is large enough for ({in_words(wanted)})"
    if alive and free.get("CPU", 0) < 1:
        return f"{text}; no CPU is left for another worker or for readers"
    return text


def _coming(scaling: Any) -> str:
    """What an autoscaler is doing."""
    if scaling is None:
        return ""
    asked = Counter(each.ray_node_type_name for each in scaling.pending_instances)
    for each in scaling.pending_instance_requests:
        asked[each.ray_node_type_name] += each.count
    parts = [f"{count} x {name}" for name, count in asked.items()]
    text = f"; being started: {', '.join(parts)}" if parts else "; its autoscaler starts none just now"
    failed = {each.ray_node_type_name: each.reason for each in scaling.failed_instance_requests}
    return text + "".join(f"; {name} failed to start: {reason}" for name, reason in failed.items())


def in_words(resources: Mapping[str, float]) -> str:
    """Such as "3 CPU, 1 GPU"."""
    return ", ".join(
        f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name == "CPU" or resources.get(name)
    )


def _wanted(resources: Mapping[str, float], labels: Mapping[str, str] | None) -> str:
    """The same with labels, such as "3 CPU, with ray-subcluster=data"."""
    named = ", ".join(f"{name}={value}" for name, value in (labels or {}).items())
    return f"{in_words(resources)}, with {named}" if named else in_words(resources)


def _is_there(resources: Mapping[str, float], labels: Mapping[str, str]) -> bool:
    import ray

    nodes = [node for node in ray.nodes() if all(node["Labels"].get(name) == value for name, value in labels.items())]
    return any(_holds(node, resources) for node in _resources_of(nodes))


def _resources_of(nodes: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [node["Resources"] for node in nodes if node.get("Alive", node.get("alive"))]


def _holds(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= need for name, need in wanted.items())
