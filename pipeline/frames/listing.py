"""Which files of a folder are input, in which order, and under which name: the rules of all sources and of prediction.

* Hidden files, and what operating systems, archives and notebooks leave behind, are no input, and nothing is said about them.
* A file of several names (links) is one file, under the name with the fewest links, of these the first.
* What is not read is said once, with counts.
* The order is that of the numbers in the names: frame_2 before frame_10, wherever the number stands.
* Names in files of labels may be written in another way than the listed ones: see `Listing.find`.
"""

import importlib.util
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import features

from pipeline.errors import DataError
from pipeline.storage import absolute, is_file, is_local, local_path, size, walk

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts", ".mts"),
    *(".m2ts", ".m2t", ".m2v", ".3gp", ".3g2", ".flv", ".f4v", ".ogv", ".asf", ".vob", ".mxf", ".qt", ".dv", ".divx"),
)
_HEIF_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jpe", ".jfif", ".mpo", ".gif", ".tif", ".tiff", ".dib", ".tga"),
    *(".ppm", ".pgm", ".pnm"),
    *((".jp2",) if features.check("jpg_2000") else ()),
    *((".avif",) if features.check("avif") else ()),
    *(_HEIF_SUFFIXES if importlib.util.find_spec("pillow_heif") else ()),
)
"""What Pillow reads here."""
_NEEDS = {
    **dict.fromkeys(_HEIF_SUFFIXES, "pillow-heif (pip install -e '.[heif]')"),
    ".avif": "Pillow with AVIF",
    ".jp2": "Pillow with JPEG 2000",
}
_LEFT_BEHIND = {
    *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
"""By macOS, Windows and storage devices; beside names that begin with a dot (._*, .DS_Store, .ipynb_checkpoints)."""
_MAX_KINDS = 8
"""That a note names."""


@dataclass(frozen=True)
class Listing:
    """The input files of a folder."""

    root: str
    """Absolute URI of the folder."""
    sizes: dict[str, int]
    """{path below the root: bytes}, in natural order."""
    notes: list[str] = field(default_factory=list)
    """What is not read and why, one line each."""
    names: dict[Hashable, str] = field(default_factory=dict)
    """{identity of the file (see local_files.py): path}, of local files."""

    def uri(self, path: str) -> str:
        """Of a file below the root."""
        return f"{self.root.rstrip('/')}/{path}"

    def uris(self) -> dict[str, int]:
        """{URI: bytes}."""
        return {self.uri(path): num_bytes for path, num_bytes in self.sizes.items()}

    def find(self, name: str) -> tuple[str, str | None]:
        """(path below the root, hint) of a file that labels name.

        The listed path where the name means that file: also with backslashes, "./" or "//" in it, in another Unicode normalisation
        (macOS and others differ), or as another link to it. The hint is a path that differs in upper and lower case, which is
        not taken for the same; None where there is no need for one.
        """
        if name in self.sizes:
            return name, None
        path = _plain(name)
        if path in self.sizes:
            return path, None
        if known := self._same_name(path) or self._by_key.get(_key(path)):
            return known, None
        return path, self._by_folded_key.get(_key(path).casefold())

    def _same_name(self, path: str) -> str | None:
        """The listed path of the file that is there under another name."""
        if not self.names:
            return None
        try:
            info = os.stat(local_path(self.uri(path)))
        except OSError:
            return None
        return self.names.get((info.st_dev, info.st_ino))

    @cached_property
    def _by_key(self) -> dict[str, str]:
        return {_key(path): path for path in reversed(self.sizes)}

    @cached_property
    def _by_folded_key(self) -> dict[str, str]:
        return {key.casefold(): path for key, path in self._by_key.items()}


def list_inputs(
    uri: str, suffixes: tuple[str, ...], beside: tuple[str, ...] = (), known: Collection[str | None] = ()
) -> Listing:
    """The files below a folder with one of these suffixes (lower case), or one file by itself, whatever it is called.

    beside, known: suffixes and URIs of files that are not listed, but no surprise either: notes leave them out.
    """
    root = absolute(uri)
    if is_file(root):
        folder, _, name = root.rpartition("/")
        return Listing(folder or "/", {name: size(root)})
    expected = {absolute(item) for item in known if item}
    sizes: dict[str, int] = {}
    names: dict[Hashable, str] = {}
    others: Counter[str] = Counter()
    second: list[tuple[str, str]] = []
    dead: list[str] = []
    unreadable: list[str] = []
    files = [file for file in walk(root) if not is_left_behind(file.path)]
    for file in sorted(files, key=lambda file: (file.num_links, natural(file.path))):
        if not file.path.lower().endswith(suffixes):
            if not file.path.lower().endswith(beside) and f"{root}/{file.path}" not in expected:
                others[_suffix(file.path)] += 1
        elif file.identity is None:
            dead.append(file.path)
        elif not is_local(root) and not {"", ".", ".."}.isdisjoint(file.path.split("/")):
            unreadable.append(file.path)
        elif file.identity in names and (file.num_links or file.num_names > 1):
            second.append((file.path, names[file.identity]))
        else:
            sizes[file.path] = file.size
            names[file.identity] = file.path
    notes = [_others_text(others, ".jpg" in suffixes)] if others else []
    if second:
        first = "'{}' of '{}'".format(*second[0])
        notes.append(
            f"{_count(len(second), 'name')} left out, other names (links) of files that are listed, such as {first}"
        )
    if dead:
        notes.append(f"{_count(len(dead), 'link')} left out that lead to nothing, such as '{dead[0]}'")
    if unreadable:
        notes.append(
            f"{_count(len(unreadable), 'object')} left out whose keys cannot be read, with an empty part (//) or one of dots, "
            f"such as '{unreadable[0]}': copy them to other keys"
        )
    ordered = {path: sizes[path] for path in sorted(sizes, key=natural)}
    return Listing(root, ordered, [f"{uri}: {note}" for note in notes], names if is_local(root) else {})


def nothing_here(uri: str, what: str, suffixes: tuple[str, ...], listing: Listing) -> DataError:
    """What to raise where a listing is empty."""
    notes = "".join(f"; {note.removeprefix(f'{uri}: ')}" for note in listing.notes)
    return DataError(f"{uri}: no {what} here ({', '.join(suffixes)}){notes}")


def is_left_behind(path: str) -> bool:
    """Whether a path below a source is no input, whatever it holds."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in _LEFT_BEHIND for part in path.split("/")
    )


def natural(path: str) -> tuple[Any, ...]:
    """The key of natural order: numbers count by their value, in the names of folders too."""
    *folders, name = unicodedata.normalize("NFC", path).split("/")
    stem, _, suffix = name.rpartition(".") if "." in name else (name, "", "")
    return [*map(_numbers, folders), _numbers(stem)], suffix, path


def _numbers(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), len(part), "") if number % 2 else (-1, 0, part) for number, part in enumerate(parts)]


def check_below(name: str) -> str:
    """The file name, as labels give it. Raises ValueError where it leads out of the source."""
    path = _plain(name)
    if path.startswith("/") or path.split("/")[0] in (".", "..") or re.match(r"([A-Za-z]:|\w+:/)", path):
        raise ValueError("must be a path below the source's URI")
    return name


def _plain(name: str) -> str:
    """Such as "a/b.jpg" for "a\\b.jpg", "./a/b.jpg" and "a//b.jpg"."""
    return posixpath.normpath(name.replace("\\", "/"))


def unknown_names(where: str, names: Iterable[str], there: Collection[str]) -> list[str]:
    """A note on names of a file that the input does not have; none where it has them all. where: URI of the file."""
    listing = Listing("", dict.fromkeys(there, 0))
    found = [(name, *listing.find(name)) for name in names]
    missing = [(name, hint) for name, path, hint in found if path not in listing.sizes]
    if not missing:
        return []
    name, hint = next(((name, hint) for name, hint in missing if hint), missing[0])
    meant = f" (there is '{hint}': upper and lower case differ)" if hint else ""
    return [f"{where}: {_count(len(missing), 'name')} not in the input, such as '{name}'{meant}"]


def _key(path: str) -> str:
    """The same for paths that mean one file on some system."""
    return unicodedata.normalize("NFC", _plain(path))


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else "without a suffix"


def needs(suffix: str) -> str:
    """What is missing to read images of this kind, to follow on a sentence; empty where nothing would help."""
    return f"; {suffix} needs {_NEEDS[suffix]}" if suffix in _NEEDS and suffix not in IMAGE_SUFFIXES else ""


def _others_text(others: Counter[str], are_images: bool) -> str:
    """Such as "12 files of other kinds were left out: 10 .txt, 2 .xmp"."""
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {suffix}" for suffix, count in kinds[:_MAX_KINDS]]
    if rest := sum(count for _, count in kinds[_MAX_KINDS:]):
        shown.append(f"{rest} others")
    needed = "".join(needs(suffix) for suffix, _ in kinds) if are_images else ""
    total = sum(others.values())
    said = "1 file of another kind was" if total == 1 else f"{total} files of other kinds were"
    return f"{said} left out: {', '.join(shown)}{needed}"


def _count(number: int, what: str) -> str:
    return f"1 {what} was" if number == 1 else f"{number} {what}s were"
