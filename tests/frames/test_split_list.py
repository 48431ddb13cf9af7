import json
from pathlib import Path

import pytest

from pipeline.errors import DataError, StorageError
from pipeline.frames.groups import assign_splits
from pipeline.frames.plan import IngestSettings, make_plan
from pipeline.frames.sources import Unit
from pipeline.frames.split_list import apply_split_list, content_digest, read_split_list

EXPECTED = {"clip_00": "train", "b/clip 01": "val", "clip_02": "train"}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(EXPECTED)),
        ("b.json", '{"train": ["clip_00", "clip_02"], "val": ["b/clip 01"], "test": []}'),
        ("c.csv", "clip_00,train\nb/clip 01,val\n\nclip_02,train\n"),
        ("d.CSV", 'clip,split\r\n"clip_00", train\r\nb/clip 01,val\r\nclip_02,train\r\nclip_02,train\r\n'),
        ("e.txt", "\ufeffclip_00 train\nb/clip 01 val\n\nclip_02\ttrain"),
    ],
)
def test_a_list_in_any_form(tmp_path, name, text):
    found = read_split_list(write(tmp_path / name, text))
    assert found == EXPECTED
    assert content_digest(found) == content_digest(EXPECTED)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "write {"),
        ("a.json", '{"a": ', "not a list of splits"),
        ("a.json", '{"a": "training"}', "'a' is given the split 'training'; it must be one of train, val, test"),
        ("a.json", '{"a": 3}', "'a' is given the split 3"),
        ("a.json", '{"train": ["a"], "val": ["a"]}', "'a' is given two splits, train and val"),
        ("a.csv", "a,train\nb,train,c", "line 2 is not"),
        ("a.csv", "a;train\n", "line 1 is not"),
        ("a.txt", "a\n", "line 1 is not"),
        ("a.txt", "\n", "names no clips"),
    ],
)
def test_a_bad_list_is_said(tmp_path, name, text, message):
    uri = write(tmp_path / name, text)
    with pytest.raises(DataError, match=message) as caught:
        read_split_list(uri)
    assert str(caught.value).startswith(uri)


class Listed:
    """A source that is only listed."""

    def __init__(self, units: list[Unit], left_out: str | None = None):
        self.units = units
        self.left_out = left_out

    def list_files(self):
        return {}

    def list_units(self, rejects):
        if self.left_out:
            rejects.add("missing_labels", self.left_out)
        return self.units

    def open(self, unit, rejects):
        raise AssertionError("planning opens nothing")


def recordings() -> Listed:
    """Six clips of three recordings, one clip rejected while listing."""
    units = [Unit(f"{r}/{camera}", "", 10, split_key=r) for r in "abc" for camera in ("left", "right")]
    return Listed(units, left_out="lost")


def splits_of(tmp_path: Path, listed: dict[str, str], **changes) -> dict[str, str]:
    """{clip: split} that the plan gives."""
    file = write(tmp_path / "splits.json", json.dumps(listed))
    values = {"source": {"kind": "labelled_video", "uri": "x"}, "splits": {"file": file, **changes}}
    plan = make_plan(IngestSettings.model_validate(values), recordings())
    return {unit.name: split for task in plan.tasks for unit, split in task.units}


def test_the_list_decides(tmp_path):
    listed = {f"{r}/{c}": s for r, s in zip("abc", ("train", "val", "test"), strict=True) for c in ("left", "right")}
    assert splits_of(tmp_path, listed) == listed
    # The name of a recording stands for its cameras, and so does one of them.
    assert splits_of(tmp_path, {"a": "train", "b/left": "val", "c": "test"}) == listed
    assert splits_of(tmp_path, {**listed, "lost": "val"}) == listed


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "text"), [("a.csv", "clip,split,\r\nö\\1,val,\r\n"), ("a.json", '{"ö\\\\1": "val"}')])
def test_lists_of_other_systems_are_read(tmp_path, encoding, name, text):
    (tmp_path / name).write_bytes(text.encode(encoding))
    keys = {"o\u0308/1": "o\u0308/1"}
    listed = read_split_list(str(tmp_path / name))
    assert apply_split_list("a", listed, keys, ()) == {"o\u0308/1": "val"}


