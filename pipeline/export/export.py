"""Hand a trained model out: weights, programs (torch.export, ONNX), an MLflow model, and a card that says what it is.

encoder.pth, encoder.safetensors      the encoder under torchvision's names
model.safetensors, meta.json          pose models: a checkpoint that jobs and torch.hub load
pose.pt2, pose.onnx  (or encoder.*)   programs with their preprocessing inside, see programs.py
mlflow/                               MLflow model
MODEL_CARD.md, export.json            what it is; written last
"""

import importlib.util
import io
import logging
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from pipeline import __version__
from pipeline.config import Settings, Uri
from pipeline.errors import DataError, EquihandError
from pipeline.export.card import write_card
from pipeline.export.lineage import run_result, trace
from pipeline.export.programs import EncoderProgram, PoseProgram
from pipeline.export.usage import usage_text
from pipeline.geometry import default_camera
from pipeline.models.checkpoints import save_checkpoint, seal
from pipeline.models.encoder import Encoder
from pipeline.models.pose import PoseModel
from pipeline.models.shipped import model_uri
from pipeline.models.weights import load_encoder, load_pose_model, read_meta
from pipeline.progress import SILENT, Progress
from pipeline.storage import copy_from_local, join, preflight, write_json
from pipeline.tracking import TrackingSettings, save_model, stored_run
from pipeline.views import VIEW_MARGIN, ViewSettings

MAX_DIFFERENCE = 1e-3
"""Largest difference between a program and the model, as a fraction of the largest value, at which an export passes."""

_NUM_EXAMPLES = 3  # torch.export takes a batch of 1 for a constant
_CODE = Path(__file__).with_name("mlflow_program.py")
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportSettings(Settings):
    """What is exported, and how."""

    model: Uri
    """URI of a pretraining or pose checkpoint, of a run (its best checkpoint), or of a weights file."""
    output: Uri
    """URI of the folder for the exported files."""
    name: str | None = None
    """Title of the model card. none makes one from the model."""
    onnx: bool = True
    """Whether to write an ONNX program, checked with onnxruntime (make setup installs what it needs)."""
    opset: int = Field(default=18, ge=18, le=23)
    """Version of ONNX's operators. Older runtimes need a low one."""
    half: bool = False
    """Whether to store a pose model's checkpoint in float16, at half the size. It is loaded as float32 again."""
    mlflow: bool = True
    """Whether to write an MLflow model."""
    log_to_run: bool = False
    """Whether to store the exported folder, as "export", with the MLflow run of the training (see `tracking`)."""
    tracking: TrackingSettings = TrackingSettings()
    """Where MLflow has the run of the training."""


