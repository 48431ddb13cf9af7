"""The encoder: a ResNet up to its pooled features, or its last three stages' maps, with torchvision's parameter names.

Any width of the first stage can be built, so that a laptop trains a narrow one and a cluster the published ones, and a
state dict moves between this encoder and torchvision's `resnetXX` (without `fc`) as it is.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Settings

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

EncoderName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]

Stages = tuple[Tensor, Tensor, Tensor]
"""Maps of the last three stages, at 1/8, 1/16 and 1/32 of the image's sides."""

_ARCHITECTURES: dict[str, tuple[Literal["BasicBlock", "Bottleneck"], tuple[int, int, int, int]]] = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
    "resnet152": ("Bottleneck", (3, 8, 36, 3)),
}


class EncoderSettings(Settings):
    """Which ResNet the encoder is."""

    name: EncoderName = "resnet18"
    """Depth of the ResNet. PeCLR's published encoders are resnet50 and resnet152."""
    width: int = Field(default=64, ge=8, le=256, multiple_of=8)
    """Channels of the first stage. 64 is the standard network; 32 gives half the channels everywhere."""
    small_stem: bool = False
    """Whether the network begins with a 3x3 convolution (stride 2) without max-pooling, for images of 64 px or less.
    This is about 4 times the work."""


class Encoder(nn.Module):
    """ResNet (He et al. 2016, in torchvision's form) without its classifier.

    `num_features` is the length F of the feature vector: 8 x width, times 4 for the bottleneck networks.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        # Importing torchvision takes half as long as torch itself, and the processes that only read settings do without.
        from torchvision.models import resnet

        super().__init__()
        block_name, depths = _ARCHITECTURES[settings.name]
        block: type[BasicBlock | Bottleneck] = getattr(resnet, block_name)
        width = settings.width
        if settings.small_stem:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(block, width, width, depths[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.num_features = 8 * width * block.expansion
        self.settings = settings
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised -> (B, F)."""
        return self.pool(self.maps(images)[-1])

    def maps(self, images: Tensor) -> Stages:
        """(B, 3, H, W) ImageNet-normalised -> the last three stages' maps: F/4, F/2 and F channels, at 1/8, 1/16 and 1/32
        of the image's sides, rounded up."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)

    def pool(self, last: Tensor) -> Tensor:
        """The last stage's maps (B, F, h, w) -> features (B, F)."""
        return torch.flatten(self.avgpool(last), 1)


def build_encoder(settings: EncoderSettings) -> Encoder:
    """An encoder with random weights (torch's global generator)."""
    return Encoder(settings)


def _stage(
    block: "type[BasicBlock | Bottleneck]", in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    from torchvision.models.resnet import conv1x1

    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    first = block(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, channels) for _ in range(num_blocks - 1)))
