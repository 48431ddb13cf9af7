"""Text that others wrote: JSON, CSV and YAML in whatever encoding it comes, and in words what is wrong with it.

UTF-8 with and without a byte order mark, UTF-16 and UTF-32 are read alike. What standard readers take without a word is refused:
a key that an object has twice, of which one value would vanish.
"""

import json
import re
from collections.abc import Hashable
from typing import Any

import yaml

from pipeline.errors import one_line

NOT_UNICODE = "neither UTF-8 nor UTF-16; save it as UTF-8"
_AROUND = 30  # signs of the text that an error shows
_MOST_VALUES = 10_000_000  # of a YAML text, with what its aliases repeat


class DuplicateKeyError(Exception):
    """An object has a key twice. Not a ValueError: who reads on at those would go on to the file's end."""


def decode_text(data: bytes) -> str:
    """Text without its byte order mark. Raises ValueError where it is not Unicode."""
    try:
        return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(NOT_UNICODE) from None


def parse_json(data: bytes) -> Any:
    """What a JSON text says; NaN and Infinity are numbers in it. Raises ValueError that says in one line what is wrong."""
    text = decode_text(data)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise ValueError(str(error)) from None
    except json.JSONDecodeError as error:
        where = f" in line {error.lineno}" if text.strip() else ""
        raise ValueError(f"{json_fault(text, error.pos, error.msg)}{where}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook. Raises DuplicateKeyError."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise DuplicateKeyError(f"the key '{twice}' is there twice in one object")
    return result


def json_fault(text: str, position: int, message: str) -> str:
    """What is wrong at a place of a JSON text, in the words of who has to mend it. message: json's own."""
    before, sign = text[:position].rstrip(), text[position : position + 1]
    if not text.strip():
        return "the file is empty"
    # The place is that of the comma in newer versions of Python, and of what follows it in older ones.
    comma = position if sign == "," else len(before) - 1
    if text[comma : comma + 1] == "," and re.match(r",\s*[\]}]", text[comma : comma + 2 + _AROUND]):
        return f"a comma before '{text[comma + 1 :].lstrip()[:1]}', which JSON does not allow"
    if text[position : position + 2] in ("//", "/*") or sign == "#":
        return "a comment, which JSON does not allow"
    if sign == "'":
        return "quotes are ', JSON wants \""
    if message == "Extra data":
        return "more than one value (JSON Lines? put them into one list)"
    near = text[position : position + _AROUND].split("\n")[0].strip()
    return f"{message} at '{near}'" if near else "it ends too early" if not text[position:].strip() else message


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", node.value[number][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Values in a node, where one that has several names counts as often as it is named; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = [] if isinstance(node, yaml.ScalarNode) else parts
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in inner)
    return known[id(node)]


def parse_yaml(data: bytes) -> Any:
    """What a YAML text says. Raises ValueError that says in one line what is wrong."""
    text = decode_text(data)
    try:
        loader = _UniqueKeys(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > _MOST_VALUES:
            raise ValueError("its aliases (*name) repeat too much")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or one_line(error)
        raise ValueError(f"{problem}{f' at line {mark.line + 1}' if mark else ''}") from None
