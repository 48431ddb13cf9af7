"""Models out: what is written loads elsewhere and computes the same."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from jobs.export import run
from pipeline.errors import DataError, EquihandError
from pipeline.evaluation.yardsticks import Constant
from pipeline.export import export as export_module
from pipeline.export.card import license_notes, write_card
from pipeline.export.export import Exportable, ExportSettings, compare, export, load_exportable
from pipeline.export.lineage import SourceRecord, StageRecord, trace
from pipeline.geometry import default_camera
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.projection import ProjectionHead
from pipeline.models.weights import load_encoder, load_pose_model
from pipeline.storage import read_json, write_json
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings
from pipeline.views import ViewSettings, apply_views, identity_views
from tests.conftest import ROOT
from tests.tiny_sets import write_tiny_set

SIZE = 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, str]:
    """A pretraining run, and a fine-tuning run that started from it."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    frames = str(folder / "frames")
    digest = write_tiny_set(frames, splits={"train": 8, "val": 4}).digest
    encoder = build_encoder(EncoderSettings(width=8))
    pretrained = torch.nn.ModuleDict({"encoder": encoder, "projection": ProjectionHead(encoder.num_features)})
    settings = {"frame_set": frames, "views": {"size": SIZE}, "encoder": encoder.settings.model_dump(), "epochs": 2}
    meta = {"kind": "pretrain", "step": 6, "epoch": 2, "settings": settings, "frame_set_digest": digest}
    save_checkpoint(folder / "pretrain", pretrained, {}, meta)
    model = PoseModel(encoder, PoseSettings())
    torch.nn.init.normal_(model.head.get_parameter("together.3.bias"), 0, 0.1)
    model.mean_bone_length.fill_(0.034)
    settings = {**settings, "init": str(folder / "pretrain"), "head": model.settings.model_dump()}
    metrics = {"val_pa_epe_mm": 12.345, "val_mpjpe_mm": 30.0, "val_pa_skill": 0.177, "val_mpjpe_skill": 0.7}
    metrics |= {"val_constant_pa_epe_mm": 15.0, "val_constant_mpjpe_mm": 100.0}
    constant = Constant.of(torch.randn(8, 21, 3)).to_json()
    meta = {**meta, "kind": "pose", "settings": settings, "metrics": metrics, "constant": constant}
    save_checkpoint(folder / "run" / "best", model, {}, meta)
    result = {"run_id": "fine-1", "best_checkpoint": str(folder / "run" / "best"), "wall_s": 3.0}
    write_json(str(folder / "run" / "result.json"), result)
    return {"pretrain": str(folder / "pretrain"), "pose": str(folder / "run"), "frames": frames, "digest": digest}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("exported")
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    result = run(ExportSettings(model=trained["pose"], output=str(output), onnx=onnx))
    assert result == json.loads((output / "export.json").read_text())
    return output


@pytest.fixture
def crops() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    return images, default_camera(4, SIZE).contiguous()


@pytest.fixture
def expected(trained, crops) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library itself says about the crops."""
    return joints_of(trained["pose"], crops)


def joints_of(uri, crops) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says about the crops."""
    loaded = load_pose_model(uri)
    images, camera = crops
    with torch.inference_mode():
        views = apply_views(images, identity_views(4, scale=1.0), ViewSettings(size=SIZE))
        joints = loaded.model.metric_joints(loaded.model(views, camera))
    pixels = joints @ camera.mT
    return pixels[..., :2] / pixels[..., 2:], joints


def assert_same(outputs, expected, atol=2e-3):
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(output), value, atol=atol, rtol=1e-4)


def test_program_holds_the_preprocessing(exported, crops, expected):
    program = torch.export.load(exported / "pose.pt2").module()
    with torch.inference_mode():
        assert_same(program(*crops), expected)
        assert_same(program(crops[0][:1], crops[1][:1]), [value[:1] for value in expected])


