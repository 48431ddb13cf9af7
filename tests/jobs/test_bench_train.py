import pytest
import torch
import torch.nn.functional as F

from jobs import bench_peers, bench_train
from jobs.bench_train import BenchTrainJob, nt_xent
from pipeline.models.encoder import EncoderSettings
from pipeline.objectives.contrastive import nt_xent as ours

TINY = BenchTrainJob(
    encoder=EncoderSettings(width=8),
    view_size=32,
    image_size=40,
    batch_size=4,
    num_workers=1,
    seconds=0.05,
    job_frames=64,
)


def test_rows_and_ratios_to_the_bare_network(monkeypatch):
    def absent(settings, crop_size):
        raise AssertionError("is not installed")

    monkeypatch.setattr(bench_train, "PEERS", {"gone": (absent, "no-such-package")} | {
        name: bench_peers.PEERS[name] for name in ("torchvision v2",)
    })  # fmt: skip
    monkeypatch.setattr(bench_train, "_job", lambda settings, session: 50.0)
    bare, steps, job, gone, peer = bench_train.run(TINY)["rows"]
    assert bare["value"] > 0
    assert steps["ratio"] == pytest.approx(steps["value"] / bare["value"])
    assert job["ratio"] == pytest.approx(50 / bare["value"])
    assert gone["value"] is None
    assert "not installed" in gone["against"]
    assert peer["ratio"] == pytest.approx(peer["value"] / bare["value"])
    assert peer["value"] > 0


def test_the_scripts_loss_is_ours():
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    torch.testing.assert_close(nt_xent(torch.cat([first, second]), 0.3), ours(first, second, 0.3))
