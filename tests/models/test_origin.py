"""Which run, or which file, weights are of."""

import subprocess

import pytest
from torch import nn

from pipeline.config import Settings
from pipeline.models.checkpoints import Snapshot
from pipeline.models.kept import Kept
from pipeline.models.origin import origin_of
from pipeline.models.shipped import model_uri
from pipeline.runs import RunSettings, open_run
from pipeline.search.settings import SearchSettings
from pipeline.storage import join, write_bytes, write_json
from pipeline.tracked import Origin
from pipeline.tracking_links import Source
from pipeline.training.finetune_run import FinetuneRunSettings
from pipeline.training.pretrain_run import PretrainSettings


def sha256(path) -> str:
    """As another program has it."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path) -> str:
    return str(tmp_path / "runs") if request.param == "local" else join(request.getfixturevalue("s3"), "runs")


def test_a_run_is_known_by_its_folder_and_by_what_is_in_it(storage):
    folder = join(storage, "search-1")
    write_json(join(folder, "result.json"), {"run_id": "search-1", "kind": "search", "mlflow_run_id": "5f"})
    write_bytes(join(folder, "best/meta.json"), b"{}")
    write_bytes(join(folder, "trials/0007/checkpoint_000002/meta.json"), b"{}")
    write_bytes(join(folder, "export/encoder.pth"), b"weights")
    write_json(join(folder, "trials/0007/result.json"), {"run_id": "0007", "kind": "finetune"})  # of several workers
    expected = Origin([Source("search", "search-1", "5f")], {})
    for name in ("", "best", "trials/0007/checkpoint_000002", "export/encoder.pth"):
        assert origin_of(join(folder, name) if name else f"{folder}/") == expected
    assert origin_of(folder, None, join(folder, "best")) == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("pretrain", PretrainSettings(frame_set="frames")),
        ("finetune", FinetuneRunSettings(frame_set="frames")),
        ("search", SearchSettings.model_validate({"finetune": {"frame_set": "frames"}})),
    ],
)
def test_so_is_one_that_has_not_finished(kind, settings: Settings, tmp_path):
    run = RunSettings(storage=str(tmp_path), run_id="run-1")
    folder, _ = open_run(settings, run, "run-1")
    kept = Kept(folder)
    kept.keep(Snapshot(nn.Linear(2, 2).state_dict(), {}, {}), {"score": 1.0})
    assert origin_of(kept.newest) == Origin([Source(kind, "run-1")], {})


def test_of_other_weights_there_is_a_digest(storage, tmp_path):
    (tmp_path / "resnet18.pth").write_bytes(b"weights")
    uri = join(storage, "resnet18.pth")
    write_bytes(uri, b"weights")
    digest = sha256(tmp_path / "resnet18.pth")
    shipped = sha256(f"{model_uri('equihand-small')}/model.safetensors")
    assert origin_of(uri) == Origin([], {"equihand.init": f"{uri} sha256:{digest}"})
    both = f"equihand-small sha256:{shipped}, {uri} sha256:{digest}"
    assert origin_of("equihand-small", uri).tags == {"equihand.init": both}
    assert origin_of(None) == Origin([], {})


def test_what_cannot_be_read_is_named_all_the_same(tmp_path, monkeypatch):
    missing = str(tmp_path / "none.pth")
    assert origin_of(missing).tags == {"equihand.init": missing}
    (tmp_path / "large.pth").write_bytes(b"weights")
    (tmp_path / "result.json").write_bytes(b"{")  # damaged, or of something else
    monkeypatch.setattr("pipeline.models.origin._MAX_HASHED", 6)
    assert origin_of(str(tmp_path / "large.pth")).tags == {"equihand.init": f"{tmp_path}/large.pth (7 bytes)"}
    (tmp_path / "result.json").write_bytes(b'{"accuracy": 1}')
    assert origin_of(str(tmp_path / "large.pth")).runs == []