def test_a_kinematic_head_is_exported_too(tmp_path, crops):
    head = PoseSettings(kind="kinematic")
    model = PoseModel(build_encoder(EncoderSettings(width=8)), head)
    torch.nn.init.normal_(model.head.get_parameter("together.3.bias"), 0, 0.5)
    encoder = model.encoder.settings.model_dump()
    meta = {"kind": "pose", "settings": {"head": head.model_dump(), "views": {"size": SIZE}, "encoder": encoder}}
    save_checkpoint(tmp_path / "model", model, {}, {**meta, "step": 1, "epoch": 1, "frame_set_digest": ""})
    uri = str(tmp_path / "model")
    run(ExportSettings(model=uri, output=str(tmp_path / "out"), onnx=False, mlflow=False))
    program = torch.export.load(tmp_path / "out" / "pose.pt2").module()
    with torch.inference_mode():
        assert_same(program(*crops), joints_of(uri, crops))


def test_onnx_computes_the_same_for_any_batch(exported, crops, expected):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    if not (exported / "pose.onnx").exists():
        pytest.skip("onnxscript is not installed")
    assert onnx.load(str(exported / "pose.onnx")).opset_import[0].version == 18
    session = onnxruntime.InferenceSession(str(exported / "pose.onnx"))
    images, camera = (value.numpy() for value in crops)
    assert_same(session.run(["joints_2d", "joints_3d"], {"images": images, "camera": camera}), expected)
    one = session.run(None, {"images": images[:1], "camera": camera[:1]})
    assert_same(one, [value[:1] for value in expected])
    differences = json.loads((exported / "export.json").read_text())["max_abs_difference"]
    assert 0 <= differences["pose.onnx"]["joints_2d"] < 0.01


