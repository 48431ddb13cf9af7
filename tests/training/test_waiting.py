"""What a run waits for is said, less and less often, and ends after the deadline."""

import pytest

from pipeline.errors import TrainingError
from pipeline.training.pulse import Sign
from pipeline.training.waiting import Watch, cluster_in_words, missing

TRAINS = Sign("step", 0.2, 7)


@pytest.mark.parametrize(
    ("signs", "text"),
    [
        ({}, "2 of 2 workers"),
        ({0: TRAINS}, "1 of 2 workers"),
        ({0: TRAINS, 1: TRAINS._replace(silent=20.0)}, "1 of 2 workers (worker 1 not heard of any more)"),
        ({0: TRAINS, 1: Sign("data", 30.0, 7)}, "data: the readers have given worker 1 nothing"),
        ({0: Sign("data", 30.0, 0), 1: Sign("start", 3.0, 0)}, "data: the readers have given worker 0 nothing"),
        ({0: Sign("start", 9.0, 0), 1: Sign("start", 3.0, 0)}, "the first step of workers 0, 1"),
        ({0: Sign("probe", 9.0, 7), 1: Sign("report", 3.0, 7)}, "a probe of worker 0"),
        ({0: TRAINS, 1: TRAINS}, "a step of workers 0, 1"),
        (
            {0: Sign("report", 9.0, 7), 1: Sign("report", 3.0, 7)},
            "a checkpoint to be written (is the storage slow, or away?)",
        ),
    ],
)
def test_what_is_missing(signs, text):
    found = missing(signs, 2)
    assert (None if found is None else found.text) == text


class Waited:
    def __init__(self, deadline_s: float = 1000.0) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.watch = Watch(
            2,
            {"CPU": 1.0, "GPU": 1.0},
            deadline_s,
            lambda text: self.said.append((self.now, text)),
            lambda: "the cluster has no node",
            lambda: self.now,
        )

    def until(self, end: float, signs) -> None:
        while self.now < end:
            self.now += 0.5
            self.watch.look(signs(self.now) if callable(signs) else signs)


def test_it_is_said_less_and_less_often_until_the_deadline():
    waited = Waited()
    with pytest.raises(TrainingError) as caught:
        waited.until(2000.0, {0: TRAINS})
    assert [when for when, _ in waited.said] == [10.5, 20.5, 40.5, 80.5, 160.5, 320.5, 640.5]
    assert waited.said[0][1] == "waiting for 1 of 2 workers of (1 CPU, 1 GPU) for 10 s; the cluster has no node"
    assert str(caught.value) == (
        "gave up waiting for 1 of 2 workers of (1 CPU, 1 GPU) for 1000 s; the cluster has no node. The deadline is "
        "workers.start_timeout_s = 1000; the same command goes on"
    )


def test_every_wait_counts_from_its_own_beginning():
    waited = Waited(deadline_s=30.0)
    # Data comes every 8 s, and whoever looks sees nothing else but a worker that waits for it.
    waited.until(200.0, lambda now: {0: Sign("data", now % 8, 7), 1: TRAINS})
    assert waited.said == []
    waited.until(229.0, lambda now: {0: Sign("data", now - 200, 7), 1: TRAINS})
    assert [text for _, text in waited.said] == [
        f"waiting for data: the readers have given worker 0 nothing for {seconds} s; the cluster has no node"
        for seconds in (10, 20)
    ]
    waited.until(250.0, {0: TRAINS, 1: TRAINS})
    with pytest.raises(
        TrainingError, match=r"^gave up waiting for data: the readers have given worker 0 nothing for 30 s"
    ):
        waited.until(300.0, lambda now: {0: Sign("data", now - 250, 7), 1: TRAINS})


def test_a_long_probe_is_said_and_has_no_deadline():
    waited = Waited(deadline_s=30.0)
    waited.until(200.0, lambda now: {0: Sign("probe", now, 7), 1: Sign("report", now, 7)})
    assert [when for when, _ in waited.said] == [60.0, 120.0]


def test_what_a_cluster_has():
    small = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1.0}}
    large = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    gone = {"Alive": False, "Resources": {"CPU": 99.0}}
    text = cluster_in_words([small, large, small, gone], {"CPU": 3.0}, {"CPU": 2.0})
    assert text == "the cluster has 2 nodes of (4 CPU) and 1 node of (8 CPU, 1 GPU), free: 3 CPU"
    assert cluster_in_words([small], {"CPU": 4.0}, {"CPU": 6.0}).endswith("; no node is large enough for a worker")
    assert cluster_in_words([small, small], {"CPU": 6.0}, {"CPU": 2.0, "GPU": 1.0}).endswith(
        "is large enough for a worker"
    )
    assert cluster_in_words([small], {}, {"CPU": 2.0}).endswith("no CPU is left for another worker or for readers")
    assert cluster_in_words([gone], {}, {"CPU": 2.0}) == "the cluster has no node, free: 0 CPU"
