"""Checkpoints are written beside the training: whole, in order, and with their errors."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.errors import StorageError
from pipeline.models.checkpoints import Snapshot, read_checkpoint, read_trainer_state
from pipeline.models.kept import Kept, checkpoints_in
from pipeline.training.saving import Saving, saving

LONG = 300


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        step(model, optimiser)
    return model, optimiser


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3, 5, 5)).square().sum().backward()
    optimiser.step()


def snapshot(model: nn.Module, optimiser: torch.optim.Optimizer, number: int) -> Snapshot:
    state = {"optimiser": optimiser.state_dict(), "step": number}
    return Snapshot(model.state_dict(), state, {"metrics": {"step": number}})


def test_what_is_written_is_of_the_moment_it_was_asked_for(tmp_path):
    """The training goes on before a single byte is written."""
    model, optimiser = trained(2)
    snapshot(model, optimiser, 2)(tmp_path / "then")
    kept, go = Kept(str(tmp_path / "run")), threading.Event()

    def keep(moment, metrics, recent):
        assert go.wait(LONG)
        kept.keep(moment, metrics)

    with saving(keep) as writer:
        pause = writer.save(snapshot(model, optimiser, 2), {"step": 2})
        step(model, optimiser)
        go.set()
    assert pause >= 0
    assert kept.newest is not None
    written, then = read_checkpoint(kept.newest)[0], read_checkpoint(str(tmp_path / "then"))[0]
    assert all(torch.equal(written[name], then[name]) for name in then)
    assert not torch.equal(written["0.weight"], model.state_dict()["0.weight"])
    first, second = read_trainer_state(kept.newest), read_trainer_state(tmp_path / "then")
    for name, values in second["optimiser"]["state"].items():
        assert all(torch.equal(values[key], first["optimiser"]["state"][name][key]) for key in values)


def test_the_next_one_waits_for_the_one_before_and_the_end_for_the_last(tmp_path):
    model, optimiser = trained(1)
    began: list[int] = []
    ended: list[int] = []

    def keep(moment, metrics, recent):
        assert began == ended
        began.append(metrics["step"])
        ended.append(metrics["step"])

    with saving(keep) as writer:
        for number in range(5):
            writer.save(snapshot(model, optimiser, number), {"step": number})
    assert ended == [*range(5)]


def test_an_error_reaches_the_training(tmp_path):
    model, optimiser = trained(1)
    done = threading.Event()

    def refused(moment, metrics, recent):
        try:
            raise StorageError("s3://a/b: no answer")
        finally:
            done.set()

    def save(*steps: int, then: Callable[[Saving], None] = lambda writer: None) -> None:
        with saving(refused) as writer:
            for step in steps:
                writer.save(snapshot(model, optimiser, step), {"step": step})
            then(writer)

    def log(writer: Saving) -> None:
        assert done.wait(LONG)
        while True:
            writer.check()

    for steps, then in (
        ((1,), log),
        ((1, 2), log),
        ((1,), lambda writer: None),
    ):  # at a log, the next checkpoint, the end
        with pytest.raises(StorageError, match="no answer"):
            save(*steps, then=then)


def test_another_error_waits_for_the_checkpoint(tmp_path):
    model, optimiser = trained(1)
    kept = Kept(str(tmp_path))

    def lose() -> None:
        with saving(kept.keep) as writer:
            writer.save(snapshot(model, optimiser, 1), {"step": 1})
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        lose()
    assert len(checkpoints_in(str(tmp_path))) == 1
