"""Pose models that come with the package, by name: a checkpoint folder each, below `shipped/`, with its model card."""

from pathlib import Path

_FOLDER = Path(__file__).with_name("shipped")


def shipped_models() -> list[str]:
    """Their names."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/meta.json"))


def model_uri(name_or_uri: str) -> str:
    """The folder of a shipped model's name; any other URI as it is. (A folder of such a name is meant by ./NAME.)"""
    return str(_FOLDER / name_or_uri) if name_or_uri in shipped_models() else name_or_uri