def test_mlflow_model_predicts_in_a_fresh_process(exported, crops, expected, tmp_path):
    """The process sees neither this project nor its folder."""
    np.savez(tmp_path / "in.npz", images=crops[0].numpy(), camera=crops[1].numpy())
    code = (
        "import sys, numpy as np, mlflow\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "assert model.metadata.signature.inputs.input_names() == ['images', 'camera']\n"
        "out = model.predict(dict(np.load('in.npz')))\n"
        "assert 'pipeline' not in sys.modules\n"
        "np.savez('out.npz', **out)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported / "mlflow")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = np.load(tmp_path / "out.npz")
    assert_same([outputs["joints_2d"], outputs["joints_3d"]], expected)
    assert list((exported / "mlflow").glob("*input_example*"))


def test_weights_load_again(exported, trained):
    encoder, _ = load_encoder(trained["pose"])
    for file in ("encoder.pth", "encoder.safetensors"):
        again, _ = load_encoder(str(exported / file))
        assert torch.equal(again.state_dict()["layer4.1.conv2.weight"], encoder.state_dict()["layer4.1.conv2.weight"])
    model = load_pose_model(str(exported))
    assert model.view_size == SIZE
    assert model.meta["metrics"]["val_pa_epe_mm"] == 12.345


def test_torchvision_takes_the_encoder(tmp_path):
    """Standard width, at the level of the weights only: a whole export of it takes long."""
    encoder = build_encoder(EncoderSettings(name="resnet18"))
    torch.save(encoder.state_dict(), tmp_path / "in.pth")
    export_module.write_weights(load_exportable(str(tmp_path / "in.pth")), tmp_path)
    resnet = torchvision.models.resnet18()
    state = torch.load(tmp_path / "encoder.pth", weights_only=True)["state_dict"]
    missing = resnet.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    assert torch.equal(resnet.conv1.weight, encoder.conv1.weight)


def test_torch_hub(exported, crops, expected):
    model = torch.hub.load(str(ROOT), "equihand_pose", str(exported), source="local")
    assert model.view_size == SIZE
    with torch.inference_mode():
        assert_same(model(*crops), expected)
        encoder = torch.hub.load(str(ROOT), "equihand_encoder", str(exported / "encoder.pth"), source="local")
        assert encoder(crops[0]).shape == (4, 64)


def test_card_tells_the_whole_story(exported, trained):
    card = (exported / "MODEL_CARD.md").read_text()
    assert trained["digest"] in card
    assert "12.345" in card
    assert "| `val_constant_pa_epe_mm` (PA-EPE of one fixed hand, mm, validation) | 15 |" in card
    assert "the best that the 8 training labels give, has 15.0 mm PA-EPE and 100.0 mm root-relative EPE" in card
    assert "This model, with 12.3 mm and 30.0 mm, is by PA-EPE better than that, by 18% of the error." in card
    assert "Fine-tuning (3D hand pose)" in card
    assert "Pretraining (contrastive, without labels)" in card  # the encoder that `init` names
    assert "8 train, 4 val frames" in card
    assert "fine-1" in card
    assert "34 mm" in card
    assert "no licence is recorded" in card
    assert "FreiHAND:" not in card
    assert "MANO" not in card


def test_card_calls_a_model_that_is_no_better_than_a_fixed_hand_so(trained):
    (first, *_) = trace(trained["pose"])

    def card(**changes) -> str:
        stage = replace(first, meta={**first.meta, **changes})
        return write_card("x", [stage], EncoderSettings(width=8), "", {}, [], {}, "0")

    metrics = {**first.meta["metrics"], "val_pa_epe_mm": 23.7, "val_pa_skill": -0.58}
    assert "is by PA-EPE **no better than that**." in card(metrics=metrics)
    older = {"val_pa_epe_mm": 12.345}
    assert "one fixed hand would reach is not recorded with this model" in card(metrics=older, constant=None)


def test_licences_follow_the_data(trained):
    (first, *_) = trace(trained["pose"])
    mine, free, rendered = (
        SourceRecord("freihand", "s3://data/FreiHAND", {"train": 1}, None),
        SourceRecord("home", "videos", {"train": 1}, None),
        SourceRecord("synthetic", "clips", {"train": 1}, "CC0-1.0"),
    )
    notes = "\n".join(license_notes([replace(first, sources=[mine])]))
    assert "FreiHAND: for research only" in notes
    assert "MANO" in notes
    assert "home: no licence" not in notes
    notes = "\n".join(license_notes([replace(first, sources=[free, rendered])]))
    assert "source 'home': no licence is recorded" in notes
    assert "source 'synthetic': CC0-1.0" in notes
    assert "Anny (Apache-2.0" in notes
    assert "MANO" not in notes
    released = StageRecord("rn50.pth", "peclr-released", {"kind": "pose"})
    assert "no commercial use" in license_notes([released])[0]
    lost = trace(trained["pose"] + "/absent")
    assert lost[0].kind == "unknown"
    assert "not reachable" in str(lost[0].problem)


def test_pretraining_gives_an_encoder(trained, tmp_path):
    result = export(ExportSettings(model=trained["pretrain"], output=str(tmp_path), onnx=False, mlflow=False))
    assert result["kind"] == "encoder"
    assert "model.safetensors" not in result["files"]
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    assert torch.export.load(tmp_path / "encoder.pt2").module()(images).shape == (2, 64)
    assert "No confidence" not in (tmp_path / "MODEL_CARD.md").read_text()


def test_export_is_stored_with_the_run(trained, tmp_path):
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    run_folder = tmp_path / "run"
    with tracked(tracking, str(run_folder), "fine-1", "finetune", tracking) as run:
        run.opened()
    best = read_json(f"{trained['pose']}/result.json")["best_checkpoint"]
    write_json(str(run_folder / "result.json"), {"best_checkpoint": best, "mlflow_run_id": run.mlflow_run_id})
    settings = ExportSettings(
        model=str(run_folder), output=str(tmp_path / "out"), onnx=False, log_to_run=True, tracking=tracking
    )
    export(settings)
    import mlflow

    mlflow.set_tracking_uri(str(tracking.uri))
    model = mlflow.pyfunc.load_model(f"runs:/{run.mlflow_run_id}/export/mlflow")
    images = np.zeros((1, 3, SIZE, SIZE), dtype=np.uint8)
    outputs = model.predict({"images": images, "camera": default_camera(1, SIZE).numpy()})
    assert outputs["joints_2d"].shape == (1, 21, 2)


def test_what_cannot_be_exported_is_named(trained, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"log_to_run needs the folder of a finished run"):
        export(ExportSettings(model=trained["pretrain"], output=str(tmp_path), onnx=False, log_to_run=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"needs onnx, onnxscript, onnxruntime: pip install -e '\.\[export\]'"
    ) as raised:
        export(ExportSettings(model=trained["pose"], output=str(tmp_path)))
    assert "\n" not in str(raised.value)


def test_a_wrong_program_is_refused(trained):
    model: Exportable = load_exportable(trained["pose"])
    answer = model.answer(model.example())
    assert compare(model, answer, "x") == {"joints_2d": 0.0, "joints_3d": 0.0}
    with pytest.raises(EquihandError, match="'joints_2d' differs"):
        compare(model, {**answer, "joints_2d": answer["joints_2d"] + 10}, "x")
