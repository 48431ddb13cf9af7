"""A cell's checkpoints in storage: the newest and the best, whatever moment the process dies at."""

import time
from pathlib import Path

import pytest

from pipeline.storage import exists, join, list_folders
from pipeline.study.kept import Kept, OutOfTime


def saver(text: str):
    def save(directory: Path) -> None:
        (directory / "meta.json").write_text(text)

    return save


def metrics(step: int, score: float) -> dict[str, float]:
    return {"step": step, "epoch": step / 10, "score": score, "loss": score, "learning_rate": 0.1}


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path / "cell") if request.param == "disk" else f"{request.getfixturevalue('s3')}/cell"


def test_the_newest_and_the_best_are_kept(folder, tmp_path):
    kept = Kept(folder, None)
    assert kept.fetch_newest(str(tmp_path / "none")) is None
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5)):
        kept.keep(saver(str(step)), metrics(step, score), last=False)
    names = {uri.rsplit("/", 1)[-1] for uri in list_folders(folder)}
    assert names == {"step-00000020", "step-00000040"}

    again = Kept(folder, None)
    assert again.fetch_newest(str(tmp_path / "newest")) == tmp_path / "newest"
    assert (tmp_path / "newest/meta.json").read_text() == "40"
    again.fetch_best(str(tmp_path / "best"))
    assert (tmp_path / "best/meta.json").read_text() == "20"
    assert [entry["step"] for entry in again.history] == [10, 20, 30, 40]
    assert again.history[0] == {"step": 10, "epoch": 1.0, "loss": 3.0}
    assert again.wall_s >= 0


def test_an_upload_that_broke_off_is_not_gone_on_from(folder, tmp_path):
    """The process dies while it uploads a checkpoint, or before it says so."""
    kept = Kept(folder, None)
    kept.keep(saver("10"), metrics(10, 3.0), last=False)

    def dies(directory: Path) -> None:
        (directory / "meta.json").write_text("20")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.keep(dies, metrics(20, 1.0), last=False)
    again = Kept(folder, None)
    again.fetch_newest(str(tmp_path / "newest"))
    assert (tmp_path / "newest/meta.json").read_text() == "10"
    again.keep(saver("20"), metrics(20, 1.0), last=True)
    assert [entry["step"] for entry in Kept(folder, None).history] == [10, 20]


def test_the_deadline_ends_a_cell_after_its_checkpoint_but_not_at_its_end(folder):
    late = Kept(folder, time.time() - 1)
    with pytest.raises(OutOfTime):
        late.keep(saver("10"), metrics(10, 3.0), last=False)
    assert exists(join(folder, "step-00000010", "meta.json"))
    late.keep(saver("20"), metrics(20, 3.0), last=True)
    Kept(folder, time.time() + 100).keep(saver("30"), metrics(30, 3.0), last=False)
