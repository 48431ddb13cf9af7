"""Crowning a winner in one process, without a cluster: what is done again after a kill and after more trials, and what is not."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.campaign import trainings, winner
from pipeline.campaign.winner import WinnerSettings, crown
from pipeline.errors import EquihandError, TrainingError
from pipeline.models.weights import load_pose_model
from pipeline.registry import versions
from pipeline.search.settings import SearchSettings
from pipeline.storage import delete, exists, join, read_json
from pipeline.tracked import tracked
from tests.tiny_sets import write_tiny_set


class Cluster:
    """Tasks run here, one after the other; counts the trainings, and is lost after so many of them."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.most = 1000

    def post(self, key: str, frames: int) -> None:
        pass

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def run_tasks(self, work, items, needs, *shared):
        for item in items:
            if work is trainings.train:
                if len(self.trained) == self.most:
                    raise KeyboardInterrupt
                self.trained.append("/".join(item.folder.split("/")[-2:]))
            try:
                yield item, work(item, *shared)
            except EquihandError as error:
                yield item, error


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    found = Cluster()

    @contextmanager
    def board(*_: Any):
        yield found

    monkeypatch.setattr(trainings, "progress_board", board)
    for module in (trainings, winner):
        monkeypatch.setattr(module, "run_tasks", found.run_tasks)
    return found


class Search:
    """A search that is over."""

    def __init__(self, folder: Path, **changes) -> None:
        write_tiny_set(str(folder / "set"), splits={"train": 48, "val": 8, "test": 40}, wobble=0.004)
        self.settings = SearchSettings.model_validate(
            {
                "finetune": {
                    "frame_set": str(folder / "set"),
                    "encoder": {"width": 8},
                    "views": {"size": 32},
                    "epochs": 2,
                    "batch_size": 16,
                    "optimiser": {"learning_rate": 1e-5},
                },
                "gpus_per_trial": 0,
                "run": {"storage": str(folder / "runs"), "run_id": "s"},
                "tracking": {"uri": None},
                **changes,
            }
        )
        self.folder = str(folder / "runs/s")
        self.values: dict[str, Any] = {"optimiser.learning_rate": 3e-3}

    def crown(self, **changes) -> dict[str, Any]:
        result = {"run_id": "s", "best_trial": "0001", "best_values": self.values}
        return crown(WinnerSettings.model_validate({"seeds": 2, **changes}), self.settings, self.folder, result)


@pytest.fixture
def search(tmp_path) -> Search:
    return Search(tmp_path)


EVERY = ["winner/seed-105", "default/seed-105", "winner/seed-106", "default/seed-106"]


