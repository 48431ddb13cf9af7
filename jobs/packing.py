"""What a submitted job takes along: the project's packages in one zip file, and nothing else.

Named folders instead of "everything but": data, environments, notebooks, credentials that lie in the checkout stay
there. The file is the same for the same content, so a cluster that has it already is not sent it again.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import EquihandError

PACKAGES = ("pipeline", "jobs")
MAX_BYTES = 50_000_000
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the zip format's first date; the real ones would make every file different


def pack(root: Path, target: Path, extra: Mapping[str, Path] | None = None) -> int:
    """Write `target`, a zip of the packages below `root`, and return its size in bytes.

    extra: more files, by their path inside the zip.
    Raises EquihandError naming the largest files when there are more than 50 MB to pack: that is data, not code.
    """
    files = {path.relative_to(root).as_posix(): path for name in PACKAGES for path in _code(root / name)}
    files |= extra or {}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise EquihandError(
            f"there are {sum(sizes.values()) / 1e6:.0f} MB to pack, more than {MAX_BYTES / 1e6:.0f} MB; "
            f"move data out of {' and '.join(PACKAGES)}, into the object store. Largest: "
            + ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name].read_bytes())
    return target.stat().st_size


def _code(folder: Path) -> Iterator[Path]:
    """Files below a package, without caches and hidden ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _code(path)
        elif path.suffix != ".pyc":
            yield path
