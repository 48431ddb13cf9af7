"""Which code ran, how it was called, and on what: for the record of a run.

EQUIHAND_GIT     "COMMIT" or "COMMIT-dirty", where the code that runs has no repository around it (`jobs.submit` sets it)
"""

import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pipeline.cores import usable_cores
from pipeline.masking import masked

GIT_VARIABLE = "EQUIHAND_GIT"
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "numpy", "optuna")
_MAX_DIFF = 1_000_000  # characters
_GIT_S = 10.0


class Git(NamedTuple):
    """The state of the code. Empty texts where it is not known."""

    commit: str
    is_dirty: bool
    diff: str
    """From the commit to what ran; of files that git knows."""


@lru_cache(maxsize=1)
def git() -> Git:
    """Of the code that runs."""
    given = os.environ.get(GIT_VARIABLE)
    if given is not None:
        return Git(given.removesuffix("-dirty"), given.endswith("-dirty"), "")
    if not (_ROOT / ".git").exists():
        return Git("", False, "")
    commit, status, diff = (
        _git(*arguments) for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain"), ("diff", "HEAD"))
    )
    return Git(commit.strip(), bool(status.strip()), masked(diff[:_MAX_DIFF]))


def command() -> str:
    """The command line of this process, with passwords masked."""
    program = Path(sys.argv[0])
    start = ["python", "-m", f"jobs.{program.stem}"] if program.parent.name == "jobs" else [program.name]
    return masked(shlex.join([*start, *sys.argv[1:]]))


def provenance() -> dict[str, str]:
    """Tags of a run of MLflow."""
    code = git()
    tags = {
        "mlflow.source.git.commit": code.commit,
        "equihand.git_dirty": str(code.is_dirty).lower() if code.commit else "",
        "equihand.command": command(),
        "equihand.python": platform.python_version(),
        "equihand.packages": " ".join(f"{name}=={found}" for name in _PACKAGES if (found := _version(name))),
        "equihand.machine": machine(),
    }
    return {name: value for name, value in tags.items() if value}


@lru_cache(maxsize=1)
def machine() -> str:
    """Such as "Linux x86_64, 16 cores (AMD EPYC), 1 x NVIDIA H100"."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = f" ({names[0]})" if names else ""
    parts = [f"{platform.system()} {platform.machine()}", f"{usable_cores()} cores{processor}"]
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments],  # noqa: S607
            capture_output=True,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
