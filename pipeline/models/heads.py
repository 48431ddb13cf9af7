"""From an encoder to 21 joints in 2.5D: where each joint is in the view, and how deep it lies.

All heads give (B, 21, 3) raw values: u, v as fractions of the view's side counted from its centre, so one model serves
any view size, and a depth in bone lengths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.hands import NUM_JOINTS
from pipeline.models.encoder import Encoder, Stages

_CHANNELS = 128
_HIDDEN = 256
_REACH = 1.25
"""Side of the heat maps' grid in view sides: joints may lie a little outside the view."""
_DEPTH_UNIT = 4.0
"""Bone lengths that a depth map's value of 1 means: about the reach of a hand's depths, so that the maps stay near 1."""


class LinearHead(nn.Linear):
    """Linear map of the pooled features: the head of PeCLR's published models."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.num_features, 3 * NUM_JOINTS)
        # Start near the view's centre: a usual initialisation would scatter the joints over half the view.
        nn.init.normal_(self.weight, std=1e-3)
        nn.init.zeros_(self.bias)

    def joints(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Raw joints (B, 21, 3) of images (B, 3, S, S)."""
        features = encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            return self(full_precision(features)).view(-1, NUM_JOINTS, 3)


class SpatialMaps(nn.Module):
    """Maps at 1/8 of the image's side, summed from the encoder's last three stages, coarse ones upsampled (Lin et al. 2017)."""

    def __init__(self, num_features: int, num_maps: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(num_features // factor, _CHANNELS, 1) for factor in (4, 2, 1)])
        self.norm = nn.BatchNorm2d(_CHANNELS)
        self.merge = nn.Sequential(
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS), nn.ReLU(inplace=True)
        )
        self.maps = nn.Conv2d(_CHANNELS, num_maps, 1)

    def maps_of(self, stages: Stages) -> Tensor:
        """The encoder's maps -> (B, num_maps, h, w)."""
        merged = self.lateral[2](stages[2])
        for lateral, stage in ((self.lateral[1], stages[1]), (self.lateral[0], stages[0])):
            merged = lateral(stage) + F.interpolate(merged, size=stage.shape[-2:], mode="bilinear", align_corners=False)
        maps: Tensor = self.maps(self.merge(F.relu(self.norm(merged))))
        return maps


class JointMaps(SpatialMaps):
    """A heat map and a depth map for each joint (Iqbal et al. 2018), and `together`: what the pooled features say of all 21, as single
    joints may be hidden. At the start the maps say the view's centre, and the pooled features nothing."""

    def __init__(self, num_features: int, num_together: int) -> None:
        super().__init__(num_features, 2 * NUM_JOINTS)
        self.together = nn.Sequential(
            nn.Linear(num_features, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, num_together),
        )
        nn.init.normal_(self.maps.weight, std=1e-2)
        nn.init.zeros_(self.maps.get_parameter("bias"))
        nn.init.normal_(self.together.get_parameter("3.weight"), std=1e-3)
        nn.init.zeros_(self.together.get_parameter("3.bias"))

    def read(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) -> raw joints of the maps (B, 21, 3), the mean of each depth map under its heat map's softmax being a joint's depth,
        and what `together` says (B, num_together); both in full precision."""
        stages = encoder.maps(images)
        maps, features = self.maps_of(stages), encoder.pool(stages[2])
        with torch.autocast(images.device.type, enabled=False):
            heat, depth = full_precision(maps).unflatten(1, (2, NUM_JOINTS)).flatten(-2).unbind(1)  # (B, 21, cells)
            share = heat.softmax(-1)
            place = share @ cell_centres(maps.shape[-2], maps.shape[-1], share)
            joints = torch.cat([place, _DEPTH_UNIT * (share * depth).sum(-1, keepdim=True)], -1)
            return joints, self.together(full_precision(features))


class SpatialHead(JointMaps):
    """The joints of the maps, each of them corrected by the pooled features."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.num_features, 3 * NUM_JOINTS)

    def joints(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Raw joints (B, 21, 3) of images (B, 3, S, S)."""
        joints, correction = self.read(encoder, images)
        return joints + correction.view(-1, NUM_JOINTS, 3)


def cell_centres(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows * columns, 2) x and y of the heat maps' cells, fractions of the view's side from its centre, row by row."""
    x, y = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n - 0.5 for n in (columns, rows))
    return _REACH * torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1).view(-1, 2)


def full_precision(values: Tensor) -> Tensor:
    """float32, or float64 where it is that."""
    return values if values.dtype == torch.float64 else values.float()
