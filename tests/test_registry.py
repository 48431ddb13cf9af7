"""Champions of a registered model, on a real MLflow with SQLite."""

from pathlib import Path

import pytest

from pipeline.errors import EquihandError, MissingError, SettingsError
from pipeline.registry import Version, add_tags, add_version, challenge, champion, download, promote, rollback, versions
from pipeline.tracked import tracked
from pipeline.tracking import StoredRun, TrackingSettings, stored_run
from tests.test_tracked import Server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory) -> TrackingSettings:
    """MLflow takes seconds to make a database: all share one, with models of different names."""
    return TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


def registered(tracking: TrackingSettings, tmp_path: Path, name: str, text: str = "a") -> Version:
    """One more version, of a run of its own."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("models")
    number = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("models", artifact_location=f"file://{tmp_path}/artifacts")
    )
    run = client.create_run(number)
    folder = tmp_path / "packed"
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint/meta.json").write_text(text)
    return add_version(tracking, name, StoredRun(str(tracking.uri), run.info.run_id), "model", folder, {"of": text})


def aliases(tracking: TrackingSettings, name: str) -> dict[int, tuple[str, ...]]:
    return {version.number: version.aliases for version in versions(tracking, name) if version.aliases}


def number_of_champion(tracking: TrackingSettings, name: str) -> int | None:
    found = champion(tracking, name)
    return None if found is None else found.number


def test_promotions_are_taken_back_one_after_the_other(tracking, tmp_path):
    assert versions(tracking, "hand pose") == []
    assert number_of_champion(tracking, "hand pose") is None
    for text in "abc":
        registered(tracking, tmp_path, "hand pose", text)
    found = versions(tracking, "hand pose")
    assert [(version.number, version.tags["of"], version.aliases) for version in found] == [
        (3, "c", ()),
        (2, "b", ()),
        (1, "a", ()),
    ]
    with pytest.raises(SettingsError, match="'hand pose' has no champion"):
        rollback(tracking, "hand pose")

    assert promote(tracking, "hand pose", 1) is None
    challenge(tracking, found[1])
    assert aliases(tracking, "hand pose") == {1: ("champion",), 2: ("challenger",)}
    assert promote(tracking, "hand pose", 2) == 1
    assert aliases(tracking, "hand pose") == {2: ("champion",)}  # and no challenger of itself
    assert promote(tracking, "hand pose", 3) == 2
    assert rollback(tracking, "hand pose") == (3, 2)
    assert rollback(tracking, "hand pose") == (2, 1)
    with pytest.raises(SettingsError, match="version 1 is the first champion of 'hand pose': there is none before it"):
        rollback(tracking, "hand pose")
    assert promote(tracking, "hand pose", 3) == 1  # what was taken back may come again
    assert rollback(tracking, "hand pose") == (3, 1)
    assert number_of_champion(tracking, "hand pose") == 1


def test_a_change_that_was_cut_short_misleads_no_rollback(tracking, tmp_path, monkeypatch):
    import mlflow

    for text in "abc":
        registered(tracking, tmp_path, "m2", text)
    promote(tracking, "m2", 1)
    promote(tracking, "m2", 2)

    def killed(*_, **__):
        raise EquihandError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(EquihandError, match="killed"):
            promote(tracking, "m2", 3)
    assert number_of_champion(tracking, "m2") == 2
    assert rollback(tracking, "m2") == (2, 1)

    promote(tracking, "m2", 2)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_tag", killed)
        with pytest.raises(EquihandError, match="killed"):
            rollback(tracking, "m2")
    assert number_of_champion(tracking, "m2") == 1
    with pytest.raises(SettingsError, match="there is none before it"):
        rollback(tracking, "m2")


def test_versions_that_are_gone_are_left_out_of_a_rollback(tracking, tmp_path):
    from mlflow import MlflowClient

    for text in "abc":
        registered(tracking, tmp_path, "m3", text)
    for number in (1, 2, 3):
        promote(tracking, "m3", number)
    MlflowClient(tracking.uri).delete_model_version("m3", "2")
    assert rollback(tracking, "m3") == (3, 1)


def test_what_cannot_be_promoted_is_said_in_one_line(tracking, tmp_path):
    for text in "ab":
        registered(tracking, tmp_path, "m4", text)
    promote(tracking, "m4", 1)
    for number, said in (
        (7, "MLflow at sqlite:///.*: 'm4' has no version 7; it has 2, 1"),
        (1, "MLflow at sqlite:///.*: version 1 of 'm4' is the champion already"),
    ):
        with pytest.raises(SettingsError, match=said) as refused:
            promote(tracking, "m4", number)
        assert "\n" not in str(refused.value)


def test_unknown_models_and_no_mlflow_are_refused(tracking, tmp_path):
    registered(tracking, tmp_path, "hand")
    with pytest.raises(SettingsError, match=r"there is no registered model 'hnd'; there are: .*hand"):
        promote(tracking, "hnd", 1)
    with pytest.raises(SettingsError, match=r"tracking\.uri none"):
        versions(TrackingSettings(uri=None), "hand")


def test_files_of_a_version_come_back(tracking, tmp_path):
    first, second = registered(tracking, tmp_path, "m7", "first"), registered(tracking, tmp_path, "m7", "second")
    local = download(tracking, first, "checkpoint", tmp_path / "copy")
    assert Path(local, "meta.json").read_text() == "first"
    with pytest.raises(MissingError, match="version 2 of 'm7' has no folder 'weights'"):
        download(tracking, second, "weights", tmp_path / "copy")
    add_tags(tracking, second, {"equihand.verdict": "good"})
    assert versions(tracking, "m7")[0].tags["equihand.verdict"] == "good"


def test_a_server_keeps_aliases_and_files_too(tmp_path, free_port):
    """Its artifacts go through it, as those of most servers do."""
    server = Server(tmp_path, free_port)
    server.start()
    try:
        tracking = TrackingSettings(uri=f"http://127.0.0.1:{free_port}")
        with tracked(tracking, str(tmp_path / "run"), "s-winner", "winner", tracking) as run:
            run.opened()
        stored = stored_run(tracking, {"run_id": "s-winner", "kind": "winner"})
        (tmp_path / "packed/checkpoint").mkdir(parents=True)
        for text in ("first", "second"):
            (tmp_path / "packed/checkpoint/meta.json").write_text(text)
            add_version(tracking, "hand", stored, f"model-{text}", tmp_path / "packed", {"of": text})
        assert promote(tracking, "hand", 1) is None
        assert promote(tracking, "hand", 2) == 1
        challenge(tracking, versions(tracking, "hand")[1])
        assert aliases(tracking, "hand") == {2: ("champion",), 1: ("challenger",)}
        assert rollback(tracking, "hand") == (2, 1)
        assert [version.tags["of"] for version in versions(tracking, "hand")] == ["second", "first"]
        with pytest.raises(SettingsError, match=r"MLflow at http://.* is the first champion"):
            rollback(tracking, "hand")
        for version in versions(tracking, "hand"):
            local = download(tracking, version, "checkpoint", tmp_path / f"copy-{version.number}")
            assert Path(local, "meta.json").read_text() == version.tags["of"]
    finally:
        server.kill()
