"""Training with other numbers of workers than shares: real processes, the loop of pretraining as it is."""

import contextlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.errors import SettingsError
from pipeline.frames import windows
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.kept import Kept, checkpoints_in
from pipeline.models.pretrain import PretrainModel
from pipeline.training import pretrain
from pipeline.training.pretrain_recipe import check_recipe
from pipeline.training.pretrain_run import PretrainSettings, with_shares
from pipeline.training.worker import Worker
from pipeline.training.workers import WorkerSettings
from tests.tiny_sets import write_tiny_set
from tests.training.gloo import process_group

STEPS = 8  # two epochs of four


class Enough(Exception):
    """The step is done after which this leg of the run ends."""


def settings_for(folder: Path, **changes) -> PretrainSettings:
    values = {
        "frame_set": str(folder / "set"),
        "epochs": 2,
        "batch_size": 8,
        "shares": 2,
        "precision": "float32",
        "views": {"size": 32},
        "encoder": {"name": "resnet18", "width": 8},
        "projection": {"hidden": 16, "outputs": 8},
        # Adam would blow up what is left of gradients that are zero but for rounding.
        "optimiser": {"name": "sgd", "learning_rate": 0.05, "warmup_fraction": 0},
        "checkpoint": {"every_steps": 1},
        "log_every": 1,
    }
    return PretrainSettings.model_validate(values | changes)


def model_in_double(*args) -> PretrainModel:
    """In float64: small networks and batches blow up what differs by rounding."""
    model = PretrainModel(*args).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def train(settings: PretrainSettings, folder: str, rank: int, workers: int, until: int) -> None:
    """One worker's part of a run, from its last checkpoint until a step."""
    windows.read_items = lambda items, reader: ((item, reader.read(item)) for item in items)
    pretrain.PretrainModel = model_in_double  # type: ignore[misc, assignment]
    kept = Kept(folder)

    def report(metrics, save):
        if rank == 0 and save is not None:
            kept.keep(save, metrics)
        if metrics["step"] == until:
            raise Enough

    resume = kept.resume(f"{folder}/copies-{rank}", print)
    if workers > 1:
        dist.barrier()  # nobody writes what somebody still looks for
    with contextlib.suppress(Enough):
        worker = Worker(rank=rank, world_size=workers, folder=folder, resume=resume, report=report)
        pretrain.run_epochs(settings, check_recipe(settings, workers), worker)


def _process(rank: int, workers: int, port: int, settings: PretrainSettings, folder: str, until: int) -> None:
    with process_group(rank, workers, port):
        train(settings, folder, rank, workers, until)


def go_on(settings: PretrainSettings, folder: Path, workers: int, until: int, port: int) -> None:
    if workers == 1:
        train(settings, str(folder), 0, 1, until)
    else:
        mp.start_processes(
            _process, (workers, port, settings, str(folder), until), nprocs=workers, start_method="spawn"
        )


def final(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoints_in(str(folder))[-1])[0]


@pytest.fixture(autouse=True)
def reads_here(monkeypatch):
    for module, name in ((windows, "read_items"), (pretrain, "PretrainModel")):
        monkeypatch.setattr(module, name, getattr(module, name))  # puts back what `train` replaced


@pytest.mark.parametrize(
    ("whole", "legs", "changes"),
    [
        (2, [(1, 3), (2, 5), (4, 7), (1, STEPS)], {}),
        (2, [(1, STEPS)], {"sync_batch_norm": True, "objective": {"name": "hybrid"}}),
        (1, [(2, STEPS)], {"shares": 3, "micro_batch": 5}),
    ],
    ids=["1, 2, 4, 1 of 2", "1 of 2, synchronised", "2 of 3"],
)
def test_a_run_goes_on_with_any_number_of_workers(whole, legs, changes, tmp_path, free_port):
    """In the middle of an epoch, with weights as if it had always had `whole` workers."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32 * changes.get("shares", 2)}, labelled=False)
    settings = settings_for(tmp_path, **changes)
    go_on(settings, tmp_path / "whole", whole, STEPS, free_port)
    for workers, until in legs:
        go_on(settings, tmp_path / "changing", workers, until, free_port)
    expected, found = final(tmp_path / "whole"), final(tmp_path / "changing")
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6)


def test_shares_are_those_that_the_run_was_started_with(tmp_path):
    run = {"storage": str(tmp_path), "run_id": "a"}
    settings = settings_for(tmp_path, shares=None, run=run, workers={"num_workers": [1, 4]})
    assert with_shares(settings).shares == 4
    for saved, shares in (("shares: 3\nworkers: {num_workers: 2}", 3), ("workers: {num_workers: 2}", 2)):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a/settings.yaml").write_text(saved)
        assert with_shares(settings).shares == shares
    assert with_shares(settings_for(tmp_path, shares=5, run=run)).shares == 5


def test_more_workers_than_frames_are_refused(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    with pytest.raises(
        SettingsError, match=r"'workers.num_workers' = 17: 2 shares of batch_size = 8 give only 16 of them"
    ):
        check_recipe(settings_for(tmp_path), 17)


@pytest.mark.parametrize("value", [0, [2, 1], "many", [1, 2, 3], None, []])
def test_numbers_of_workers_that_mean_nothing(value):
    with pytest.raises(ValueError, match=r"a number of at least 1, or two of them, \[least, most\]"):
        WorkerSettings(num_workers=value)
    for one in (3, "3", [3]):
        assert WorkerSettings.model_validate({"num_workers": one}).num_workers == 3
    some = WorkerSettings(num_workers=(1, 4))
    assert (some.least, some.most) == (1, 4)
