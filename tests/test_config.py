from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from pipeline.config import Settings, Uri, flatten, load, to_yaml, uris_in
from pipeline.errors import SettingsError


class Optimiser(Settings):
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate."""
    name: Literal["adamw", "sgd"] = "adamw"
    """Which optimiser."""


class Job(Settings):
    uri: str
    """Where."""
    epochs: int = Field(default=3, ge=1)
    """Passes, 100 % of the data."""
    fresh: bool = False
    """Start over."""
    models: dict[str, str] = {}
    """Models by name."""
    rotation: tuple[float, float] = (-45, 45)
    """Degrees."""
    limit: int | None = None
    """Rows."""
    optimiser: Optimiser = Optimiser()


def test_command_line_wins_over_file_wins_over_defaults(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("uri: s3://a/b\nepochs: 7\noptimiser: {learning_rate: 0.5, name: sgd}\nlimit: 3\n")
    job = load(Job, ["--config", str(path), "--optimiser.learning_rate", "1e-2", "--limit=none"])
    assert (job.uri, job.epochs, job.optimiser.learning_rate, job.optimiser.name) == ("s3://a/b", 7, 0.01, "sgd")
    assert job.limit is None


def test_a_preset_is_a_file_that_all_others_win_over(tmp_path):
    path, file = tmp_path / "job.yaml", tmp_path / "preset.yaml"
    file.write_text("uri: s3://preset\nepochs: 9\noptimiser: {learning_rate: 0.5, name: sgd}\n")
    path.write_text("epochs: 7\noptimiser: {learning_rate: 0.25}\n")

    class WithPreset(Job):
        presets: ClassVar = {"fast": file}
        preset: Literal["fast"] | None = None
        """A file to begin with."""

    job = load(WithPreset, ["--preset", "fast", "--config", str(path), "--optimiser.learning_rate", "0.125"])
    assert (job.preset, job.uri, job.epochs) == ("fast", "s3://preset", 7)
    assert (job.optimiser.learning_rate, job.optimiser.name) == (0.125, "sgd")
    path.write_text("preset: fast\n")
    assert load(WithPreset, ["--config", str(path)]).epochs == 9
    with pytest.raises(SettingsError, match="'preset' = 'slow': input should be 'fast'"):
        load(WithPreset, ["--preset", "slow", "--uri", "x"])


def test_lists_switches_mappings_and_negative_numbers():
    arguments = ["--uri", "x", "--fresh", "--rotation", "[-1e1, 5]", "--models.a", "s3://m/1", "--models.b=m2"]
    job = load(Job, arguments)
    assert job.fresh
    assert job.rotation == (-10, 5)
    assert job.models == {"a": "s3://m/1", "b": "m2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--uri", "x", "--epocs", "3"], ["epocs", "did you mean --epochs"]),
        (["--uri", "x", "--epochs", "many"], ["epochs", "'many'", "integer"]),
        (["--uri", "x", "--epochs", "0"], ["epochs", "'0'", "greater than or equal to 1"]),
        (["--uri", "x", "--optimiser.name", "adam"], ["optimiser.name", "'adamw' or 'sgd'"]),
        (["--uri", "x", "--epochs"], ["epochs", "needs a value"]),
        (["--epochs", "3"], ["uri", "required"]),
        (["stray"], ["stray", "--some.setting"]),
        (["--uri", "x", "--rotation", "[1"], ["[1", "YAML"]),
        (["--config", "/nowhere.yaml"], ["config", "/nowhere.yaml", "No such file"]),
    ],
)
def test_a_bad_setting_gets_one_line_that_names_it(arguments, words):
    with pytest.raises(SettingsError) as error:
        load(Job, arguments)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert error.value.exit_code == 2


def test_unknown_key_in_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("uri: x\noptimiser: {learning_rte: 1}\n")
    with pytest.raises(SettingsError, match=r"optimiser.learning_rte.*did you mean 'optimiser.learning_rate'"):
        load(Job, ["--config", str(path)])


class Search(Settings):
    optimiser: Optimiser = Optimiser(name="sgd", learning_rate=0.25)
    job: Job = Job(uri="x", optimiser=Optimiser(name="sgd"))


def test_the_rest_of_a_section_keeps_the_defaults_of_where_it_is_used():
    search = load(
        Search, ["--optimiser.learning_rate", "0.5", "--job.optimiser.learning_rate", "0.1", "--job.epochs=9"]
    )
    assert search.optimiser == Optimiser(name="sgd", learning_rate=0.5)
    assert search.job == Job(uri="x", epochs=9, optimiser=Optimiser(name="sgd", learning_rate=0.1))
    assert Search.model_validate({"optimiser": {"learning_rate": 0.5}}).optimiser.name == "sgd"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_in_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "job.yaml"
    path.write_bytes(to_yaml(Job(uri="ä")).replace("\n", "\r\n").encode(encoding))
    assert load(Job, ["--config", str(path)]) == Job(uri="ä")


def test_a_setting_that_is_there_twice_is_said(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("epochs: 1\nuri: a\nepochs: 2\n")
    with pytest.raises(
        SettingsError, match=r"job\.yaml' is not valid YAML \(the key 'epochs' is there twice at line 3\)"
    ):
        load(Job, ["--config", str(path)])


def test_yaml_round_trip(tmp_path):
    job = load(Job, ["--uri", "x", "--optimiser.learning_rate", "0.25", "--models.a", "b"])
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(job))
    assert load(Job, ["--config", str(path)]) == job
    assert flatten(job)["optimiser.learning_rate"] == 0.25


def test_help_lists_every_setting_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        load(Job, ["--help"], prog="jobs.x")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "--optimiser.learning_rate",
        "Peak learning rate.",
        "adamw|sgd",
        "100 % of the data",
        "default: 3",
    ):
        assert expected in text


class Share(Settings):
    uri: Uri
    weight: float = 1.0


class Places(Settings):
    frame_set: Uri | list[Share]
    """Where from."""
    models: dict[str, Uri] = {}
    output: Uri | None = None
    name: str = "a name"
    inner: Share = Share(uri="inside")


def test_settings_that_name_places_are_found(capsys):
    settings = Places.model_validate({"frame_set": [{"uri": "a"}, {"uri": "s3://b"}], "models": {"mine": "c"}})
    found = [("frame_set.0.uri", "a"), ("frame_set.1.uri", "s3://b"), ("models.mine", "c"), ("inner.uri", "inside")]
    assert list(uris_in(settings)) == found
    assert list(uris_in(Places(frame_set="d", output="e")))[:2] == [("frame_set", "d"), ("output", "e")]
    with pytest.raises(SystemExit):
        load(Places, ["--help"])
    shown = capsys.readouterr().out
    assert "--output URI|none" in shown
    assert "--inner.uri URI" in shown
    assert "--models dict[str, URI]" in shown
    assert "--frame_set URI|list[Share]" in shown


class Ranges(Settings):
    fill: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0, 1)
    parts: tuple[Literal["left", "right"], ...] | None = None


def test_types_inside_others_are_shown_as_plainly(capsys):
    with pytest.raises(SystemExit):
        load(Ranges, ["--help"])
    shown = capsys.readouterr().out
    assert "--fill tuple[float, float]" in shown
    assert "--parts tuple[left|right, ...]|none" in shown
