"""Poses of hands in crops, in one or two passes: the second looks at the box of what the first one found."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.geometry import invert_affine, project, transform_camera, transform_points
from pipeline.models.pose import PoseModel
from pipeline.views import Views, ViewSettings, apply_views, identity_views, view_matrix

BOX_CHANGE = (0.5, 1.6)
"""Smallest and largest size of the second pass's box in sizes of the first's. Its centre stays within the first box. So a
wild first guess cannot lead the second one away from the hand."""


class Poses(NamedTuple):
    """Hands in N crops, FreiHAND order."""

    joints_2d: Tensor
    """(N, 21, 2) pixels of the crop."""
    joints_3d: Tensor
    """(N, 21, 3) camera frame, in lengths of the model's reference bone."""
    view: Tensor
    """(N, 2, 3) from pixels of the crop to those of the view that the model saw last."""


@torch.inference_mode()
def predict_poses(
    model: PoseModel,
    frames: Tensor,
    camera: Tensor,
    boxes: Tensor,
    view_size: int,
    view_margin: float,
    passes: int = 2,
) -> Poses:
    """Poses of right hands (mirror left ones before), on the model's device; the model must be in evaluation mode.

    frames: (N, 3, S, S) uint8 crops. camera: (N, 3, 3) of the crops. boxes: (N, 4) x0, y0, x1, y1 of the hands, pixels of
    the crop. view_size, view_margin: side of the model's views in pixels, and in boxes.
    passes: 2 cuts a second view around the joints that the first one gave (PeCLR's published prediction script).
    """
    device = model.mean_bone_length.device
    frames, camera, first = frames.to(device), camera.to(device).float(), boxes.to(device).float()
    settings = ViewSettings(size=view_size)
    boxes = first
    for number in range(passes):
        views = box_views(boxes, frames.shape[-1], view_margin)
        matrix = view_matrix(views, frames.shape[-1], view_size)
        output = model(apply_views(frames, views, settings), transform_camera(matrix, camera))
        joints_3d = model.from_rooted(output.joints_3d)
        joints_2d = project(joints_3d, camera)
        if number + 1 < passes:
            # 2D straight from the network: the bone equation cannot disturb it.
            uv = model.from_rooted(output.joints_25d)[..., :2]
            boxes = next_boxes(transform_points(invert_affine(matrix), uv), first)
    return Poses(joints_2d, joints_3d, matrix)


def box_views(boxes: Tensor, crop_size: int, margin: float) -> Views:
    """Plain views centred on boxes (N, 4), pixels of crops of `crop_size`; a view's side is `margin` times the box's longer
    side."""
    low, high = boxes[:, :2], boxes[:, 2:]
    scale = crop_size / (margin * (high - low).amax(1))
    centre = (low + high) / (2 * crop_size) - 0.5
    views = identity_views(len(boxes), boxes.device)
    return views._replace(scale=scale, translation=-scale[:, None] * centre)


def next_boxes(joints_2d: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (N, 4) around joints (N, 21, 2), kept near the boxes (N, 4) of the pass before (see BOX_CHANGE).

    Square ones, as only their longer side counts. Joints that are not finite leave their box as it was.
    """
    low, high = joints_2d.amin(1), joints_2d.amax(1)
    before = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    side = torch.maximum(torch.minimum((high - low).amax(1), BOX_CHANGE[1] * before), BOX_CHANGE[0] * before)
    centre = torch.maximum(torch.minimum((low + high) / 2, boxes[:, 2:]), boxes[:, :2])
    found = torch.cat([centre - side[:, None] / 2, centre + side[:, None] / 2], 1)
    return torch.where(found.isfinite().all(1, keepdim=True), found, boxes)
