"""Run a pose model over crops: plain centred views in, joints in metres out."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.geometry import project, transform_camera
from pipeline.models.pose import PoseModel
from pipeline.views import ViewSettings, apply_views, identity_views, view_matrix


class Predictions(NamedTuple):
    """Joints of N crops, FreiHAND order, on the CPU."""

    joints_3d: Tensor
    """(N, 21, 3) metres, camera frame."""
    joints_2d: Tensor
    """(N, 21, 2) pixels of the crop."""


def bone_lengths(model: PoseModel, joints_3d: Tensor, has_3d: Tensor) -> Tensor:
    """(N,) metres, what `predict` is given: each hand's own of joints (N, 21, 3), the training set's mean where has_3d (N,) says
    that its size is not known."""
    return torch.where(has_3d, model.bone_length(joints_3d), model.mean_bone_length.to(joints_3d))


@torch.inference_mode()
def predict(
    model: PoseModel,
    frames: Tensor,
    camera: Tensor,
    view_size: int,
    bone_length: Tensor | None = None,
    batch_size: int = 256,
) -> Predictions:
    """Predict the joints of stored crops, on the model's device; the model's training mode is kept.

    frames: (N, 3, S, S) uint8. camera: (N, 3, 3) of the crops. view_size: side of the views the model was trained on.
    bone_length: (N,) metres of each hand's reference bone; None takes the training set's mean (scale and distance are
    then uncertain).
    """
    device = model.mean_bone_length.device
    settings = ViewSettings(size=view_size)
    was_training = model.training
    model.eval()
    parts = []
    for rows in torch.arange(len(frames)).split(batch_size):
        views = identity_views(len(rows), device)
        images = apply_views(frames[rows].to(device), views, settings)
        matrix = view_matrix(views, frames.shape[-1], view_size)
        crop_camera = camera[rows].to(device)
        output = model(images, transform_camera(matrix, crop_camera))
        joints = model.metric_joints(output, None if bone_length is None else bone_length[rows].to(device))
        parts.append((joints.cpu(), project(joints, crop_camera).cpu()))
    model.train(was_training)
    return Predictions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
