from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import AutoscalingState  # type: ignore[attr-defined]

from pipeline import ray_cluster
from pipeline.errors import SettingsError, TrainingError
from pipeline.ray_cluster import (
    Reminder,
    can_never_hold,
    check_is_in_cluster,
    choose_gpus,
    cluster_in_words,
    wait_for_node,
)


def test_what_a_cluster_has():
    small = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1.0}}
    large = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    gone = {"Alive": False, "Resources": {"CPU": 99.0}}
    text = cluster_in_words([small, large, small, gone], {"CPU": 3.0}, {"CPU": 2.0})
    assert text == "the cluster has 2 nodes of (4 CPU) and 1 node of (8 CPU, 1 GPU), free: 3 CPU"
    assert cluster_in_words([small], {"CPU": 4.0}, {"CPU": 6.0}).endswith("; no node is large enough for (6 CPU)")
    assert cluster_in_words([small, small], {"CPU": 6.0}, {"CPU": 2.0, "GPU": 1.0}).endswith(
        "is large enough for (2 CPU, 1 GPU)"
    )
    assert cluster_in_words([small], {}, {"CPU": 2.0}).endswith("no CPU is left for another worker or for readers")
    assert cluster_in_words([gone], {}, {"CPU": 2.0}) == "the cluster has no node, free: 0 CPU"


def scaling() -> Any:
    """As an autoscaler tells it: of one kind one is being started and two are asked for; another could not be started."""
    state = AutoscalingState(autoscaler_state_version=3)
    state.pending_instances.add(ray_node_type_name="gpu")
    state.pending_instance_requests.add(ray_node_type_name="gpu", count=2)
    state.failed_instance_requests.add(ray_node_type_name="spot", reason="no capacity")
    one = state.infeasible_resource_requests.add()
    one.resources_bundle["CPU"] = 64
    gang = state.infeasible_gang_resource_requests.add()
    for _ in range(3):
        gang.requests.add().resources_bundle["GPU"] = 1
    return state


def test_what_an_autoscaler_does_is_said():
    text = cluster_in_words([], {}, {"CPU": 1.0}, scaling())
    assert text == "the cluster has no node, free: 0 CPU; being started: 3 x gpu; spot failed to start: no capacity"
    idle = AutoscalingState(autoscaler_state_version=3)
    assert cluster_in_words([], {}, {"CPU": 1.0}, idle).endswith("; its autoscaler starts none just now")


@pytest.mark.parametrize(
    ("resources", "num", "never"),
    [
        ({"CPU": 64.0}, 1, True),
        ({"CPU": 64.0, "GPU": 0.0}, 1, True),
        ({"CPU": 32.0}, 1, False),
        ({"GPU": 1.0}, 3, True),
        ({"GPU": 1.0}, 2, False),  # somebody else asked for three
    ],
)
def test_only_what_was_asked_for_counts_as_impossible(monkeypatch, resources, num, never):
    monkeypatch.setattr(ray_cluster, "autoscaler_state", scaling)
    assert can_never_hold(resources, num) is never
    monkeypatch.setattr(ray_cluster, "autoscaler_state", lambda: None)
    assert not can_never_hold(resources, num)


def tick(now: list[float], reminder: Reminder) -> None:
    while True:
        now[0] += 0.5
        reminder.look()


def test_a_reminder_speaks_less_and_less_often_and_ends(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now[0])
    said: list[tuple[float, str]] = []
    told: list[tuple[str, float]] = []
    reminder = Reminder(
        "a node",
        100.0,
        lambda text: said.append((now[0], text)),
        lambda: "there is none",
        lambda name, value: told.append((name, value)),
    )
    with pytest.raises(TrainingError, match=r"^gave up waiting for a node for 100 s; there is none. The same command"):
        tick(now, reminder)
    assert [when for when, _ in said] == [10.0, 20.0, 40.0, 80.0]
    assert said[0][1] == "waiting for a node for 10 s; there is none"
    reminder.over()
    assert told[:2] == [("equihand_waiting_for_nodes_seconds", 0.5), ("equihand_waiting_for_nodes_seconds", 1.0)]
    assert told[-1] == ("equihand_waiting_for_nodes_seconds", 0.0)


def test_where_nodes_come_and_go_those_of_now_do_not_decide(monkeypatch):
    monkeypatch.setattr(ray_cluster, "autoscaler_state", scaling)
    monkeypatch.setattr(ray_cluster, "_fixed", [False])
    with pytest.raises(
        SettingsError, match=r"^setting 'workers.use_gpu' must be given: nodes of this cluster come and"
    ):
        choose_gpus(None, 2, "workers.use_gpu")
    assert choose_gpus(True, 2, "workers.use_gpu")
    assert not choose_gpus(False, 2, "workers.use_gpu")


def test_a_ray_of_one_node_refuses_what_it_cannot_hold(ray_cluster):
    assert not choose_gpus(None, 1, "x")
    cpus = ray.cluster_resources()["CPU"]
    wait_for_node({"CPU": cpus})
    with pytest.raises(SettingsError, match=r"^5 CPU, 1 GPU at a time are needed, the cluster has 1 node of \(4 CPU\)"):
        wait_for_node({"CPU": cpus + 1, "GPU": 1.0})


def test_a_driver_outside_the_cluster_trains_nothing(monkeypatch):
    check_is_in_cluster()
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    with pytest.raises(
        SettingsError, match=r"^setting 'ray.address' = ray://.*: a training or search needs its driver inside"
    ):
        check_is_in_cluster()
