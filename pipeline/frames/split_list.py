"""A list that says which clip belongs to which split, instead of a draw.

    JSON   {"clip_00": "train", "b/clip_01": "val"}  or  {"train": ["clip_00"], "val": ["b/clip_01"]}
    CSV    a line a clip: clip_00,train              (a first line whose second field is "split" is a heading)
    text   a line a clip: clip_00 train              (the last word is the split; names may hold spaces)

The suffix (.json, .csv, anything else) says which. Names are those of the source's units: the path of the video below the
source without its suffix, or of the image folder; the name of a whole recording stands for all of its cameras.
"""

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import DataError
from pipeline.frames.listing import Listing
from pipeline.frames.schema import SPLITS
from pipeline.storage import read_bytes
from pipeline.text_files import decode_text, parse_json

_MAX_NAMED = 5
"""Clips that an error names."""


def read_split_list(uri: str) -> dict[str, str]:
    """{clip: split}. Raises DataError where the file is not such a list, or gives one clip two splits."""
    try:
        data = read_bytes(uri)
        is_json = uri.lower().endswith(".json")
        pairs = _from_json(parse_json(data)) if is_json else _from_lines(uri, decode_text(data))
    except ValueError as error:
        raise DataError(f"{uri}: not a list of splits ({error})") from None
    result: dict[str, str] = {}
    for name, split in pairs:
        if split not in SPLITS:
            raise DataError(f"{uri}: '{name}' is given the split {split!r}; it must be one of {', '.join(SPLITS)}")
        if result.setdefault(name, split) != split:
            raise DataError(f"{uri}: '{name}' is given two splits, {result[name]} and {split}")
    if not result:
        raise DataError(f"{uri}: names no clips")
    return result


def content_digest(splits: Mapping[str, str]) -> str:
    """The same for equal lists, however they are written."""
    text = json.dumps(sorted(splits.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def apply_split_list(
    uri: str, listed: Mapping[str, str], keys: Mapping[str, str], left_out: Collection[str]
) -> dict[str, str]:
    """{split key: split} of the listed clips.

    keys: each clip's split key (its own name, or that of the recording it belongs to). left_out: clips that the source
    rejected; the list may name them. Raises DataError where a name is neither, or one recording gets two splits.
    """
    known = {*keys, *keys.values()}
    there = Listing("", dict.fromkeys(sorted(known.union(left_out)), 0))
    pairs = [(there.find(name)[0], split) for name, split in listed.items()]
    if unknown := sorted({name for name, _ in pairs} - there.sizes.keys()):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise DataError(f"{uri}: {_named(unknown)} not in the source{hint}")
    result: dict[str, str] = {}
    for name, split in pairs:
        if name in known:
            key = keys.get(name, name)
            if result.setdefault(key, split) != split:
                raise DataError(
                    f"{uri}: clips of one recording, '{key}', are given two splits, {result[key]} and {split}"
                )
    return result


def check_complete(uri: str, splits: Mapping[str, str], keys: Mapping[str, str]) -> None:
    """Raises DataError where a clip has no split."""
    if missing := sorted(name for name, key in keys.items() if key not in splits):
        raise DataError(f"{uri}: {_named(missing)} not in the list; add them, or set splits.unlisted")


def _from_json(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError('write {"clip": "train"} or {"train": ["clip"]}')
    pairs: list[tuple[str, Any]] = []
    for key, item in value.items():
        pairs += [(str(name), key) for name in item] if isinstance(item, list) else [(key, item)]
    return pairs


def _from_lines(uri: str, text: str) -> list[tuple[str, str]]:
    if uri.lower().endswith(".csv"):
        lines = [[field.strip() for field in line] for line in csv.reader(io.StringIO(text, newline=""))]
    else:
        lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    pairs = []
    for number, line in enumerate(lines, 1):
        while len(line) > 2 and not line[-1]:  # of a line that ends with a comma
            line.pop()
        if any(line) and not (number == 1 and line[1:] == ["split"]):
            if len(line) != 2:
                raise ValueError(f"line {number} is not a clip and its split")
            pairs.append((line[0], line[1]))
    return pairs


def _named(names: list[str]) -> str:
    """For people: "'a', 'b' and 3 more are"."""
    shown = ", ".join(f"'{name}'" for name in names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
