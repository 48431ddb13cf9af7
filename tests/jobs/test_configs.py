"""The example settings load, and say what their comments say."""

import math
from pathlib import Path

import pytest

from jobs.pretrain import PretrainJob
from pipeline.config import load
from pipeline.training.optim import peak_learning_rate

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


@pytest.mark.parametrize("name", ["pretrain", "pretrain_laptop", "pretrain_reference"])
def test_pretraining(name):
    settings = load(PretrainJob, ["--config", str(CONFIGS / f"{name}.yaml"), "--frame_set", "frames"])
    assert settings.frame_set == "frames"
    if name == "pretrain_reference":
        assert peak_learning_rate(settings.optimiser, 2048) == pytest.approx(1e-4 * math.sqrt(2048))
        assert settings.batch_size * settings.workers.num_workers == 2048
