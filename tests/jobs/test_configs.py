"""The example settings load, and say what their comments say."""

import math
from pathlib import Path
from typing import get_args

import pytest

from jobs import ingest, pretrain, search, synthesize
from pipeline.frames.sources import AnySource
from pipeline.search.space import check_space
from pipeline.training.optim import peak_learning_rate

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


@pytest.mark.parametrize("name", ["pretrain", "pretrain_laptop", "pretrain_reference"])
def test_pretraining(name):
    settings = pretrain.JOB.load(["--config", str(CONFIGS / f"{name}.yaml"), "--frame_set", "frames"])
    assert settings.frame_set == "frames"
    if name == "pretrain_reference":
        assert peak_learning_rate(settings.optimiser, 2048) == pytest.approx(1e-4 * math.sqrt(2048))
        assert settings.batch_size * settings.workers.num_workers == 2048


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ingest_*.yaml")), ids=lambda path: path.stem)
def test_ingest(path):
    settings = ingest.JOB.load(["--config", str(path), "--output", "frames"])
    assert settings.output == "frames"
    settings.source.reader()
    assert f"--config jobs/configs/{path.name}" in path.read_text()


def test_every_kind_of_source_has_settings_to_start_from():
    kinds = {ingest.JOB.load(["--config", str(path)]).source.kind for path in CONFIGS.glob("ingest_*.yaml")}
    union, _ = get_args(AnySource)
    assert kinds == {member.model_fields["kind"].default for member in get_args(union)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("synthesize*.yaml")), ids=lambda path: path.stem)
def test_synthesis(path):
    settings = synthesize.JOB.load(["--config", str(path), "--out", "clips"])
    assert f"--config jobs/configs/{path.name}" in path.read_text()
    if path.stem != "synthesize":
        assert settings.look == "varied"
        assert settings.viewpoint == path.stem.removeprefix("synthesize_").replace("varied", "anywhere")
        assert settings.imaging.jpeg > 0  # sections that are given in part keep the rest of the look


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("search*.yaml")), ids=lambda path: path.stem)
def test_search(path):
    unlabelled = ["--pretrain.frame_set", "unlabelled"] if "\npretrain:" in path.read_text() else []
    settings = search.JOB.load(["--config", str(path), "--finetune.frame_set", "frames", *unlabelled])
    check_space(settings.space, settings.finetune, settings.pretrain, settings.scheduler == "pbt")
    assert f"--config jobs/configs/{path.name}" in path.read_text()