def test_a_key_twice_in_a_list_is_said(tmp_path):
    uri = write(tmp_path / "a.json", '{"a": "train", "a": "val"}')
    with pytest.raises(DataError, match=r"not a list of splits \(the key 'a' is there twice"):
        read_split_list(uri)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"a": "train", "b": "val"}, r"'c/left', 'c/right' are not in the list; add them, or set splits\.unlisted"),
        ({"a": "train", "b": "val", "c/lefd": "val"}, "'c/lefd' is not in the source; did you mean 'c/left'"),
        ({f"x{i}": "val" for i in range(8)}, "'x0', 'x1', 'x2', 'x3', 'x4' and 3 more are not in the source"),
        ({"a/left": "train", "a/right": "val"}, "one recording, 'a', are given two splits, train and val"),
    ],
)
def test_a_list_that_does_not_fit_the_source_is_said(tmp_path, listed, message):
    with pytest.raises(DataError, match=message):
        splits_of(tmp_path, listed)


def test_the_rest_goes_where_it_is_told(tmp_path):
    found = splits_of(tmp_path, {"a": "test"}, unlisted="val")
    assert found == {f"{r}/{c}": "test" if r == "a" else "val" for r in "abc" for c in ("left", "right")}
    drawn = splits_of(tmp_path, {"a": "test"}, unlisted="draw", train=0.5, val=0.5)
    expected = {"a": "test", **assign_splits(["b", "c"], {"train": 0.5, "val": 0.5}, seed=0)}
    assert drawn == {f"{r}/{c}": expected[r] for r in "abc" for c in ("left", "right")}
    assert set(drawn.values()) == {"train", "val", "test"}


def test_the_content_decides_whether_an_ingest_is_the_same(tmp_path):
    def deciding(text: str, name: str = "a.json") -> dict:
        values = {"kind": "labelled_video", "uri": "x"}
        file = write(tmp_path / name, text)
        return IngestSettings.model_validate({"source": values, "splits": {"file": file}}).deciding()

    first = deciding('{"a": "train"}')
    assert deciding("a train", "moved.txt") == first
    assert deciding('{"a": "val"}') != first


def test_without_a_list_nothing_is_recorded_of_it():
    settings = IngestSettings.model_validate({"source": {"kind": "labelled_video", "uri": "x"}})
    assert settings.deciding()["splits"] == {"train": 1.0, "val": 0.0, "test": 0.0}


def test_cameras_of_one_recording_are_drawn_together():
    values = {"source": {"kind": "labelled_video", "uri": "x"}, "splits": {"train": 0.4, "val": 0.3, "test": 0.3}}
    plan = make_plan(IngestSettings.model_validate(values), recordings())
    found = {unit.name: split for task in plan.tasks for unit, split in task.units}
    assert all(found[f"{r}/left"] == found[f"{r}/right"] for r in "abc")
    assert set(found.values()) == {"train", "val", "test"}


def test_two_clips_of_one_name_are_refused():
    settings = IngestSettings.model_validate({"source": {"kind": "labelled_video", "uri": "u"}})
    with pytest.raises(DataError, match="u: two clips would both be called 'a'"):
        make_plan(settings, Listed([Unit("a", "x", 1), Unit("a", "y", 1)]))


def test_a_missing_list_and_a_rest_without_list_are_said():
    source = {"kind": "labelled_video", "uri": "x"}
    with pytest.raises(StorageError, match=r"nowhere\.csv: no such file"):
        IngestSettings.model_validate({"source": source, "splits": {"file": "/nowhere.csv"}}).deciding()
    with pytest.raises(ValueError, match=r"no meaning without splits\.file"):
        IngestSettings.model_validate({"source": source, "splits": {"unlisted": "val"}})
