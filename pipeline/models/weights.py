"""Weights from files: our checkpoints, torchvision's ImageNet files, and what PeCLR's authors released.

Files are read without running any code in them (safetensors, or torch.load with weights_only=True). Which ResNet a file
holds is read off its tensors' names and shapes.
"""

import io
import pickle
import zipfile
from collections import Counter
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import DamagedError, DataError, one_line, warn
from pipeline.evaluation.yardsticks import Constant
from pipeline.hands import NUM_JOINTS, reorder
from pipeline.models.checkpoints import CHECKSUMS, META, read_checkpoint
from pipeline.models.encoder import Encoder, EncoderSettings, build_encoder
from pipeline.models.kept import read_best
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.projection import Projection, ProjectionHead, SpatialProjection
from pipeline.models.shipped import model_uri
from pipeline.views import MAX_VIEW_SIZE, VIEW_MARGIN

StateDict = dict[str, Tensor]

RELEASED_VIEW_SIZE = 224
"""Side of the views that PeCLR's released fine-tuned models expect, pixels (published prediction script)."""

RELEASED_VIEW_MARGIN = 1 / 0.7
"""Side of those views in hand boxes: there, the hand fills 0.7 of the view."""

_RELEASED_META = {"kind": "pose", "format": "peclr-released"}

_DEPTHS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_ENCODER_PREFIXES = ("", "encoder.", "backend_model.", "module.", "module.encoder.")


class LoadedPoseModel(NamedTuple):
    """A pose model in evaluation mode, and what is known about it."""

    model: PoseModel
    view_size: int
    """Side of the views it was trained on, pixels."""
    meta: dict[str, Any]
    """meta.json of the checkpoint; for released files {"kind": "pose", "format": ...}."""
    constant: Constant | None = None
    """The fixed hands of its training labels; None where its file holds none: older checkpoints, released files."""

    @property
    def view_margin(self) -> float:
        """Side of its views in hand boxes (tight around the joints)."""
        return RELEASED_VIEW_MARGIN if self.meta.get("format") == _RELEASED_META["format"] else VIEW_MARGIN


def load_encoder(uri: str) -> tuple[Encoder, dict[str, Any]]:
    """The encoder in a checkpoint directory (pretrained or fine-tuned), a run directory (its best checkpoint that is whole), or a
    weights file (.safetensors, .pth, .pt, .ckpt, .tar): torchvision's, with or without `fc`, or a released PeCLR one.

    Returns the encoder and the checkpoint's meta data ({} for files). Raises DataError when the file holds no such
    encoder, naming what was expected and what was found.
    """
    state, meta = _read(uri)
    return _encoder(state, uri), meta


def load_projection(uri: str) -> Projection | None:
    """The projection head in a pretraining checkpoint or run of ours; None where the file holds none."""
    state, _ = _read(uri)
    own = {name.removeprefix("projection."): value for name, value in state.items() if name.startswith("projection.")}
    head: Projection
    if "maps.weight" in own and "lateral.2.weight" in own:
        head = SpatialProjection(own["lateral.2.weight"].shape[1], 2 * len(own["maps.weight"]))
    elif "0.weight" in own and "3.weight" in own:
        hidden, num_features = own["0.weight"].shape
        head = ProjectionHead(num_features, hidden, len(own["3.weight"]))
    else:
        return None
    _load(head, own, uri)
    return head


