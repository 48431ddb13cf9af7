"""Large JSON files read bit by bit: the same values as json.loads, and no damage goes unseen."""

import io
import json
from typing import Any

import pytest

from pipeline.errors import DataError, StorageError
from pipeline.frames.sources import json_stream
from pipeline.frames.sources.json_stream import JsonStream, open_json

DOCUMENT = {"a": [{"x": [1, 2.5, -3e5]}, {"y": 'é"]}'}], "n": 12345, "e": [], "t": {"1": {"2": [True, None]}, "3": {}}}


def walk(data: bytes):
    stream = JsonStream(io.BytesIO(data), "f.json")
    found: dict[str, Any] = {}
    for key in stream.members():
        if key in "ae":
            found[key] = [stream.value() for _ in stream.elements()]
        elif key == "t":
            found[key] = {outer: {inner: stream.value() for inner in stream.members()} for outer in stream.members()}
        else:
            found[key] = stream.value()
    return found


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_those_of_json_loads(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    assert walk(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()) == DOCUMENT


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_every_unicode_encoding_is_read(monkeypatch, encoding):
    monkeypatch.setattr(json_stream, "CHUNK", 5)
    assert walk(json.dumps(DOCUMENT, ensure_ascii=False).encode(encoding)) == DOCUMENT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"n": 1, "n": 2}', "the key 'n' is there twice"),
        (b'{"a": [{"x": 1, "x": 2}]}', "the key 'x' is there twice"),
        (b'{"n": 1,\n}', "a comma before '}', which JSON does not allow"),
        (b'{"a": [1, ]}', "a comma before ']', which JSON does not allow"),
        (b'{"a": [{"x": [1,]}]}', "a comma before ']', which JSON does not allow"),
        ('{"n": "é"}'.encode("latin-1"), "neither UTF-8 nor UTF-16"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(DataError, match=message) as caught:
        walk(data)
    assert "\n" not in str(caught.value)


def test_every_cut_is_seen():
    data = json.dumps(DOCUMENT, ensure_ascii=False).encode()
    for end in range(len(data)):
        with pytest.raises(DataError, match=r"^f\.json: not JSON of the expected form near "):
            walk(data[:end])


@pytest.mark.parametrize(
    "data", [b"[]", b'{"a": {}}', b'{"a" 1}', b"{3: 1}", b'{"n": 1 "a": []}', b'{"n": nul}', b'{"n": "\xff"}']
)
def test_other_content_is_refused(data):
    with pytest.raises(DataError, match=r"f\.json"):
        walk(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"none\.json: no such file"), open_json(str(tmp_path / "none.json")):
        pass
