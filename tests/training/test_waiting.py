"""What a run waits for is said, less and less often, and ends after the deadline."""

import pytest

from pipeline.errors import SettingsError, TrainingError
from pipeline.training.pulse import Sign
from pipeline.training.waiting import Watch, missing

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
    def __init__(self, deadline_s: float = 1000.0, never: bool = False) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.watch = Watch(
            2,
            {"CPU": 1.0, "GPU": 1.0},
            deadline_s,
            lambda text: self.said.append((self.now, text)),
            lambda worker: "the cluster has no node",
            lambda worker, num: (worker, num) == ({"CPU": 1.0, "GPU": 1.0}, 2) and never,
            lambda: self.now,
        )

    def until(self, end: float, signs) -> None:
        while self.now < end:
            self.now += 0.5
            self.watch.look(signs(self.now) if callable(signs) else signs)


def test_what_can_never_come_is_not_waited_for():
    waited = Waited(never=True)
    with pytest.raises(
        SettingsError, match=r"^2 x \(1 CPU, 1 GPU\): no nodes that this cluster may start can hold that"
    ):
        waited.until(2000.0, {0: TRAINS})
    assert (waited.now, waited.said) == (10.5, [])


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
