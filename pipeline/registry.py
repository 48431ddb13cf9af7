"""MLflow's model registry: versions of a model, which of them is the champion, and the way back to the one before.

The alias `champion` says which version is in use (`models:/NAME@champion`), `challenger` which was tried last and was not better. Who was
champion before lies in a tag of the registered model, oldest first, so a rollback is possible as often as there were promotions. Each
change writes that tag and moves the alias, in such an order that one cut short between the two leaves nothing that misleads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import MissingError, SettingsError
from pipeline.tracking import NOWHERE, StoredRun, TrackingSettings, opened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
NAME = r"^\w[\w. -]*$"
"""What a registered model may be called."""

_BEFORE = "equihand.champions_before"
_MOST_BEFORE = 200
_AT_ONCE = 1000


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_at: datetime
    mlflow_run_id: str | None

    @property
    def is_champion(self) -> bool:
        """Whether it is the one in use."""
        return CHAMPION in self.aliases


def versions(settings: TrackingSettings, name: str) -> list[Version]:
    """All versions of a registered model, the newest first; none where there is no such model."""
    with opened(_uri(settings)) as (_, client):
        return _versions(client, name)


def champion(settings: TrackingSettings, name: str) -> Version | None:
    """The version in use; None where there is none."""
    return next((version for version in versions(settings, name) if version.is_champion), None)


def add_version(
    settings: TrackingSettings, name: str, run: StoredRun, artifacts: str, folder: str | Path, tags: Mapping[str, str]
) -> Version:
    """Register an MLflow model, which lies in a local folder, as a new version without an alias.

    run: which keeps its files, in the folder `artifacts`; no two versions may share it.
    """
    run.log_folder(folder, artifacts)
    with opened(_uri(settings)) as (_, client):
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{client.get_run(run.mlflow_run_id).info.artifact_uri.rstrip('/')}/{artifacts}"
        made = client.create_model_version(name, source, run.mlflow_run_id, dict(tags))
        return _version(made, {})


def add_tags(settings: TrackingSettings, version: Version, tags: Mapping[str, str]) -> None:
    """Note something with a version."""
    with opened(_uri(settings)) as (_, client):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.number), key, value)


def download(settings: TrackingSettings, version: Version, part: str, directory: str | Path) -> str:
    """A local copy, below `directory`, of a folder of the version's files. Raises MissingError where it has no such folder."""
    import mlflow.artifacts

    with opened(_uri(settings)) as (uri, client):
        source = client.get_model_version_download_uri(version.name, str(version.number)).rstrip("/")
        if part not in {Path(item.path).name for item in mlflow.artifacts.list_artifacts(source, tracking_uri=uri)}:
            raise MissingError(f"version {version.number} of '{version.name}' has no folder '{part}'")
        return str(mlflow.artifacts.download_artifacts(f"{source}/{part}", dst_path=str(directory), tracking_uri=uri))


def challenge(settings: TrackingSettings, version: Version) -> None:
    """Make a version the challenger."""
    with opened(_uri(settings)) as (_, client):
        client.set_registered_model_alias(version.name, CHALLENGER, str(version.number))


def promote(settings: TrackingSettings, name: str, number: int) -> int | None:
    """Make a version the champion; the number of the one before it, None where there was none.

    Raises SettingsError where there is no such version, or it is the champion already.
    """
    with opened(_uri(settings)) as (_, client):
        there = _existing(client, name)
        chosen = next((version for version in there if version.number == number), None)
        if chosen is None:
            raise SettingsError(
                f"'{name}' has no version {number}; it has {', '.join(str(version.number) for version in there) or 'none'}"
            )
        if chosen.is_champion:
            raise SettingsError(f"version {number} of '{name}' is the champion already")
        current = next((version.number for version in there if version.is_champion), None)
        if current is not None:
            _set_before(client, name, [*_before(client, name, current), current])
        client.set_registered_model_alias(name, CHAMPION, str(number))
        if CHALLENGER in chosen.aliases:
            client.delete_registered_model_alias(name, CHALLENGER)
        return current


def rollback(settings: TrackingSettings, name: str) -> tuple[int, int]:
    """Make the version champion again that was it before; the numbers of the one that was until now, and of that one.

    Raises SettingsError where there was none before.
    """
    with opened(_uri(settings)) as (_, client):
        there = _existing(client, name)
        current = next((version.number for version in there if version.is_champion), None)
        if current is None:
            raise SettingsError(f"'{name}' has no champion; make one with --promote VERSION")
        before = _before(client, name, current)
        while before and before[-1] not in {version.number for version in there}:  # it was deleted
            before.pop()
        if not before:
            raise SettingsError(
                f"version {current} is the first champion of '{name}': there is none before it to go back to"
            )
        client.set_registered_model_alias(name, CHAMPION, str(before[-1]))
        _set_before(client, name, before[:-1])
        return current, before[-1]


def _uri(settings: TrackingSettings) -> str:
    if settings.uri is None:
        raise SettingsError(f"{NOWHERE}, and models are registered there; give sqlite:///FILE, or http://HOST:PORT")
    return settings.uri


def _existing(client: "MlflowClient", name: str) -> list[Version]:
    """All versions; raises SettingsError where no such model is registered."""
    if not client.search_registered_models(f"name = '{name}'"):
        others = ", ".join(sorted(each.name for each in client.search_registered_models())) or "none"
        raise SettingsError(f"there is no registered model '{name}'; there are: {others}")
    return _versions(client, name)


def _versions(client: "MlflowClient", name: str) -> list[Version]:
    registered = client.search_registered_models(f"name = '{name}'")
    if not registered:
        return []
    found: list[Version] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(f"name = '{name}'", _AT_ONCE, page_token=token or None)
        found += [_version(each, registered[0].aliases) for each in page]
        token = page.token or None
    return sorted(found, key=lambda version: -version.number)


def _version(found: "ModelVersion", aliases: Mapping[str, str | int]) -> Version:
    """aliases: of the registered model; a search for versions does not tell them."""
    number = int(found.version)
    return Version(
        name=found.name,
        number=number,
        aliases=tuple(sorted(alias for alias, of in aliases.items() if int(of) == number)),
        tags=dict(found.tags),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        mlflow_run_id=found.run_id or None,
    )


def _before(client: "MlflowClient", name: str, current: int) -> list[int]:
    """Numbers of the champions before this one, oldest first."""
    text = client.get_registered_model(name).tags.get(_BEFORE, "")
    before = [int(each) for each in text.split() if each.isdecimal()]
    while before and before[-1] == current:  # a change was cut short between tag and alias
        before.pop()
    return before


def _set_before(client: "MlflowClient", name: str, before: list[int]) -> None:
    client.set_registered_model_tag(name, _BEFORE, " ".join(map(str, before[-_MOST_BEFORE:])))
