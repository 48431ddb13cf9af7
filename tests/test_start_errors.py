import pytest

from pipeline.errors import EquihandError
from tests.start_errors import CASES, World


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_what_is_wrong_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EquihandError) as raised:
        case.start(World(tmp_path, monkeypatch))
    line = str(raised.value)
    assert case.says in line
    assert raised.value.exit_code == case.code
    assert "\n" not in line
    assert len(line) < 600
    assert "secret" not in line


def test_no_row_is_there_twice():
    assert len({case.what for case in CASES}) == len(CASES)
