import resource
from collections.abc import Iterator

import pytest

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
    assert case.met(World(tmp_path, monkeypatch)).isprintable()


def test_no_row_is_there_twice():
    assert len({case.what for case in CASES}) == len(CASES)
