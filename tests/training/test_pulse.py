"""Who counts as hanging, and who does not."""

import pytest

from pipeline.training.pulse import Pulse, Sign, stuck

OLD = Sign("step", 100.0, 5)


@pytest.mark.parametrize(
    ("signs", "reason"),
    [
        ({0: OLD}, "all workers are alive"),
        ({0: OLD, 1: OLD}, "all workers are alive"),
        ({0: OLD, 1: OLD._replace(silent=90.0)}, "worker 1 is not heard of"),
        ({0: OLD, 1: Sign("data", 95.0, 5, silent=90.0)}, "worker 1 is not heard of"),
        ({}, ""),
        ({0: OLD, 1: Sign("step", 2.0, 6)}, ""),  # it has just got on, and so will the others
        ({0: OLD, 1: Sign("data", 200.0, 5)}, ""),  # slow storage
        ({0: OLD, 1: Sign("start", 200.0, 0)}, ""),
        ({0: Sign("probe", 1000.0, 5), 1: Sign("report", 1000.0, 5)}, ""),
        ({0: OLD._replace(seconds=60.0)}, ""),
    ],
)
def test_who_hangs(signs, reason):
    found = stuck(signs, 60.0)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_worker_that_makes_no_step_is_ended():
    told: list[Sign] = []
    reasons: list[str] = []
    ages = {"step": 0.0}

    def tell(rank, sign):
        told.append(sign)
        return False, {rank: sign._replace(seconds=ages.get(sign.doing, 1e6))}

    pulse = Pulse(0, tell, 60.0, reasons.append)
    pulse.look()
    assert (told[-1].doing, told[-1].steps) == ("start", 0)
    pulse.step()
    pulse.look()
    with pulse.busy("probe"):
        pulse.look()
        assert told[-1].doing == "probe"
    assert reasons == []
    pulse.look()
    assert (told[-1].doing, told[-1].steps) == ("step", 1)
    ages["step"] = 61.0
    pulse.look()
    assert reasons == ["no step was done for more than 60 s (workers.hang_timeout_s), and all workers are alive"]


def test_without_an_answer_nobody_is_ended():
    def tell(rank, sign):
        raise TimeoutError

    reasons: list[str] = []
    pulse = Pulse(0, tell, 1e-9, reasons.append)
    pulse.step()
    with pytest.raises(TimeoutError):
        pulse.look()
    assert reasons == []
    assert not pulse.leaving
