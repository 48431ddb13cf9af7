"""Weights in: our checkpoints, torchvision's files, PeCLR's released layouts, and what is none of these."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import DataError
from pipeline.geometry import default_camera, rays
from pipeline.hands import NUM_JOINTS, reorder
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings, RootRefinement
from pipeline.models.projection import ProjectionHead
from pipeline.models.weights import load_encoder, load_pose_model
from pipeline.storage import write_json
from tests.training.damage import DAMAGES, damage

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def torchvision_resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None)


@pytest.mark.parametrize("wrapper", [None, "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvision_file(tmp_path, torchvision_resnet, wrapper, prefix):
    state = {prefix + name: value for name, value in torchvision_resnet.state_dict().items()}
    path = tmp_path / "resnet18.pth"
    torch.save({wrapper: state, "epoch": 100} if wrapper else state, path)
    encoder, meta = load_encoder(str(path))
    assert meta == {}
    assert encoder.settings == EncoderSettings(name="resnet18")
    torchvision_resnet.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(encoder.eval()(IMAGES), torchvision_resnet.eval()(IMAGES))


def test_file_without_batch_counters_loads(tmp_path, torchvision_resnet):
    state = {n: v for n, v in torchvision_resnet.state_dict().items() if "num_batches_tracked" not in n}
    torch.save(state, tmp_path / "old.pth")
    encoder, _ = load_encoder(str(tmp_path / "old.pth"))
    assert torch.equal(encoder.conv1.weight, torchvision_resnet.conv1.weight)


@pytest.mark.parametrize(
    "settings",
    [
        EncoderSettings(name="resnet34", width=16),
        EncoderSettings(name="resnet50", width=8, small_stem=True),
        EncoderSettings(name="resnet101", width=8),
        EncoderSettings(name="resnet152", width=8),
    ],
)
def test_architecture_is_read_off_the_tensors(tmp_path, settings):
    encoder = build_encoder(settings)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    loaded, _ = load_encoder(str(tmp_path / "encoder.safetensors"))
    assert loaded.settings == settings
    assert same_tensors(loaded, encoder)


def test_own_pretraining_checkpoint(tmp_path):
    encoder = build_encoder(EncoderSettings(width=8))
    model = nn.ModuleDict({"encoder": encoder, "projection": ProjectionHead(encoder.num_features)})
    save_checkpoint(tmp_path / "checkpoint", model, {}, {"kind": "pretrain", "epoch": 3})
    write_json(str(tmp_path / "result.json"), {"best_checkpoint": str(tmp_path / "checkpoint")})
    for uri in (tmp_path / "checkpoint", tmp_path):
        loaded, meta = load_encoder(str(uri))
        assert same_tensors(loaded, encoder)
        assert meta["epoch"] == 3
    with pytest.raises(DataError, match=r"no pose model.*found a pretrain checkpoint"):
        load_pose_model(str(tmp_path / "checkpoint"))


@pytest.mark.parametrize("head", [PoseSettings(), PoseSettings(root="wrist", refine_root=False)])
def test_own_pose_checkpoint(tmp_path, head):
    model = PoseModel(build_encoder(EncoderSettings(width=8)), head)
    model.mean_bone_length.fill_(0.0345)
    settings = {"head": head.model_dump(), "views": {"size": 48}}
    save_checkpoint(tmp_path, model, {}, {"kind": "pose", "settings": settings})
    loaded = load_pose_model(str(tmp_path))
    assert loaded.view_size == 48
    assert loaded.model.settings == head.settled()
    assert not loaded.model.training
    assert same_tensors(loaded.model, model)
    encoder, _ = load_encoder(str(tmp_path))
    assert same_tensors(encoder, model.encoder)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "meta.json"])
def test_a_run_whose_best_checkpoint_is_damaged(tmp_path, caplog, file, how):
    for number, score in ((1, 2.0), (2, 1.0), (3, 3.0)):
        model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings())
        model.mean_bone_length.fill_(score)
        settings = {"head": PoseSettings().model_dump(), "views": {"size": 48}}
        meta = {"kind": "pose", "settings": settings, "metrics": {"score": score}}
        save_checkpoint(tmp_path / f"checkpoint_{number:06d}", model, {}, meta)
    best = tmp_path / "checkpoint_000002"
    write_json(str(tmp_path / "result.json"), {"best_checkpoint": str(best)})
    damage(str(best / file), how)
    assert load_pose_model(str(tmp_path)).model.mean_bone_length == 2.0
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{best}/{file}: ")
    assert warning.endswith(f"; {tmp_path}/checkpoint_000001 is taken in its place")
    with pytest.raises(DataError, match=f"^{best}/{file}: "):
        load_pose_model(str(best))
    damage(str(tmp_path / "result.json"), "cut off")
    assert load_pose_model(str(tmp_path)).model.mean_bone_length == 2.0


class ReleasedLayout(nn.Module):
    """A model laid out as PeCLR's released fine-tuned one (names and output only), in AIT order."""

    def __init__(self) -> None:
        super().__init__()
        self.backend_model = torchvision.models.resnet50(weights=None)
        self.backend_model.fc = nn.Linear(2048, 64)
        self.zroot_ref = nn.ModuleDict({"zroot_ref": RootRefinement()})
        for name, values in self.zroot_ref.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(values)
            elif name.endswith("running_var"):
                nn.init.uniform_(values, 0.5, 2)

    def predict(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u, v in pixels with relative depth; and the refinement's answer for a root depth of 20."""
        joints_25d = self.backend_model(images)[:, :-1].view(-1, NUM_JOINTS, 3)
        joints_25d[:, 0, 2] = 0
        ray = rays(joints_25d[..., :2], default_camera(len(images), 224))
        root_depth = torch.full((len(images), 1), 20.0)
        inputs = torch.cat([joints_25d[..., 2], ray[..., :2].flatten(1), root_depth], dim=1)
        return joints_25d, self.zroot_ref["zroot_ref"](inputs)[:, 0]


def test_released_fine_tuned_layout(tmp_path):
    torch.manual_seed(0)
    released = ReleasedLayout().eval()
    nn.init.normal_(released.backend_model.fc.bias, 112, 20)
    torch.save({"state_dict": released.state_dict()}, tmp_path / "rn50_peclr.pth")
    model, view_size, meta, constant = load_pose_model(str(tmp_path / "rn50_peclr.pth"))
    assert (view_size, meta["kind"], constant) == (224, "pose", None)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, refinement = released.predict(images)
        output = model(images)
        expected = reorder(expected, "ait", "freihand")
        torch.testing.assert_close(output.joints_25d, expected, rtol=1e-4, atol=1e-3)
        ray = rays(expected[..., :2], default_camera(2, 224))
        inputs = torch.cat([expected[..., 2], ray[..., :2].flatten(1), torch.full((2, 1), 20.0)], dim=1)
        assert model.refinement is not None
        torch.testing.assert_close(model.refinement(inputs)[:, 0], refinement, rtol=1e-4, atol=1e-4)


def test_wrong_files_are_named(tmp_path, torchvision_resnet):
    def refused(name: str, content: object, message: str) -> None:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(DataError, match=message) as raised:
            load_encoder(str(path))
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)

    state = torchvision_resnet.state_dict()
    refused("garbage.pth", b"not a zip file at all", "not a weights file")
    refused("garbage.safetensors", b"\x00" * 50, "not a weights file")
    refused("model.pth", torchvision_resnet, "Python objects beside tensors")
    refused("list.pth", [torch.zeros(2)], "found a list")
    refused("other.pth", {"blocks.0.attn": torch.zeros(2)}, "expected torchvision's names.*'blocks.0.attn'")
    short = {name: value for name, value in state.items() if name != "layer3.0.bn2.weight"}
    refused("short.pth", short, "1 more.*'layer3.0.bn2.weight'")
    other_shape = {**state, "layer2.0.conv2.weight": torch.zeros(128, 64, 3, 3)}
    refused("shape.pth", other_shape, r"\(128, 64, 3, 3\), expected \(128, 128, 3, 3\)")
    refused("deep.pth", {**state, "layer1.2.bn1.weight": torch.zeros(64)}, r"stages of \(3, 2, 2, 2\) blocks")
    refused("wide.pth", {**state, "conv1.weight": torch.zeros(60, 3, 7, 7)}, "60 channels")
    with pytest.raises(DataError, match="neither a weights file"):
        load_encoder(str(tmp_path / "absent"))
    torch.save(state, tmp_path / "encoder.pth")
    with pytest.raises(DataError, match=r"no pose model.*jobs\.finetune"):
        load_pose_model(str(tmp_path / "encoder.pth"))


def test_damaged_released_file_is_named(tmp_path):
    state = {**ReleasedLayout().state_dict(), "backend_model.fc.weight": torch.zeros(10, 2048)}
    torch.save({"state_dict": state}, tmp_path / "rn50.pth")
    with pytest.raises(DataError, match=r"backend_model\.fc \(64, F\)"):
        load_pose_model(str(tmp_path / "rn50.pth"))
