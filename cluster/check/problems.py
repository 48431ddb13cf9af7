"""What is wrong with a file, and where."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Finding = tuple[str, str]
"""Field of an object, such as spec.template, and what is wrong there and what to do; one line."""


class Problem(NamedTuple):
    """A finding, and what it was found in."""

    file: str
    object: str
    """Kind and name, such as RayJob/pretrain; empty where a file is one thing."""
    field: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


def item(name: str, entry: Any, index: int) -> str:
    """How a field calls an entry of a list: by its name where it has one, such as containers[ray-head]."""
    named = entry.get("groupName") or entry.get("name") if isinstance(entry, dict) else None
    return f"{name}[{named if named else index}]"


def field_at(value: Any, path: Sequence[str | int]) -> str:
    """The same for a path of keys and indices into a value."""
    parts: list[str] = []
    for step in path:
        value = value[step]
        if isinstance(step, int) and parts:
            parts[-1] = item(parts[-1], value, step)
        else:
            parts.append(str(step))
    return ".".join(parts)


def items(entries: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(field, entry) of each entry of a list called `name`."""
    for index, entry in enumerate(entries or []):
        yield item(name, entry, index), entry
