import pytest
import torch
from torch import nn

from pipeline.errors import DamagedError, DataError
from pipeline.models import checkpoints
from pipeline.models.checkpoints import read_checkpoint, read_trainer_state, save_checkpoint, seal
from pipeline.storage import copy_from_local, join, write_bytes, write_json
from tests.training.damage import DAMAGES, damage


def test_round_trip_through_storage(tmp_path, s3):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimiser.step()
    save_checkpoint(tmp_path / "c", model, {"optimiser": optimiser.state_dict(), "step": 3}, {"kind": "pretrain"})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "checksums.json",
        "meta.json",
        "model.safetensors",
        "trainer.pt",
    ]
    copy_from_local(tmp_path / "c", f"{s3}/c")
    weights, meta = read_checkpoint(f"{s3}/c")
    assert meta == {"format_version": 1, "kind": "pretrain"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    state = read_trainer_state(tmp_path / "c")
    assert state["step"] == 3
    torch.optim.AdamW(model.parameters()).load_state_dict(state["optimiser"])


def test_wrong_directories_are_named(tmp_path):
    with pytest.raises(DataError, match="not a checkpoint directory"):
        read_checkpoint(str(tmp_path))
    save_checkpoint(tmp_path / "c", nn.Linear(1, 1), {}, {})
    write_json(join(str(tmp_path), "c/meta.json"), {"format_version": 99})
    seal(tmp_path / "c")
    with pytest.raises(DataError, match="format 99 is not known"):
        read_checkpoint(str(tmp_path / "c"))
    (tmp_path / "c/checksums.json").unlink()
    write_json(join(str(tmp_path), "c/meta.json"), {"format_version": 1})
    write_bytes(join(str(tmp_path), "c/model.safetensors"), b"cut off")
    with pytest.raises(DataError, match=r"model\.safetensors: damaged"):
        read_checkpoint(str(tmp_path / "c"))
    (tmp_path / "c/trainer.pt").unlink()
    with pytest.raises(DamagedError, match=r"trainer\.pt"):
        read_trainer_state(tmp_path / "c")


def test_a_file_that_comes_later_is_sealed_by_itself(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", nn.Linear(1, 1), {"step": 1}, {})
    write_json(join(str(tmp_path), "c/history.json"), {"metrics": []})
    read: list[str] = []
    crc = checkpoints._crc32_of

    def noted(path):
        read.append(path.name)
        return crc(path)

    monkeypatch.setattr(checkpoints, "_crc32_of", noted)
    seal(tmp_path / "c", "history.json")
    assert read == ["history.json"]
    of_added = (tmp_path / "c/checksums.json").read_bytes()
    seal(tmp_path / "c")
    assert (tmp_path / "c/checksums.json").read_bytes() == of_added
    (tmp_path / "c/checksums.json").unlink()
    seal(tmp_path / "c", "history.json")  # nothing was sealed before: all is
    assert (tmp_path / "c/checksums.json").read_bytes() == of_added


def test_pickled_code_is_not_loaded(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"x": Evil()}, tmp_path / "trainer.pt")
    with pytest.raises(DamagedError, match=r"trainer\.pt: damaged, or holds Python objects"):
        read_trainer_state(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "meta.json"])
def test_a_changed_file_is_noticed_where_it_is_loaded(tmp_path, file, how):
    save_checkpoint(tmp_path / "c", nn.Linear(8, 8), {"step": 1}, {"kind": "pretrain"})
    damage(str(tmp_path / "c" / file), how)
    with pytest.raises(DamagedError, match=f"^{tmp_path}/c/{file}: (missing|damaged)"):
        read_checkpoint(str(tmp_path / "c"))
