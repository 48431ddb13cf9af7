"""The job that lists versions and moves the alias, as from the command line."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from jobs import champion
from jobs.terminal import TerminalProgress
from pipeline.errors import SettingsError
from pipeline.registry import add_tags, add_version, challenge, promote, versions
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings, stored_run


@pytest.fixture(scope="module")
def tracking(tmp_path_factory) -> TrackingSettings:
    """Three versions: a champion, a challenger, and one of somebody else."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    with tracked(tracking, str(folder / "run"), "s-winner", "winner", tracking) as run:
        run.opened()
    stored = stored_run(tracking, {"run_id": "s-winner", "kind": "winner"})
    (folder / "model").mkdir()
    (folder / "model/MLmodel").write_text("flavors: {}")
    for number, error in ((1, 21.04), (2, 19.97)):
        tags = {
            "equihand.metric.pa_epe_mm": str(error),
            "equihand.metric.constant_pa_epe_mm": "24.5",
            "equihand.split": "test",
        }
        version = add_version(
            tracking, "hand-pose", stored, "model", folder / "model", {**tags, "equihand.search": f"search-{number}"}
        )
        add_tags(tracking, version, {"equihand.verdict": f"verdict {number}"})
    add_version(tracking, "hand-pose", stored, "model", folder / "model", {})
    promote(tracking, "hand-pose", 1)
    challenge(tracking, versions(tracking, "hand-pose")[1])
    return tracking


def run(tracking: TrackingSettings, *arguments: str):
    """The job's result, and what it shows."""
    output = io.StringIO()
    settings = champion.JOB.load([*arguments, f"--tracking.uri={tracking.uri}"])
    result = champion.run(settings, TerminalProgress(Console(file=output, width=200)))
    return result, output.getvalue()


def test_it_lists_promotes_and_goes_back(tracking):
    result, shown = run(tracking, "hand-pose")
    assert result["champion"] == 1
    assert "before" not in result
    first = result["versions"][-1]
    assert (first["version"], first["aliases"], first["verdict"], first["split"]) == (
        1,
        ["champion"],
        "verdict 1",
        "test",
    )
    assert first["metrics"] == {"pa_epe_mm": 21.04, "constant_pa_epe_mm": 24.5}
    assert abs((datetime.now(UTC) - datetime.fromisoformat(first["created_at"])).total_seconds()) < 3600
    assert [each["version"] for each in result["versions"]] == [3, 2, 1]
    for text in ("champion", "challenger", "21.0", "20.0", "24.5", "search-2", "version 1: verdict 1"):
        assert text in shown

    result, shown = run(tracking, "hand-pose", "--promote", "2")
    assert (result["champion"], result["before"]) == (2, 1)
    assert "version 2 is the champion now, after version 1" in shown
    assert {each["version"]: each["aliases"] for each in result["versions"]} == {3: [], 2: ["champion"], 1: []}

    result, shown = run(tracking, "--name", "hand-pose", "--rollback", "true")
    assert (result["champion"], result["before"]) == (1, 2)
    assert "version 1 is the champion again, in place of version 2" in shown
    with pytest.raises(SettingsError, match="there is none before it to go back to") as refused:
        run(tracking, "hand-pose", "--rollback", "true")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hand-poes"], "'hand-poes' has no versions"),
        (["hand-pose", "--promote", "9"], "'hand-pose' has no version 9; it has 3, 2, 1"),
        (["hand-poes", "--promote", "1"], r"there is no registered model 'hand-poes'; there are: hand-pose"),
        (["hand-pose", "--promote", "1", "--rollback", "true"], "not together with 'promote'"),
        (["a/b"], "'name'"),
        ([], "'name'"),
    ],
)
def test_what_is_wrong_is_said(arguments, said, tracking):
    with pytest.raises(SettingsError, match=said):
        run(tracking, *arguments)
