"""Where the weights come from that a run begins with: a run of ours, or a file."""

import hashlib
from typing import Any

from pipeline.errors import EquihandError
from pipeline.models.checkpoints import MODEL
from pipeline.models.shipped import model_uri
from pipeline.storage import absolute, exists, is_file, join, read_bytes, read_json, size
from pipeline.text_files import parse_yaml
from pipeline.tracked import Origin
from pipeline.tracking_links import Source

_ABOVE = 3  # RUN/checkpoint_000007, RUN/best, RUN/trials/0007/checkpoint_000007, STUDY/work/KEY/checkpoint_000007
_MAX_HASHED = 512 << 20  # bytes: the largest encoder has half of that
_ONLY_IN = {"objective": "pretrain", "head": "finetune", "space": "search", "grids": "study"}
"""Settings by which those of a kind of run are known."""


def origin_of(*uris: str | None) -> Origin:
    """Of the encoders or pose models behind URIs (None: of none): the runs that they are of, also where a checkpoint of one is named;
    of the others, as the tag equihand.init, the URI and the SHA-256 of the file, or of a checkpoint's model.safetensors.

    What cannot be read is named all the same: those who load it say what is wrong.
    """
    runs: list[Source] = []
    others: list[str] = []
    for uri in dict.fromkeys(each for each in uris if each is not None):
        run = _run_of(absolute(model_uri(uri)))
        if run is not None:
            runs.append(run)
        else:
            others.append(f"{uri}{_digest(absolute(model_uri(uri)))}")
    return Origin([*dict.fromkeys(runs)], {"equihand.init": ", ".join(others)} if others else {})


def _run_of(uri: str) -> Source | None:
    """The run whose folder this is, or a folder or file in it; of a trial, which may be a run as well, the search."""
    found, folder = None, uri
    for _ in range(1 + _ABOVE):
        found = _run_in(folder) or found
        folder = folder.rpartition("/")[0]
        if not folder or folder.endswith("/"):  # a root, a bucket
            break
    return found


def _run_in(folder: str) -> Source | None:
    try:
        if exists(join(folder, "result.json")):
            result = read_json(join(folder, "result.json"))
            if isinstance(result, dict) and {"run_id", "kind"} <= result.keys():
                return Source(result["kind"], result["run_id"], result.get("mlflow_run_id"))
        elif exists(join(folder, "settings.yaml")):  # it has not finished; or a study, which has no such result
            settings = _settings(folder)
            kind = next((kind for name, kind in _ONLY_IN.items() if name in settings), None)
            if kind is not None and "run" in settings:
                return Source(kind, folder.rsplit("/", 1)[-1])
    except EquihandError:  # above what may be read; or damaged
        pass
    return None


def _settings(folder: str) -> dict[str, Any]:
    try:
        settings = parse_yaml(read_bytes(join(folder, "settings.yaml")))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _digest(uri: str) -> str:
    """Such as " sha256:11ad3fa6..."; of files that are too large to be read for it, their size."""
    try:
        file = uri if is_file(uri) else join(uri, MODEL)
        num_bytes = size(file)
        if num_bytes > _MAX_HASHED:
            return f" ({num_bytes} bytes)"
        return f" sha256:{hashlib.sha256(read_bytes(file)).hexdigest()}"
    except EquihandError:
        return ""
