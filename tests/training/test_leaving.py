"""Workers agree on the step after which they leave; what a SIGTERM does."""

import itertools
import os
import signal
import time

import pytest
import torch
import torch.multiprocessing as mp

from pipeline.training.leaving import ENDS, MOVES, STAYS, Agreement, on_sigterm
from tests.training.gloo import process_group

CPU = torch.device("cpu")


class Clock:
    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step_s", "most"), [(0.01, 20), (0.3, 42), (5.0, 100)])
def test_it_is_asked_about_once_a_second(step_s, most):
    asked: list[float] = []
    clock = Clock(step_s)

    def ask() -> int:
        asked.append(clock.now)
        return STAYS

    agreement = Agreement(ask, CPU, clock)
    for _ in range(100):
        clock.now += step_s
        assert not agreement()
    assert len(asked) <= most
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert all(gap <= max(1.5, step_s + 1e-9) for gap in gaps)


def test_when_steps_become_slow_it_is_asked_sooner_again():
    asked = 0
    clock = Clock(0.01)

    def ask() -> int:
        nonlocal asked
        asked += 1
        return STAYS

    agreement = Agreement(ask, CPU, clock)
    for _ in range(300):
        clock.now += 0.01
        agreement()
    before = asked
    for _ in range(200):
        clock.now += 2.0
        agreement()
    assert asked - before > 90  # after one interval of the old pace, before every step


def worker(rank: int, port: int, folder: str) -> None:
    with process_group(rank, 2, port):
        steps = 0
        asks = {0: STAYS, 1: MOVES}

        def ask() -> int:
            return asks[rank] if steps >= 37 else STAYS

        agreement = Agreement(ask, CPU, Clock(0) if rank else time.monotonic)
        while not agreement():
            steps += 1
        with open(os.path.join(folder, str(rank)), "w") as file:
            file.write(f"{steps} {agreement.agreed}")


def test_workers_leave_after_the_same_step(tmp_path, free_port):
    """Only one of them has heard, and their clocks differ."""
    mp.start_processes(worker, (free_port, str(tmp_path)), nprocs=2, start_method="spawn")
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    assert told[0] == told[1]
    assert int(told[0][0]) >= 37
    assert told[0][1] == str(MOVES)


def test_who_ends_goes_before_who_moves():
    assert ENDS > MOVES > STAYS


def test_the_first_signal_is_heard_and_the_second_one_does_what_it_did():
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))

    def asked() -> bool:
        heard.append("asked")
        return True

    try:
        with on_sigterm(asked):
            signal.raise_signal(signal.SIGTERM)
            assert heard == ["asked"]
            signal.raise_signal(signal.SIGTERM)
            assert heard == ["asked", "before"]
        with on_sigterm(lambda: False):
            signal.raise_signal(signal.SIGTERM)
        assert heard == ["asked", "before", "before"]
        signal.raise_signal(signal.SIGTERM)
        assert heard[3:] == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)