def load_pose_model(uri: str) -> LoadedPoseModel:
    """The pose model in a checkpoint or run directory of ours, in a fine-tuned file as released with PeCLR, or of a name that
    comes with the package (shipped.py).

    Raises DataError when the file holds no pose model.
    """
    state, meta = _read(uri)
    if "backend_model.fc.weight" in state:
        model = _released_pose_model(state, uri)
        return LoadedPoseModel(model.eval(), RELEASED_VIEW_SIZE, dict(_RELEASED_META))
    if meta.get("kind") != "pose":
        held = f"a {meta['kind']} checkpoint" if "kind" in meta else f"keys {_some(state)}"
        raise DataError(
            f"{uri}: no pose model: expected a fine-tuned checkpoint directory or PeCLR's released file "
            f"('backend_model.fc.weight'), found {held}; run jobs.finetune on it first"
        )
    try:
        # Checkpoints of before there was a choice have the published head.
        settings = PoseSettings.model_validate({"kind": "peclr", **meta["settings"]["head"]})
        view_size = int(meta["settings"]["views"]["size"])
        if not 8 <= view_size <= MAX_VIEW_SIZE:
            raise ValueError(f"views of {view_size} pixels")
        constant = Constant.from_json(meta["constant"]) if "constant" in meta else None
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(f"{uri}/meta.json: the description of the pose model is damaged ({error})") from None
    model = PoseModel(_encoder(state, uri), settings)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    _load(model, {**_prefixed("encoder.", model.encoder.state_dict()), **rest}, uri)
    return LoadedPoseModel(model.eval(), view_size, meta, constant)


def read_meta(uri: str) -> dict[str, Any]:
    """What is known of the model behind a URI without building it: meta.json of a checkpoint or a run, {"kind": "pose",
    "format": "peclr-released"} for PeCLR's fine-tuned files, {} for other weights files. kind "pose" is for
    `load_pose_model`, anything else for `load_encoder`.
    """
    state, meta = _read(uri)
    return dict(_RELEASED_META) if "backend_model.fc.weight" in state else meta


def _read(uri: str) -> tuple[StateDict, dict[str, Any]]:
    """The tensors behind a URI or a shipped model's name, and the checkpoint's meta data ({} for plain files)."""
    uri = model_uri(uri)
    if storage.is_file(uri):
        return _read_file(uri), {}
    if any(storage.is_file(storage.join(uri, name)) for name in (META, CHECKSUMS)):
        return read_checkpoint(uri)
    result = storage.join(uri, "result.json")
    if storage.is_file(result):
        best = None
        try:
            best = storage.read_json(result).get("best_checkpoint")
        except DamagedError as error:
            warn(f"{error}; the best of the run's checkpoints is taken")
        else:
            if not best:
                raise DataError(f"{result}: the run names no best_checkpoint")
        return read_best(uri, best)[1:]
    raise DataError(f"{uri}: neither a weights file, a checkpoint (meta.json) nor a finished run (result.json)")


def _read_file(uri: str) -> StateDict:
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        if not data.startswith((b"PK", b"\x80")):  # a zip file, or a pickle of torch before 1.6
            raise ValueError("neither of torch.save's formats")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{uri}: holds Python objects beside tensors, which are never loaded; save it again as a plain state dict"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{uri}: not a weights file ({one_line(error, 120)})") from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        kind = "a mapping with other values" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{uri}: expected a state dict (tensors by name, or under 'state_dict'), found {kind}")
    return content


def _encoder(state: StateDict, uri: str) -> Encoder:
    """The encoder inside a state dict, whatever prefix its keys carry; keys of other parts are ignored."""
    prefix = next((p for p in _ENCODER_PREFIXES if f"{p}conv1.weight" in state), None)
    if prefix is None:
        raise DataError(
            f"{uri}: no encoder: expected torchvision's names ('conv1.weight', 'layer1.0.conv1.weight', ...), "
            f"found {_some(state)}"
        )
    names = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    own = {name: tensor for name, tensor in own.items() if name.startswith(names)}
    encoder = build_encoder(_encoder_settings(own, uri))
    _load(encoder, own, uri)
    return encoder


def _encoder_settings(state: StateDict, uri: str) -> EncoderSettings:
    """Read the architecture off names and shapes."""
    blocks = Counter(name.split(".")[0] for name in state if name.startswith("layer") and name.endswith(".bn1.weight"))
    depths = tuple(blocks[f"layer{stage}"] for stage in (1, 2, 3, 4))
    name = _DEPTHS.get(("layer1.0.conv3.weight" in state, depths))  # type: ignore[arg-type]
    stem = tuple(state["conv1.weight"].shape)
    if name is None or stem[1:] not in ((3, 7, 7), (3, 3, 3)):
        known = ", ".join(_DEPTHS.values())
        raise DataError(
            f"{uri}: not an encoder of this project ({known}): found stages of {depths} blocks "
            f"and a stem of shape {stem}"
        )
    try:
        return EncoderSettings.model_validate({"name": name, "width": stem[0], "small_stem": stem[2] == 3})
    except ValueError:
        raise DataError(f"{uri}: conv1 has {stem[0]} channels; a multiple of 8 up to 256 is expected") from None


