"""Reads JSON files that are too large to be held: members and elements come one at a time.

    with open_json(uri) as stream:
        for key in stream.members():
            if key == "images":
                for _ in stream.elements():
                    image = stream.value()
            else:
                stream.value()

By hand, because ijson refuses NaN, integers beyond 64 bits, byte order marks and UTF-16, all of which json.loads reads, takes a
key that is there twice, and does not say what is wrong in our words.

Whatever `members` and `elements` announce has to be taken, with `value`, `members` or `elements`, before the next one.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from pipeline.errors import DataError
from pipeline.storage import as_local_file
from pipeline.text_files import NOT_UNICODE, DuplicateKeyError, json_fault, unique_keys

CHUNK = 2**22
_SPACE = " \t\n\r"


class JsonStream:
    """See the file's docstring. All methods raise DataError where the file is not valid JSON of the asked kind."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder: codecs.IncrementalDecoder | None = None
        self._scan = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; each one's value has to be taken."""
        seen = set()
        for _ in self._items("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error("a key is expected")
            if key in seen:
                raise self._error(f"the key '{key}' is there twice in one object")
            seen.add(key)
            self._take(":")
            yield key

    def elements(self) -> Iterator[None]:
        """Announces each element of the array that comes next."""
        yield from self._items("[", "]")

    def value(self) -> Any:
        """The whole value that comes next."""
        self._next()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except ValueError as error:
                if not self._more():
                    raise self._error(_fault(self._text, error)) from None
                continue
            except DuplicateKeyError as error:
                raise self._error(str(error)) from None
            except RecursionError:
                raise self._error("nested too deeply") from None
            # A number that ends with the text may go on.
            if end == len(self._text) and not isinstance(value, dict | list | str) and self._more():
                continue
            self._at = end
            return value

    def _items(self, begin: str, end: str) -> Iterator[None]:
        self._take(begin)
        if self._next() == end:
            self._at += 1
            return
        while True:
            yield
            if self._next() == end:
                self._at += 1
                return
            self._take(",")
            if self._next() == end:
                raise self._error(f"a comma before '{end}', which JSON does not allow")

    def _take(self, sign: str) -> None:
        if self._next() != sign:
            raise self._error(f"'{sign}' is expected")
        self._at += 1

    def _next(self) -> str:
        """The next sign that is no white space, without taking it."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise self._error("it ends too early")

    def _more(self) -> bool:
        """Read on; False at the file's end."""
        if self._ended:
            return False
        data = self._file.read(CHUNK)
        self._ended = not data
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder(json.detect_encoding(data))()
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise self._error(NOT_UNICODE) from None
        self._text = self._text[self._at :] + more
        self._at = 0
        return True

    def _error(self, why: str) -> DataError:
        near = self._text[self._at : self._at + 20].replace("\n", " ")
        return DataError(f"{self._name}: not JSON of the expected form near '{near}' ({why})")


def _fault(text: str, error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return json_fault(text, error.pos, error.msg)
    return str(error)


@contextmanager
def open_json(uri: str) -> Iterator[JsonStream]:
    """A JSON file, read from front to back as it is used (from object storage, by way of a temporary local copy).

    Raises StorageError where it cannot be read.
    """
    with as_local_file(uri) as path, open(path, "rb") as file:
        yield JsonStream(file, uri)