def test_both_settings_are_trained_with_the_same_seeds_and_only_once(search, cluster):
    found = search.crown()
    assert cluster.trained == EVERY
    assert read_json(join(search.folder, "winner/result.json")) == found
    arms = found["arms"]
    for name, rate in (("winner", 3e-3), ("default", 1e-5)):
        assert arms[name]["settings"]["optimiser.learning_rate"] == rate
        assert [each["seed"] for each in arms[name]["seeds"]] == [105, 106]
        errors = [each["metrics"]["pa_epe_mm"] for each in arms[name]["seeds"]]
        assert arms[name]["mean"]["pa_epe_mm"] == pytest.approx(sum(errors) / 2)
        assert arms[name]["deviation"]["pa_epe_mm"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
        for each in arms[name]["seeds"]:
            assert load_pose_model(each["uri"]).meta["settings"]["seed"] == each["seed"]
    against = found["verdict"]["against_default"]
    assert against["value"] == pytest.approx(arms["winner"]["mean"]["pa_epe_mm"])
    assert (against["num_frames"], against["num_clips"], against["num_runs"]) == (40, 10, 2)
    assert len(found["conclusions"]) == 3
    scores = {each["seed"]: each["score"] for each in arms["winner"]["seeds"]}
    assert found["chosen"]["seed"] == min(scores, key=scores.__getitem__)
    assert load_pose_model(join(search.folder, "winner")).meta["metrics"]["score"] == min(scores.values())

    assert search.crown() == found
    assert cluster.trained == EVERY


def test_another_winner_more_seeds_and_another_protocol_cost_only_what_they_change(search, cluster):
    first = search.crown()
    cluster.trained.clear()
    assert search.crown(protocol="peclr")["test"]["protocol"] == "peclr"
    assert cluster.trained == []
    assert search.crown()["arms"] == first["arms"]
    cluster.trained.clear()
    more = search.crown(seeds=3)
    assert cluster.trained == ["winner/seed-107", "default/seed-107"]
    assert more["arms"]["winner"]["seeds"][:2] == first["arms"]["winner"]["seeds"]
    cluster.trained.clear()
    search.values = {"optimiser.learning_rate": 4e-3}
    other = search.crown()
    assert cluster.trained == ["winner/seed-105", "winner/seed-106"]
    assert other["arms"]["default"] == first["arms"]["default"]
    assert other["arms"]["winner"]["mean"] != first["arms"]["winner"]["mean"]


def test_a_driver_that_was_killed_goes_on(search, cluster):
    straight = search.crown()
    delete(join(search.folder, "winner"))
    cluster.trained.clear()
    cluster.most = 2
    with pytest.raises(KeyboardInterrupt):
        search.crown()
    assert not exists(join(search.folder, "winner/result.json"))
    cluster.most = 1000
    resumed = search.crown()
    assert cluster.trained == EVERY
    timed = ("wall_s",)
    assert {k: v for k, v in resumed.items() if k not in (*timed, "arms")} == {
        k: v for k, v in straight.items() if k not in (*timed, "arms")
    }
    assert {arm: of["mean"] for arm, of in resumed["arms"].items()} == {
        arm: of["mean"] for arm, of in straight["arms"].items()
    }


def test_settings_that_are_the_default_ones_are_trained_once(search, cluster):
    search.values = {"optimiser.learning_rate": 1e-5, "batch_size": 16}
    found = search.crown()
    assert cluster.trained == ["winner/seed-105", "winner/seed-106"]
    assert set(found["arms"]) == {"winner"}
    assert found["conclusions"][-1].startswith("The best trial has the default settings")
    assert not found["beats_default"]


def test_a_training_that_fails_is_named_and_the_others_stay(search, cluster):
    search.values = {"optimiser.learning_rate": 100.0, "optimiser.max_bad_steps": 0}
    said = r"^the search is done, but 2 of 4 trainings .*, such as winner with seed 105: .*; the same command tries these again"
    with pytest.raises(TrainingError, match=said) as failed:
        search.crown()
    assert "\n" not in str(failed.value)
    assert exists(join(search.folder, "winner/default/seed-106/test.json"))
    cluster.trained.clear()
    with pytest.raises(TrainingError, match=said):
        search.crown()
    assert cluster.trained == ["winner/seed-105", "winner/seed-106"]


def test_it_is_registered_and_recorded_below_its_search(tmp_path, cluster, caplog):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    search = Search(tmp_path, tracking={"uri": uri, "experiment": "campaigns"})
    with tracked(search.settings.tracking, search.folder, "s", "search", search.settings) as tracking:
        tracking.opened()
    found = search.crown(seeds=1)
    assert found["registration"] is None

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("campaigns")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["s-winner"].data.tags["mlflow.parentRunId"] == runs["s"].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 4
    for arm in ("winner", "default"):
        (run,) = (each for name, each in runs.items() if name.startswith(f"s-{arm}-seed-105-"))
        assert run.data.tags["mlflow.parentRunId"] == runs["s-winner"].info.run_id
        expected = found["arms"][arm]["mean"]["pa_epe_mm"]
        assert run.data.metrics["test_pa_epe_mm"] == pytest.approx(expected)
        assert runs["s-winner"].data.metrics[f"{arm}_test_pa_epe_mm"] == pytest.approx(expected)
        assert len(client.get_metric_history(run.info.run_id, "score")) == 2

    # Registered when that is asked for, without any training; where it cannot be, all else is there.
    cluster.trained.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winner, "register", lambda *_, **__: (_ for _ in ()).throw(EquihandError("it is away")))
        away = search.crown(seeds=1, register_as="hand")
    assert away == {**found, "registration": {"name": "hand", "problem": "it is away"}}
    assert "the winner is not registered: it is away; the same command tries it again" in caplog.text
    registered = search.crown(seeds=1, register_as="hand")
    assert registered["registration"]["version"] == 1
    (version,) = versions(search.settings.tracking, "hand")
    assert version.tags["equihand.test_digest"] == found["test"]["test_digest"]
    assert version.tags["equihand.verdict"] == registered["registration"]["verdict"]
    assert float(version.tags["equihand.metric.pa_epe_mm"]) == pytest.approx(
        found["arms"]["winner"]["mean"]["pa_epe_mm"], rel=1e-4
    )
    assert (version.tags["equihand.search"], version.tags["equihand.git_commit"]) == ("s", "0123456789")
    assert search.crown(seeds=1, register_as="hand") == registered
    assert cluster.trained == []
