"""Checkpoints: a directory of three files, none of them a pickle.

model.safetensors   weights, with keys "encoder.*", "projection.*" or "head.*"
trainer.pt          optimiser and loop state; loaded with weights_only=True
meta.json           format version, kind, step, epoch, settings, frame-set digest, metrics; of a pose model also the constant
                    pose of its training labels
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from pipeline.errors import DataError, StorageError
from pipeline.storage import exists, join, local_path, read_bytes, read_json, write_json

FORMAT_VERSION = 1


def save_checkpoint(
    directory: str | Path, model: torch.nn.Module, trainer_state: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Write a checkpoint into a local directory.

    trainer_state: tensors, numbers, strings and containers of them only. meta: plain JSON; the format version is added.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    torch.save(trainer_state, directory / "trainer.pt")
    write_json(str(directory / "meta.json"), {"format_version": FORMAT_VERSION, **meta})


def read_checkpoint(uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and meta of the checkpoint directory at a URI. Raises DataError where it is not one of ours."""
    meta_uri, model_uri = join(uri, "meta.json"), join(uri, "model.safetensors")
    if not exists(meta_uri) or not exists(model_uri):
        raise DataError(f"{uri}: not a checkpoint directory (meta.json and model.safetensors are expected in it)")
    meta = read_json(meta_uri)
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{uri}: checkpoint format {version} is not known; this version reads format {FORMAT_VERSION}")
    try:
        return load_safetensors(read_bytes(model_uri)), meta
    except SafetensorError as error:
        raise DataError(f"{model_uri}: damaged ({error})") from None


def read_trainer_state(directory: str | Path) -> dict[str, Any]:
    """Optimiser and loop state of a local checkpoint directory."""
    path = os.path.join(local_path(str(directory)), "trainer.pt")
    if not os.path.exists(path):
        raise StorageError(f"{path}: no such file; training cannot go on from this checkpoint")
    return torch.load(path, map_location="cpu", weights_only=True)
