"""Which alias a campaign's model gets, with real models in a real registry on SQLite; only their errors are made up."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.campaign import registration
from pipeline.campaign.held_out import HeldOut, HeldOutSplit, ModelErrors, measure
from pipeline.campaign.registration import CHECKPOINT, metrics_of, register
from pipeline.errors import DataError
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSettings, select_labels
from pipeline.geometry import default_camera
from pipeline.registry import Version, download, promote, rollback, versions
from pipeline.tracked import tracked
from pipeline.tracking import StoredRun, TrackingSettings, stored_run
from tests.campaign.made_up import SIZE, model_errors, save_pose_model
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_set(str(folder / "set"), splits={"train": 16, "val": 4, "test": 20}, wobble=0.01)
    return save_pose_model(folder / "run", str(folder / "set"))


class Registry:
    """A registry in which campaigns register the same model with errors of their choice."""

    def __init__(self, tracking: TrackingSettings, run: StoredRun, model: str, name: str) -> None:
        self.tracking, self.run, self.model, self.name = tracking, run, model, name
        self.measured: list[int] = []

    def register(self, key: str, mean: float, champion: float | Exception = 0.0, **changes):
        """champion: the mean error of the one that there is, on this campaign's test split."""
        errors = model_errors(self.model, mean, **changes)

        def measured(version: Version) -> ModelErrors:
            self.measured.append(version.number)
            if isinstance(champion, Exception):
                raise champion
            return model_errors("other", champion, digest=errors.about.test_digest, seed=9)

        return register(
            self.name, self.tracking, self.run, key, errors, "pa_epe_mm", {"equihand.search": key}, measured
        )

    def aliases(self) -> dict[int, tuple[str, ...]]:
        return {version.number: version.aliases for version in versions(self.tracking, self.name)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[TrackingSettings, StoredRun]:
    """MLflow takes seconds to make a database: all share one."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    with tracked(tracking, str(folder / "run"), "s-winner", "winner", tracking) as open_run:
        open_run.opened()
    return tracking, stored_run(tracking, {"run_id": "s-winner", "kind": "winner"})


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory) -> Path:
    """The files of a version: exporting takes seconds, too."""
    return registration._packed(trained, "hand", tmp_path_factory.mktemp("packed"))


@pytest.fixture
def registry(run, trained, packed, request, monkeypatch) -> Registry:
    monkeypatch.setattr(registration, "_packed", lambda *_: packed)
    return Registry(run[0], run[1], trained, re.sub(r"\W", "-", request.node.name))


def test_the_champion_is_only_replaced_by_what_is_surely_better(registry):
    first = registry.register("a", 20.0)
    assert (first["version"], first["alias"], first["champion_before"]) == (1, "champion", None)
    assert first["verdict"].startswith(
        "first champion: version 1 is better than always answering one fixed hand: PA-EPE"
    )
    assert registry.measured == []

    # Hardly better: a challenger.
    same = registry.register("b", 19.98, champion=20.0)
    assert (same["version"], same["alias"], same["uri"]) == (2, "challenger", f"models:/{registry.name}/2")
    assert same["verdict"].startswith(
        "challenger: No clear difference between version 2 and the champion (version 1): "
    )
    assert same["champion_before"]["version"] == 1
    assert same["champion_before"]["was_tested_on_these"]
    assert same["champion_before"]["metrics"]["pa_epe_mm"] == pytest.approx(20.0, abs=0.5)

    better = registry.register("c", 18.0, champion=20.0)
    assert (better["version"], better["alias"]) == (3, "champion")
    assert better["verdict"].startswith("champion: version 3 is better than the champion (version 1): PA-EPE 18.")
    worse = registry.register("d", 19.0, champion=18.0)
    assert (worse["version"], worse["alias"]) == (4, "challenger")
    assert registry.aliases() == {4: ("challenger",), 3: ("champion",), 2: (), 1: ()}
    assert rollback(registry.tracking, registry.name) == (3, 1)


def test_another_test_split_has_the_champion_tested_anew(registry):
    registry.register("a", 20.0)
    other = registry.register("b", 15.0, champion=17.0, digest="bb", trained_on="set-2")
    assert registry.measured == [1]
    assert other["alias"] == "champion"
    assert other["champion_before"]["metrics"]["pa_epe_mm"] == pytest.approx(17.0, abs=0.5)  # not 20
    assert not other["champion_before"]["was_tested_on_these"]
    assert "had been tested on other frames, and was tested anew on these" in other["verdict"]
    assert "trained on another frame set, which may hold some of these frames" in other["verdict"]


@pytest.mark.parametrize("champion", [None, 40.0])
def test_what_does_not_beat_one_fixed_hand_is_no_champion(champion, registry):
    if champion is not None:
        registry.register("a", 20.0)
    found = registry.register("b", 31.0, champion=champion or 0.0)
    assert found["alias"] == "challenger"
    assert "is worse than always answering one fixed hand" in found["verdict"]
    unknown = registry.register("c", 15.0, champion=champion or 0.0, constant=None)
    assert unknown["alias"] == "challenger"
    assert "not known whether it beats one fixed hand" in unknown["verdict"]


def test_few_clips_make_no_champion(registry):
    found = registry.register("a", 10.0, num_clips=4)
    assert found["alias"] == "challenger"
    assert found["verdict"].endswith("With fewer than 5 test clips this is not sure.")


def test_a_champion_that_cannot_be_tested_stays_and_the_way_out_is_named(registry):
    registry.register("a", 20.0)
    found = registry.register("b", 10.0, champion=DataError("version 1 has no folder 'checkpoint'"))
    assert found["alias"] == "challenger"
    assert (
        "version 1, the champion, cannot be tested on these frames (version 1 has no folder 'checkpoint')"
        in found["verdict"]
    )
    assert f"`python -m jobs.champion {registry.name} --promote 2`" in found["verdict"]
    assert promote(registry.tracking, registry.name, 2) == 1


def test_the_same_model_is_registered_once(registry):
    first = registry.register("a", 20.0)
    assert registry.register("a", 20.0) == first
    second = registry.register("b", 21.0, champion=20.0)
    assert registry.register("b", 21.0, champion=20.0) == second
    assert len(versions(registry.tracking, registry.name)) == 2


def test_whoever_became_champion_meanwhile_is_compared_too(registry):
    """Another campaign promotes its model while this one tests the champion."""
    registry.register("a", 20.0)
    registry.register("b", 19.9, champion=20.0)
    errors = model_errors(registry.model, 15.0)

    def measured(version: Version) -> ModelErrors:
        registry.measured.append(version.number)
        if version.number == 1:
            promote(registry.tracking, registry.name, 2)
            return model_errors("other", 20.0, seed=9)
        return model_errors("other", 12.0, seed=9)

    registry.measured.clear()
    found = register(registry.name, registry.tracking, registry.run, "c", errors, "pa_epe_mm", {}, measured)
    assert registry.measured == [1, 2]
    assert (found["alias"], found["champion_before"]["version"]) == ("challenger", 2)
    assert registry.aliases() == {3: ("challenger",), 2: ("champion",), 1: ()}


def test_a_version_says_what_it_is_and_can_be_used_and_tested_again(registry, trained, tmp_path):
    registry.register("a", 20.0)
    (version,) = versions(registry.tracking, registry.name)
    tags = version.tags
    assert (tags["equihand.test_digest"], tags["equihand.split"], tags["equihand.protocol"]) == (
        "aa",
        "test",
        "freihand",
    )
    assert tags["equihand.search"] == "a"
    assert tags["equihand.verdict"].startswith("first champion: ")
    assert set(metrics_of(version)) == {"pa_epe_mm", "constant_pa_epe_mm"}
    assert metrics_of(version)["pa_epe_mm"] == pytest.approx(20.0, abs=0.5)
    assert version.mlflow_run_id == registry.run.mlflow_run_id

    import mlflow

    mlflow.set_tracking_uri(registry.tracking.uri)
    model = mlflow.pyfunc.load_model(f"models:/{registry.name}@champion")
    assert model.metadata.signature is not None
    assert model.metadata.saved_input_example_info is not None
    images = np.zeros((2, 3, SIZE, SIZE), dtype=np.uint8)
    assert model.predict({"images": images, "camera": default_camera(2, SIZE).numpy()})["joints_3d"].shape == (2, 21, 3)

    # Its checkpoint gives the very errors of the model that was registered.
    local = download(registry.tracking, version, CHECKPOINT, tmp_path / "copy")
    frames = FrameSet.open(trained.replace("/run", "/set"))
    about = HeldOutSplit.of(frames, "test", "freihand")
    held_out = HeldOut.load(frames, about, select_labels(frames, "train", LabelSettings()).constant_2d)
    found, expected = (measure(uri, held_out, torch.device("cpu")) for uri in (local, trained))
    assert (found.errors, found.metrics) == (expected.errors, expected.metrics)
    assert found.frame_set_digest == expected.frame_set_digest == frames.manifest.digest
