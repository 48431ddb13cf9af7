"""A training's checkpoints in storage: which are kept, and which one is gone on from, whatever happened to them."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import DataError
from pipeline.models.checkpoints import CHECKSUMS, read_trainer_state, save_checkpoint
from pipeline.models.kept import Kept, OutOfTime, checkpoints_in, read_best
from pipeline.storage import copy_tree, delete, exists, is_local, join, list_folders, write_bytes
from tests.training.damage import DAMAGES, damage


def saver(step: int, score: float | None = None):
    def save(directory: Path) -> None:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, step)
        metrics = {"step": step} if score is None else {"step": step, "score": score}
        save_checkpoint(directory, model, {"step": step}, {"kind": "pretrain", "metrics": metrics})

    return save


def keep(kept: Kept, step: int, score: float | None = None, last: bool = False) -> None:
    metrics = {"step": step, "epoch": step / 10, "loss": 1.0, "pictures": ["views.png"]}
    kept.keep(saver(step, score), metrics if score is None else {**metrics, "score": score}, last=last)


def resumed_step(kept: Kept, directory: Path, say=lambda text: None) -> int:
    found = kept.resume(directory, say)
    assert found is not None
    return read_trainer_state(found)["step"]


def names(folder: str) -> list[str]:
    return [uri.rsplit("/", 1)[-1] for uri in checkpoints_in(folder)]


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else f"{request.getfixturevalue('s3')}/run"


def test_the_newest_two_and_the_best_are_kept(folder, tmp_path):
    kept = Kept(folder, num_best=2)
    assert kept.resume(tmp_path) is None
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.5), (40, 2.0), (50, None), (60, 2.7), (70, 2.8)):
        keep(kept, step, score)
    assert names(folder) == ["checkpoint_000002", "checkpoint_000004", "checkpoint_000006", "checkpoint_000007"]
    again = Kept(folder, num_best=1)
    assert resumed_step(again, tmp_path) == 70
    assert [entry["step"] for entry in again.history] == [10, 20, 30, 40, 50, 60, 70]
    assert again.history[0] == {"step": 10, "epoch": 1.0, "loss": 1.0, "score": 3.0}
    assert again.wall_s >= 0
    uri, weights, meta = read_best(folder)
    assert (uri, meta["metrics"]["step"]) == (join(folder, "checkpoint_000002"), 20)
    assert weights["weight"][0, 0] == 20
    keep(again, 80, 9.0)
    assert names(folder) == ["checkpoint_000002", "checkpoint_000007", "checkpoint_000008"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["trainer.pt", "model.safetensors", "meta.json", "history.json", CHECKSUMS])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, file, how):
    folder = str(tmp_path / "run")
    kept = Kept(folder)
    for step in (10, 20, 30):
        keep(kept, step)
    newest = join(folder, "checkpoint_000003")
    damage(join(newest, file), how)
    said: list[str] = []
    again = Kept(folder)
    if (file, how) == (CHECKSUMS, "missing"):  # such are those of older versions
        assert resumed_step(again, tmp_path, said.append) == 30
        assert said == []
        return
    assert resumed_step(again, tmp_path, said.append) == 20
    (warning,) = said
    assert warning.startswith(join(newest, file))
    assert warning.endswith(f"; going on from the checkpoint before it, {join(folder, 'checkpoint_000002')}")
    # What came after is forgotten, and its checkpoint replaced once training is there again.
    assert [entry["step"] for entry in again.history] == [10, 20]
    keep(again, 30)
    assert resumed_step(Kept(folder), tmp_path, said.append) == 30
    assert len(said) == 1


def test_damage_in_storage(s3, tmp_path):
    folder = join(s3, "run")
    kept = Kept(folder)
    for step in (10, 20, 30):
        keep(kept, step)
    said: list[str] = []
    damage(join(folder, "checkpoint_000003/trainer.pt"), "one byte changed")
    assert resumed_step(Kept(folder), tmp_path / "a", said.append) == 20
    assert said[0].startswith(f"{folder}/checkpoint_000003/trainer.pt: damaged (it is not as it was written")
    damage(join(folder, "checkpoint_000002/model.safetensors"), "cut off")
    with pytest.raises(DataError) as caught:
        Kept(folder).resume(tmp_path / "b", said.append)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}: none of its checkpoints can be read: {folder}/checkpoint_000003/trainer.pt")
    assert f"{folder}/checkpoint_000002/model.safetensors: damaged" in message
    assert message.endswith("put copies of these files back, or delete these checkpoints' folders to start anew")
    assert len(said) == 1


@pytest.mark.parametrize("how", ["empty", "cut off", "missing"])
@pytest.mark.parametrize("file", ["trainer.pt", "model.safetensors", "meta.json"])
def test_older_checkpoints_are_read_and_named_as_ray_did(tmp_path, file, how):
    """Without checksums and history, only what cannot be read at all is noticed."""
    folder = str(tmp_path / "run")
    for name, step in (("checkpoint_2026-11-26_08-00-00.1", 10), ("checkpoint_2026-11-26_09-00-00.2", 20)):
        saver(step, step / 10)(Path(folder, name))
        Path(folder, name, CHECKSUMS).unlink()
    assert resumed_step(Kept(folder), tmp_path) == 20
    damage(join(folder, "checkpoint_2026-11-26_09-00-00.2", file), how)
    said: list[str] = []
    kept = Kept(folder)
    if (file, how) == ("meta.json", "missing"):  # looks like an upload that broke off
        assert resumed_step(kept, tmp_path, said.append) == 10
        assert said == []
    else:
        assert resumed_step(kept, tmp_path, said.append) == 10
        assert f"checkpoint_2026-11-26_09-00-00.2/{file}" in said[0]
    keep(kept, 20, 5.0)
    assert names(folder)[-1] == "checkpoint_000001"
    assert read_best(folder)[2]["metrics"]["step"] == 10


def test_an_upload_that_broke_off_is_not_gone_on_from(folder, tmp_path, monkeypatch):
    """The process dies while it uploads a checkpoint, or before."""
    kept = Kept(folder)
    keep(kept, 10)

    def dies(directory: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.keep(dies, {"step": 20})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.models.kept.write_bytes", dies_at_meta)
        with pytest.raises(KeyboardInterrupt):
            keep(kept, 20)
    assert len(list_folders(folder)) == 2
    said: list[str] = []
    again = Kept(folder)
    assert resumed_step(again, tmp_path, said.append) == 10
    assert said == []  # nothing that was there is lost
    keep(again, 20)
    final = Kept(folder)
    assert resumed_step(final, tmp_path / "final") == 20
    assert [entry["step"] for entry in final.history] == [10, 20]


def dies_at_meta(uri: str, data: bytes) -> None:
    raise KeyboardInterrupt


def test_the_deadline_ends_the_work_after_its_checkpoint_but_not_at_its_end(folder):
    late = Kept(folder, deadline=time.time() - 1)
    with pytest.raises(OutOfTime):
        keep(late, 10)
    assert exists(join(folder, "checkpoint_000001", "meta.json"))
    keep(late, 20, last=True)
    keep(Kept(folder, deadline=time.time() + 100), 30)


def test_the_best_that_is_whole(folder, caplog):
    """Of a run: the one that its result names, else the next best. Of a search: of all its trials."""
    kept = Kept(folder, num_best=3)
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0)):
        keep(kept, step, score)
    second = join(folder, "checkpoint_000002")
    assert read_best(folder, second)[0] == second
    damage(join(second, "model.safetensors"), "one byte changed")
    uri, _, meta = read_best(folder, second)
    assert meta["metrics"]["step"] == 30
    assert f"{second}/model.safetensors: damaged" in caplog.text
    assert f"{uri} is taken in its place" in caplog.text
    damage(join(second, "meta.json"), "empty")
    assert read_best(folder)[0] == uri
    trial = join(folder, "trials", "a")
    copy_tree(join(folder, "checkpoint_000003"), join(trial, "checkpoint_000001"))
    for name in names(folder):
        delete(join(folder, name))
    assert read_best(folder, second)[0] == join(trial, "checkpoint_000001")
    damage(join(trial, "checkpoint_000001", "meta.json"), "cut off")
    with pytest.raises(DataError, match=r"no checkpoint of this run can be read: .*put copies of these files back"):
        read_best(folder, second)


def test_other_folders_of_a_run_are_no_checkpoints(folder):
    keep(Kept(folder), 10)
    write_bytes(join(folder, "pictures/views.png"), b"")
    write_bytes(join(folder, "best/meta.json"), b"")
    assert names(folder) == ["checkpoint_000001"]
    assert is_local(folder) or all(uri.startswith("s3://") for uri in checkpoints_in(folder))
    assert torch.equal(read_best(folder)[1]["weight"], torch.full((2, 2), 10.0))
