import pytest

from tests.start_errors import CASES, World


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_what_is_wrong_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "secret" not in case.met(World(tmp_path, monkeypatch))


def test_no_row_is_there_twice():
    assert len({case.what for case in CASES}) == len(CASES)