@dataclass(frozen=True)
class Exportable:
    """A loaded model and what it is handed out as."""

    kind: Literal["pose", "encoder"]
    program: PoseProgram | EncoderProgram
    encoder: Encoder
    pose: PoseModel | None
    meta: dict[str, Any]
    view_size: int
    view_margin: float
    """Side of its views in hand boxes."""

    def example(self) -> dict[str, Tensor]:
        """Inputs by name: a batch of noise, and plausible cameras."""
        generator = torch.Generator().manual_seed(0)
        shape = (_NUM_EXAMPLES, 3, self.view_size, self.view_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        camera = default_camera(_NUM_EXAMPLES, self.view_size).contiguous()
        return dict(zip(self.program.input_names, (images, camera), strict=False))

    def answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        with torch.inference_mode():
            return _named(self.program, self.program(*inputs.values()))


def load_exportable(uri: str) -> Exportable:
    """The pose model or else the encoder behind a URI. Raises DataError where there is neither."""
    meta = read_meta(uri)
    if meta.get("kind") == "pose":
        loaded = load_pose_model(uri)
        program = PoseProgram(loaded.model, loaded.view_size)
        encoder = loaded.model.encoder
        return Exportable("pose", program, encoder, loaded.model, meta, loaded.view_size, loaded.view_margin)
    encoder, _ = load_encoder(uri)
    view_size = int(meta.get("settings", {}).get("views", {}).get("size", ViewSettings().size))
    return Exportable("encoder", EncoderProgram(encoder), encoder, None, meta, view_size, VIEW_MARGIN)


def export(settings: ExportSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Export a model.

    Returns plain JSON, also in <output>/export.json: {"model", "output", "kind", "view_size", "view_margin", "opset",
    "files": {name: bytes}, "max_abs_difference": {file: {output: value}}}. Raises DataError where the URI holds no model
    or a library is missing; EquihandError where a program does not compute what the model does.
    """
    if settings.onnx:
        require_onnx()
    preflight(model_uri(settings.model))
    preflight(settings.output, write=True)
    model = load_exportable(settings.model)
    run = run_result(settings.model)
    if settings.log_to_run and "mlflow_run_id" not in run:
        raise DataError(f"{settings.model}: log_to_run needs the folder of a finished run (result.json)")
    progress.start("export", 2 + settings.onnx + settings.mlflow, "parts")
    differences = {}
    with tempfile.TemporaryDirectory(prefix="equihand-export-") as folder:
        local = Path(folder)
        write_weights(model, local, settings.half)
        progress.advance()
        inputs = model.example()
        program_file = local / f"{model.kind}.pt2"
        exported = write_program(model, program_file)
        differences[program_file.name] = compare(model, run_program(model, program_file, inputs), program_file.name)
        progress.advance()
        if settings.onnx:
            onnx_file = local / f"{model.kind}.onnx"
            write_onnx(model, exported, onnx_file, settings.opset)
            differences[onnx_file.name] = compare(model, run_onnx(onnx_file, inputs), onnx_file.name)
            progress.advance()
        if settings.mlflow:
            write_mlflow(model, program_file, local / "mlflow")
            progress.advance()
        (local / "MODEL_CARD.md").write_text(_card(settings, model, run, differences), encoding="utf-8")
        files = {str(p.relative_to(local)): p.stat().st_size for p in sorted(local.rglob("*")) if p.is_file()}
        copy_from_local(local, settings.output)
        if settings.log_to_run:
            stored_run(settings.tracking, run).log_folder(local, "export")
    result = {
        "model": settings.model,
        "output": settings.output,
        "kind": model.kind,
        "view_size": model.view_size,
        "view_margin": round(model.view_margin, 4),
        "opset": settings.opset if settings.onnx else None,
        "files": files,
        "max_abs_difference": differences,
    }
    write_json(join(settings.output, "export.json"), result)
    progress.finish(files=len(files), megabytes=round(sum(files.values()) / 1e6, 1))
    return result


def write_weights(model: Exportable, folder: Path, half: bool = False) -> None:
    """The encoder under torchvision's names, and a pose model's checkpoint. half: the latter in float16."""
    state = {name: value.detach().contiguous().cpu() for name, value in model.encoder.state_dict().items()}
    torch.save({"state_dict": state}, folder / "encoder.pth")
    safetensors.torch.save_file(state, folder / "encoder.safetensors", metadata={"format": "pt"})
    if model.pose is not None:
        save_checkpoint(folder, model.pose, None, {key: v for key, v in model.meta.items() if key != "format_version"})
        if half:
            file = folder / "model.safetensors"
            weights = safetensors.torch.load_file(file)
            safetensors.torch.save_file({name: _halved(tensor) for name, tensor in weights.items()}, file)
            seal(folder)


def _halved(tensor: Tensor) -> Tensor:
    """Large tensors in float16: what biases, statistics and single numbers would save is nothing."""
    return tensor.half() if tensor.is_floating_point() and tensor.numel() >= 4096 else tensor


def write_program(model: Exportable, file: Path) -> torch.export.ExportedProgram:
    """Write the torch.export program, for batches of any size."""
    batch = torch.export.Dim("batch", min=1)
    inputs = model.example()
    shapes = {name: {0: batch} for name in inputs}
    program = torch.export.export(model.program, tuple(inputs.values()), dynamic_shapes=shapes)
    torch.export.save(program, file)
    return program


def run_program(model: Exportable, file: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of a torch.export program by name."""
    with torch.inference_mode():
        return _named(model.program, torch.export.load(file).module()(*inputs.values()))


def require_onnx() -> None:
    """Raises DataError where a package for ONNX is missing."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"exporting ONNX needs {', '.join(missing)}: pip install -e '.[export]'; or leave it out with --onnx false"
        )


def write_onnx(model: Exportable, program: torch.export.ExportedProgram, file: Path, opset: int) -> None:
    """Write ONNX, for batches of any size."""
    noisy = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                f=file,
                input_names=list(model.program.input_names),
                output_names=list(model.program.output_names),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def run_onnx(file: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of an ONNX file by name, on onnxruntime's CPU provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, values, strict=True)}


def write_mlflow(model: Exportable, program_file: Path, folder: Path) -> None:
    """Write the MLflow model around a torch.export program."""
    inputs = model.example()
    save_model(
        folder,
        _CODE,
        program_file,
        {name: value.numpy() for name, value in inputs.items()},
        {name: value.numpy() for name, value in model.answer(inputs).items()},
        [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
    )


def compare(model: Exportable, outputs: dict[str, Tensor], name: str) -> dict[str, float]:
    """Largest absolute difference of each output from the model's own, on the example batch.

    Raises EquihandError where one is above MAX_DIFFERENCE of the output's largest value.
    """
    expected = model.answer(model.example())
    differences = {key: float((outputs[key] - value).abs().max()) for key, value in expected.items()}
    for key, value in differences.items():
        if not value <= MAX_DIFFERENCE * float(expected[key].abs().max()):
            raise EquihandError(f"{name}: '{key}' differs from the model's by up to {value:.3g}; nothing was exported")
    return differences


def _card(
    settings: ExportSettings, model: Exportable, run: dict[str, Any], differences: dict[str, dict[str, float]]
) -> str:
    checks = [
        f"`{name}` against the model, largest absolute difference: "
        + ", ".join(f"{output} {value:.2g}" for output, value in values.items())
        for name, values in differences.items()
    ]
    bone = None if model.pose is None else (model.pose.convention.bone, float(model.pose.mean_bone_length))
    return write_card(
        name=settings.name or f"Equihand {model.kind} model ({model.encoder.settings.name})",
        stages=trace(settings.model),
        encoder=model.encoder.settings,
        usage=usage_text(model.view_size, model.view_margin, model.encoder, bone, settings.onnx, settings.mlflow),
        files=_descriptions(settings, model),
        checks=checks,
        run=run,
        version=__version__,
    )


def _descriptions(settings: ExportSettings, model: Exportable) -> dict[str, str]:
    files = {"encoder.pth": 'the encoder, {"state_dict": ...} under torchvision\'s names, without `fc`'}
    files["encoder.safetensors"] = "the same"
    if model.pose is not None:
        files["model.safetensors, meta.json, checksums.json"] = "the pose model as a checkpoint of Equihand"
    files[f"{model.kind}.pt2"] = f"torch.export program (torch {torch.__version__.split('+')[0]})"
    if settings.onnx:
        files[f"{model.kind}.onnx"] = f"ONNX, opset {settings.opset}"
    if settings.mlflow:
        files["mlflow/"] = "MLflow model (python_function)"
    return files


def _named(program: PoseProgram | EncoderProgram, outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(program.output_names, outputs, strict=True))
