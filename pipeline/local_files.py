"""All files below a local folder, links followed, but never in circles."""

import errno
import os
import stat
from collections.abc import Hashable, Iterator
from typing import NamedTuple


class File(NamedTuple):
    """A name below a folder, and which file it is."""

    path: str
    """Below the folder."""
    size: int
    identity: Hashable | None
    """The same for all names of a file; None where a link leads to nothing."""
    num_links: int = 0
    """Symbolic links on the way to it."""
    num_names: int = 1
    """Of the file (hard links)."""


def walk(root: str) -> Iterator[File]:
    """Files, those behind fewer links first. Every folder is entered once, by the first of its names, and none that the root
    lies in. Raises OSError, and UnicodeDecodeError for a name that is not UTF-8.
    """
    parents = [os.path.realpath(root)]
    while (parent := os.path.dirname(parents[-1])) != parents[-1]:
        parents.append(parent)
    entered = {_identity(os.stat(path)) for path in parents[1:]}
    folders, num_links = [""], 0
    while folders:
        links = []
        while folders:
            folder = folders.pop()
            if (identity := _identity(os.stat(os.path.join(root, folder)))) in entered:
                continue
            entered.add(identity)
            for entry in sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name):
                os.fsencode(entry.name).decode()  # no storage knows other names
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False) and (info := _stat(entry.path)):
                    yield _file(path, info, num_links)
        num_links += 1
        for path in sorted(links, reverse=True):  # folders are taken from the end
            info = _stat(os.path.join(root, path))
            if info is None:
                yield File(path, 0, None, num_links)
            elif stat.S_ISDIR(info.st_mode):
                folders.append(path)
            elif stat.S_ISREG(info.st_mode):
                yield _file(path, info, num_links)


def _stat(path: str) -> os.stat_result | None:
    """None for what is not there, or has vanished since it was listed."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def _file(path: str, info: os.stat_result, num_links: int) -> File:
    return File(path, info.st_size, _identity(info), num_links, info.st_nlink)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
