import contextlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.models.checkpoints import read_checkpoint, read_trainer_state
from pipeline.training import contrast
from pipeline.training.bad_steps import GuardedStep, backward_from, step_where
from pipeline.training.optim import OptimiserSettings, build_optimiser
from pipeline.training.pretrain import Steps
from pipeline.training.worker import LossLog, Worker, check_finite
from tests.tiny_sets import write_tiny_set
from tests.training.gloo import process_group
from tests.training.test_pretrain import Training, small

OPTIMISERS = ["adamw", "sgd", "lars", "lamb", "adam-in-lars"]
NAN, INF = float("nan"), float("inf")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def inputs(step: int) -> torch.Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


class Loop:
    """Some steps of a small network. guarded: as the trainings make them, else as they would be without any guard."""

    def __init__(self, name: str, clip: float | None, guarded: bool = True) -> None:
        self.model, self.guarded, self.clip = network(), guarded, clip
        settings = OptimiserSettings.model_validate({"name": name, "learning_rate": 0.01})
        self.optimiser = build_optimiser(self.model, settings)
        self.guard = GuardedStep(self.optimiser, self.model, clip)

    def run(self, step: int, factor: float = 1.0) -> bool:
        """factor: of the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        self.guard.begin()
        loss = self.model(inputs(step)).square().mean() * factor
        if self.guarded:
            backward_from(loss)
            return bool(self.guard.take())
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        return True

    def state(self) -> list[torch.Tensor]:
        """Weights, running statistics, and the optimiser's tensors; not how often a norm layer has seen a batch."""
        weights = [value for name, value in self.model.state_dict().items() if not name.endswith("num_batches_tracked")]
        of_optimiser = [v for state in self.optimiser.state.values() for v in state.values() if torch.is_tensor(v)]
        return [value.clone() for value in (*weights, *of_optimiser)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("without_asking", [False, True])
def test_good_steps_are_the_same_to_the_bit_and_bad_ones_change_nothing(name, clip, without_asking, monkeypatch):
    """without_asking: the way of a device that is not waited for, here on a CPU."""
    if without_asking:
        monkeypatch.setattr(GuardedStep, "take", _take_without_asking)
    guarded, plain = Loop(name, clip), Loop(name, clip, guarded=False)
    assert not guarded.run(99, NAN)  # the first of all, when the optimiser has no state
    for step in range(4):
        assert guarded.run(step)
        plain.run(step)
        if not (
            without_asking and name == "lamb"
        ):  # it counts its steps by itself, with which its first ones are scaled
            assert same(guarded.state(), plain.state()), step
        before = guarded.state()
        for factor in (NAN, INF, 1e38):  # the last has a finite loss, but no finite gradients
            assert not guarded.run(50 + step, factor)
            assert same(guarded.state(), before), factor


def _take_without_asking(guard: GuardedStep) -> torch.Tensor:
    network = guard._network
    norm = nn.utils.clip_grad_norm_(network.parameters(), guard._gradient_clip or INF)
    if guard._gradient_clip is None:
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    step_where(torch.isfinite(norm), guard._optimiser)
    guard._restore_where(~torch.isfinite(norm))
    return torch.isfinite(norm)


def _worker(rank: int, port: int, folder: str) -> None:
    with process_group(rank, 2, port):
        said: list[str] = []
        loop, worker = Loop("adamw", None), Worker(rank=rank, world_size=2, say=said.append)
        loop.guard = GuardedStep(loop.optimiser, network := worker.distributed(loop.model), None)
        log = LossLog(worker, max_bad_steps=2)
        errors: list[str | list[float]] = []
        taken: list[torch.Tensor] = []
        for step, (losses, gradients) in enumerate([(1.0, 1.0), (1.0, NAN), (1.0, 1.0), (INF, 1.0), (1.0, 1e38)]):
            loop.optimiser.zero_grad(set_to_none=True)
            loop.guard.begin()
            # The second worker's loss is not finite in the fourth step; its gradients are not in the second and the last.
            loss = network(inputs(2 * step + rank)).square().mean() * (gradients if rank else 1.0)
            loss = loss + (losses if rank and losses != 1.0 else 0.0)
            backward_from(loss)
            taken.append(loop.guard.take())
            log.add(loss.detach(), taken[-1], [f"w{rank}/{step}/{frame}" for frame in range(5)])
            if step % 2 == 0:
                try:
                    errors.append(log.take(step + 1).losses)
                except TrainingError as error:
                    errors.append(str(error))
        weights = [value.tolist() for value in loop.model.parameters()]
        result = {"taken": [bool(each) for each in taken], "took": errors, "said": said, "weights": weights}
        Path(folder, f"{rank}.json").write_text(json.dumps(result))


def test_workers_leave_out_the_same_steps(tmp_path, free_port):
    torch.multiprocessing.spawn(_worker, (free_port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["taken"] == second["taken"] == [True, False, True, False, False]
    assert first["took"] == second["took"]
    assert first["weights"] == second["weights"]
    (said,) = first["said"]
    assert said.startswith(
        "the loss is nan at step 2 on worker 1 (frames w1/1/0, w1/1/1, w1/1/2 and 2 more); this step"
    )
    assert second["said"] == []
    # Both losses of the last step are finite, so it cannot be told whose gradients are not.
    error = first["took"][-1]
    assert error.startswith("the gradients are not finite at step 5 on worker 0 (frames w0/4/0,")
    assert "; worker 1 (frames w1/4/0," in error
    assert "with 3 such steps, optimiser.max_bad_steps = 2 is exceeded" in error
    assert "\n" not in error


@pytest.fixture
def in_process(monkeypatch):
    """Frames are read here instead of in Ray Data's tasks."""
    monkeypatch.setattr(
        "pipeline.frames.windows.read_items",
        lambda items, reader: ((item, reader.read(item)) for item in items),
    )


@pytest.mark.usefixtures("in_process")
def test_a_pretraining_goes_on_after_bad_steps_and_counts_them(tmp_path, monkeypatch, caplog):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    settings = small(str(tmp_path / "set"), epochs=3, log_every=1, checkpoint={"every_steps": 1})
    run, bad = Steps.run, {3, 4, 9}

    apply_views = contrast.apply_views

    now = False

    def broken(frames, views, view_settings):
        images = apply_views(frames, views, view_settings)
        return images * NAN if now else images

    def with_bad(steps, batch, *more):
        nonlocal now
        now = batch.epoch * 4 + batch.step + 1 in bad
        run(steps, batch, *more)
        now = False

    monkeypatch.setattr(contrast, "apply_views", broken)
    monkeypatch.setattr(Steps, "run", with_bad)
    training = Training(settings, tmp_path / "run")
    counted = [metrics["bad_steps"] for metrics in training.checkpoints]
    assert counted == [0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]
    assert ["loss" in metrics for metrics in training.checkpoints] == [step not in bad for step in range(1, 13)]
    assert all(math.isfinite(v) for metrics in training.checkpoints for v in metrics.values() if isinstance(v, float))
    assert training.result["metrics"]["bad_steps"] == 3
    assert caplog.text.count("this step changes nothing") == 1
    assert "the loss is nan at step 3 on worker 0 (frames tiny/train-" in caplog.text
    for folder in sorted((tmp_path / "run").glob("checkpoint_*")):
        weights, _ = read_checkpoint(str(folder))
        assert all(values.isfinite().all() for values in weights.values())
        state = read_trainer_state(folder)["optimiser"]["state"]
        assert all(torch.as_tensor(v).isfinite().all() for each in state.values() for v in each.values())

    # A run that goes on counts on.
    fewer = settings.model_copy(update={"optimiser": OptimiserSettings(learning_rate=3e-3, max_bad_steps=2)})
    with contextlib.suppress(TrainingError):
        Training(fewer, tmp_path / "other")
    there = sorted((tmp_path / "other").glob("checkpoint_*/meta.json"))
    assert [json.loads(path.read_text())["step"] for path in there][-1] == 8
    with pytest.raises(TrainingError, match=r"the loss is nan at step 9 on .*with 3 such steps"):
        Training(fewer, tmp_path / "other")


def test_an_optimiser_whose_state_overflowed_is_not_saved():
    loop = Loop("adamw", None)
    loop.run(0)
    check_finite(loop.model, loop.optimiser, 1)
    next(iter(loop.optimiser.state.values()))["exp_avg_sq"][0] = INF
    with pytest.raises(TrainingError, match=r"'exp_avg_sq of 0\.weight' is no longer finite after step 1"):
        check_finite(loop.model, loop.optimiser, 1)


def test_an_epoch_without_a_good_step_ends_the_run():
    log = LossLog(Worker(say=lambda _: None), max_bad_steps=10)
    nothing, bad, good = torch.tensor(float("nan")), torch.tensor(False), torch.tensor(True)
    log.add(nothing, bad)
    log.take(1)
    log.add(torch.tensor(2.0), good)
    assert log.take(2, epoch_ends=True).losses == [2.0]
    for step in (3, 4):
        log.add(nothing, bad)
        if step == 3:
            assert log.take(step).losses == []
    with pytest.raises(TrainingError, match="the loss is nan at step 4 on worker 0, and no other step of this epoch"):
        log.take(4, epoch_ends=True)
