from contextlib import nullcontext

import pytest

from pipeline.delivery import Delivery, ending


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_how_a_block_ended(error, status):
    seen: list[str] = []
    with nullcontext() if error is None else pytest.raises(type(error)), ending(seen.append, seen.append):
        if error is not None:
            raise error
    assert seen == [status, status]


def test_a_call_that_fails_is_made_once_more_and_holds_up_nothing(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.tracking.time.monotonic", lambda: now[0])
    made: list[str] = []
    broken = True

    def call(name: str, poisoned: bool = False):
        def make() -> None:
            made.append(name)
            if poisoned or broken:
                raise OSError("no answer")

        return make

    said: list[str] = []
    deliver = Delivery(said.append)
    deliver(call("a"))
    deliver(call("b"))
    assert (made, deliver.problem) == (["a"], "MLflow failed: no answer")
    broken, now[0] = False, 400.0
    deliver(call("c"))
    assert (made, deliver.problem) == (["a", "a", "b", "c"], "")
    # One that never works is given up, and stays a problem.
    made.clear()
    deliver(call("d", poisoned=True))
    now[0] = 800.0
    deliver(call("e"))
    assert made == ["d", "d", "e"]
    assert deliver.problem == "MLflow failed: no answer"
    assert len(said) == 3
    # The end is tried in any case.
    made.clear()
    broken = True
    deliver(call("f"))
    deliver.end(call("end"))
    assert made == ["f", "f", "end"]
