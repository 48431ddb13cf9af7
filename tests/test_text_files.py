import json

import pytest

from pipeline.text_files import decode_text, parse_json, parse_yaml

VALUE = {"ä": [1, 2.5, None], "手": {"x": "y"}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_unicode_encoding_is_read(encoding):
    data = json.dumps(VALUE, ensure_ascii=False, indent=1).replace("\n", "\r\n").encode(encoding)
    assert parse_json(data) == VALUE
    assert parse_yaml(data) == VALUE
    assert decode_text("\ufeff1,2".encode(encoding)) == "1,2"


def test_not_a_number_is_a_number():
    assert parse_json(b"[NaN, -Infinity]")[1] == -float("inf")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b'[1,\n2,\n]', r"a comma before '\]', which JSON does not allow in line"),
        (b'{"a": 1, }', "a comma before '}'"),
        (b'{"a": [1, 2', "ends too early|delimiter"),
        (b'{"a": 1}\n{"a": 2}\n', r"more than one value \(JSON Lines"),
        (b"{'a': 1}", 'quotes are \', JSON wants "'),
        (b'[1, // one\n2]', "a comment"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice in one object"),
        ('["ä"]'.encode("latin-1"), "neither UTF-8 nor UTF-16"),
        (b"[" * 100_000, "nested too deeply"),
        (b"<html>", "Expecting value at '<html>' in line 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' is there twice at line 3"),
        (b"a: [1\n", "at line"),
        ("a: ü".encode("latin-1"), "neither UTF-8 nor UTF-16"),
    ],
)
def test_faults_of_yaml(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(data)
    assert "\n" not in str(caught.value)


def test_yaml_that_merges_is_read():
    assert parse_yaml(b"a: &x {p: 1}\nb:\n  <<: *x\n  p: 2\n")["b"] == {"p": 2}
