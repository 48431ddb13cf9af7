"""The Containerfile: what it copies is there, and what it installs is what was tested."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cluster.check.problems import Finding

_BUILD_TOOLS = ("pip", "setuptools", "wheel")  # no part of what runs
_OPTIONS_WITH_VALUE = ("-c", "--constraint", "--index-url", "--extra-index-url", "-i")


def container_findings(text: str, context: Path) -> Iterator[Finding]:
    """text: of the file; context: the folder that it is built in, which holds pyproject.toml and constraints.txt."""
    stages: set[str] = set()
    lines = text.replace("\\\n", " ").splitlines()
    pins = _pins((context / "constraints.txt").read_text(encoding="utf-8"))
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "FROM" and _floats(rest.split()[0], stages):
            yield "FROM", f"'{rest}' is another image tomorrow; name a version"
        if word == "FROM":
            stages |= set(re.findall(r" AS (\S+)", rest, re.IGNORECASE))
        if word == "COPY" and "--from" not in rest:
            for name in rest.split()[:-1]:
                if not (context / name).exists():
                    yield "COPY", f"there is no {name} in {context.name or context}; name files of the repository"
        if word in ("ENV", "ARG") and re.search(r"(SECRET|PASSWORD|TOKEN)\w*=\S", rest):
            yield word, "a secret stands here for all to read; give it where the image runs"
        if word == "RUN":
            for command in re.findall(r"pip install[^;&|]*", rest):
                yield from _install_findings(command, pins, context)


def _floats(image: str, stages: set[str]) -> bool:
    return image not in stages and image.rpartition("/")[2].partition("@")[0].partition(":")[2] in ("", "latest")


def _install_findings(command: str, pins: dict[str, str], context: Path) -> Iterator[Finding]:
    words = iter(shlex.split(command)[2:])
    wanted, constrained = [], False
    for word in words:
        if word in _OPTIONS_WITH_VALUE:
            value = next(words, "")
            constrained |= word in ("-c", "--constraint") and value == "constraints.txt"
        elif not word.startswith("-"):
            wanted.append(word)
    if not constrained:
        yield "RUN pip install", "installs whatever is newest; write pip install -c constraints.txt"
    for word in wanted:
        try:
            requirements = _of_project(word, context) if word.startswith(".") else [Requirement(word)]
        except (InvalidRequirement, KeyError) as error:
            yield "RUN pip install", f"'{word}': {error} cannot be installed; pyproject.toml has the names"
            continue
        for name in sorted(_without_pin(requirements, pins)):
            yield (
                "RUN pip install",
                f"'{word}' brings {name}, for which constraints.txt names no version that fits; pin it there",
            )


def _of_project(word: str, context: Path) -> list[Requirement]:
    """What `.[extra]` stands for. Raises KeyError for an unknown extra."""
    project = tomllib.loads((context / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for extra in word.strip(".[]").split(",") if extra]
    given = list(project["dependencies"])
    for extra in extras:
        given += project["optional-dependencies"][extra]
    return [Requirement(each) for each in given]


def _without_pin(requirements: list[Requirement], pins: dict[str, str]) -> set[str]:
    """Names among these requirements, and theirs, whose pin is missing or does not fit."""
    found, seen, waiting = set(), set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        pin = pins.get(name)
        if name in _BUILD_TOOLS:
            continue
        if pin is None or not requirement.specifier.contains(pin, prereleases=True):
            found.add(f"{requirement}")
        key = (name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += _needed_by(name, key[1])
    return found


@cache
def _needed_by(name: str, extras: frozenset[str]) -> tuple[Requirement, ...]:
    """Of an installed package; nothing is known of others."""
    try:
        given = [Requirement(each) for each in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return ()
    environments = [{"extra": extra} for extra in (*extras, "")]
    return tuple(each for each in given if each.marker is None or any(map(each.marker.evaluate, environments)))


def _pins(text: str) -> dict[str, str]:
    pairs = [line.partition("==")[::2] for line in text.splitlines() if "==" in line]
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}
