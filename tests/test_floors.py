"""Imports go one way: a room of pipeline/ knows the rooms below it, and none beside or above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    {"objectives", "evaluation"},
    {"drawing"},
    {"frames"},
    {"models"},
    {"training"},
    {"prediction", "export", "search"},
    {"reports"},
    {"study", "campaign"},
]
"""From the bottom. Below them all are the single files of pipeline/, which know no room."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported(file: Path) -> set[str]:
    """Names of the project's modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports by full names"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("pipeline", "jobs")}


@pytest.mark.parametrize("file", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_only_what_is_below_it(file):
    own = file.relative_to(ROOT / "pipeline").parts[0]
    for name in imported(file):
        top, room, *_ = [*name.split("."), ""]
        assert top == "pipeline", f"{name}: pipeline/ knows nothing of jobs/"
        if room in LEVEL and room != own:
            assert LEVEL[room] < LEVEL.get(own, -1), f"{name} is not below {own}/"


def test_every_room_has_its_floor():
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert rooms == set(LEVEL)
