"""The encoder is torchvision's ResNet, key by key and number by number, at any width."""

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.projection import ProjectionHead


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision(name):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    reference.fc = nn.Identity()
    encoder = build_encoder(EncoderSettings(name=name)).eval()
    encoder.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(images), reference(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_has_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        reference = torchvision.models.get_model(name, weights=None).state_dict()
        encoder = build_encoder(EncoderSettings(name=name))
    expected = {key: value.shape for key, value in reference.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in encoder.state_dict().items()} == expected
    assert encoder.num_features == reference["fc.weight"].shape[1]


def test_narrow_encoder_has_the_same_names_and_fewer_channels():
    full = build_encoder(EncoderSettings()).state_dict()
    half = build_encoder(EncoderSettings(width=32))
    assert list(half.state_dict()) == list(full)
    assert half.num_features == 256
    assert half.state_dict()["layer4.1.conv2.weight"].shape == (256, 256, 3, 3)


def test_small_stem_keeps_twice_the_resolution():
    encoder = build_encoder(EncoderSettings(width=8, small_stem=True)).eval()
    shapes = []
    encoder.layer1.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    features = encoder(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert shapes == [(2, 8, 16, 16)]  # the standard stem leaves 8 x 8
    assert features.shape == (2, encoder.num_features)


def test_projection_head_has_the_published_size():
    head = ProjectionHead(2048)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_115_648  # published configuration
    assert head(torch.randn(4, 2048)).shape == (4, 128)
    with pytest.raises(ValueError, match="num_outputs = 7"):
        ProjectionHead(8, num_outputs=7)
