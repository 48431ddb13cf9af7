"""What is handed out: models with their preprocessing inside, so that nobody has to repeat it.

Both take crops as any image library gives them (uint8, RGB) and normalise inside. They hold no autocast, no Python
branches on values and no files, so that torch.export and ONNX can take them.
"""

import torch
from torch import Tensor, nn

from pipeline.geometry import project
from pipeline.models.encoder import Encoder
from pipeline.models.pose import PoseModel
from pipeline.views import IMAGE_MEAN, IMAGE_STD


class _Normalise(nn.Module):
    """uint8 (B, 3, H, W) -> float32, normalised with ImageNet's mean and standard deviation."""

    factor: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        std = torch.tensor(IMAGE_STD).view(3, 1, 1)
        self.register_buffer("factor", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(IMAGE_MEAN).view(3, 1, 1) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.factor + self.shift


class EncoderProgram(nn.Module):
    """images uint8 (B, 3, H, W), RGB hand crops -> features (B, F)."""

    input_names = ("images",)
    output_names = ("features",)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.normalise = _Normalise()
        self.encoder = encoder
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.encoder(self.normalise(images))


class PoseProgram(nn.Module):
    """Square RGB crops of right hands and their cameras -> joints, FreiHAND order.

    images: uint8 (B, 3, S, S), S = `view_size`. camera: (B, 3, 3) intrinsics of the CROP in its pixels, K' = T K.
    Gives joints_2d (B, 21, 2), pixels of the crop, and joints_3d (B, 21, 3), metres in the camera frame, for a hand whose
    reference bone has the training set's mean length (the buffer `pose.mean_bone_length`). Where the hand's own bone
    length is known, multiply joints_3d by it and divide by that mean.
    """

    input_names = ("images", "camera")
    output_names = ("joints_2d", "joints_3d")

    def __init__(self, model: PoseModel, view_size: int) -> None:
        super().__init__()
        self.normalise = _Normalise()
        self.pose = model
        self.view_size = view_size
        self.eval()

    def forward(self, images: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        output = self.pose.lift(self.pose.joints_25d(self.normalise(images)), camera)
        # shape[0], not len(): torch.export takes the latter for a constant.
        bone_length = self.pose.mean_bone_length.expand(images.shape[0])
        joints_3d = self.pose.metric_joints(output, bone_length)
        return project(joints_3d, camera), joints_3d