def _load(module: nn.Module, state: StateDict, uri: str) -> None:
    """Load all tensors, or say which name or shape is wrong."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # absent from older files
    missing = sorted(expected.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - expected.keys())
    wrong = [name for name in expected.keys() & state.keys() if expected[name] != tuple(state[name].shape)]
    if missing:
        raise DataError(f"{uri}: expected {len(missing)} more tensors: {_some(missing)}; found {_some(state)}")
    if unknown:
        raise DataError(f"{uri}: found {len(unknown)} tensors that no part of the model has: {_some(unknown)}")
    if wrong:
        name = min(wrong)
        raise DataError(
            f"{uri}: '{name}' has shape {tuple(state[name].shape)}, expected {expected[name]} "
            f"({len(wrong)} tensors differ)"
        )
    module.load_state_dict(state, strict=False)


def _released_pose_model(state: StateDict, uri: str) -> PoseModel:
    """PeCLR's fine-tuned layout as our model: the same function, its joints brought from AIT to FreiHAND order.

    There, fc gives 64 numbers: 21 x (u, v in pixels of a 224 px view, relative depth), the last one unused.
    """
    model = PoseModel(_encoder(state, uri), PoseSettings(kind="peclr", root="palm", refine_root=True))
    try:
        weight, bias = state["backend_model.fc.weight"], state["backend_model.fc.bias"]
        refinement = {
            name.removeprefix("zroot_ref.zroot_ref."): tensor
            for name, tensor in state.items()
            if name.startswith("zroot_ref.zroot_ref.")
        }
        own = {
            **_prefixed("encoder.", model.encoder.state_dict()),
            **_prefixed("head.", _released_head(weight, bias)),
            **_prefixed("refinement.", released_refinement(refinement)),
            "mean_bone_length": model.mean_bone_length,
        }
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"{uri}: expected PeCLR's fine-tuned layout, backend_model.fc (64, F) and zroot_ref.zroot_ref.0-6; "
            f"missing or of another shape: {one_line(error, 120)}"
        ) from None
    _load(model, own, uri)
    return model


def _released_head(weight: Tensor, bias: Tensor) -> StateDict:
    num_outputs = 3 * NUM_JOINTS
    rows = torch.cat([weight, bias[:, None]], dim=1)[:num_outputs].view(NUM_JOINTS, -1)
    rows = reorder(rows, source="ait", target="freihand").reshape(NUM_JOINTS, 3, -1).clone()
    rows[:, :2] /= RELEASED_VIEW_SIZE  # pixels -> fractions of the side,
    rows[:, :2, -1] -= 0.5  # counted from the view's centre
    rows = rows.view(num_outputs, -1)
    return {"weight": rows[:, :-1].contiguous(), "bias": rows[:, -1].contiguous()}


def released_refinement(state: StateDict) -> StateDict:
    """The released refinement network's tensors ("0.weight", ...) with its input columns in FreiHAND order."""
    first = state["0.weight"]
    num_hidden = len(first)
    depths = reorder(first[:, :NUM_JOINTS, None], source="ait", target="freihand").squeeze(-1)
    rays = first[:, NUM_JOINTS : 3 * NUM_JOINTS].view(num_hidden, NUM_JOINTS, 2)
    rays = reorder(rays, source="ait", target="freihand")
    columns = torch.cat([depths, rays.reshape(num_hidden, -1), first[:, 3 * NUM_JOINTS :]], dim=1)
    return {**state, "0.weight": columns.contiguous()}


def _prefixed(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


def _some(names: Any, limit: int = 4) -> str:
    listed = sorted(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(f"'{name}'" for name in listed[:limit]) + more if listed else "nothing"
