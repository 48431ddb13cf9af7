import resource
from collections.abc import Iterator

import pytest

from pipeline.errors import EquihandError
from tests.hostile_inputs import CASES
from tests.start_errors import World


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two more GB than this process has: a huge allocation fails, where it would slow down the machine."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_what_strangers_made_ends_with_one_line(case, tmp_path, monkeypatch):
    with pytest.raises(EquihandError) as raised:
        case.start(World(tmp_path, monkeypatch))
    line = str(raised.value)
    assert case.says in line
    assert raised.value.exit_code == case.code
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600


def test_no_row_is_there_twice():
    assert len({case.what for case in CASES}) == len(CASES)
