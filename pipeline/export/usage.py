"""The part of a model card that tells how to call the model."""

from pipeline.hands import JOINTS
from pipeline.models.encoder import Encoder

_JOINT_LIST = ", ".join(JOINTS)
_BONES = {"middle": "middle MCP to middle PIP", "wrist-index": "wrist to index MCP"}


def usage_text(
    view_size: int,
    view_margin: float,
    encoder: Encoder,
    bone: tuple[str, float] | None,
    onnx: bool,
    mlflow: bool,
) -> str:
    """Inputs, outputs and examples, as Markdown. bone: name and mean length (metres) of a pose model's reference bone;
    None for an encoder."""
    size = view_size
    parts = [
        f"Input `images`: uint8 (B, 3, {size}, {size}), RGB, values 0-255; normalisation is inside. Each is a square crop of "
        f"one right hand whose side is {view_margin:.4g} times the longer side of the tight box around its 21 joints, "
        f"resized to {size} px with antialiasing. Pixel coordinates are continuous: the centre of the first pixel is "
        "(0.5, 0.5)."
    ]
    parts.append(_pose_text(size, view_margin, *bone) if bone else _encoder_text(encoder))
    kind = "pose" if bone else "encoder"
    call = "images, camera" if bone else "images"
    parts.append(
        f"""torch.export, without this project:

```python
import torch
model = torch.export.load("{kind}.pt2").module()
outputs = model({call})          # CPU; torch.export.passes.move_to_device_pass moves the program to a GPU
```"""
    )
    if onnx:
        feed = '{"images": images, "camera": camera}' if bone else '{"images": images}'
        parts.append(
            f"""ONNX:

```python
import onnxruntime
outputs = onnxruntime.InferenceSession("{kind}.onnx").run(None, {feed})      # numpy arrays
```"""
        )
    if mlflow:
        feed = '{"images": images, "camera": camera}' if bone else '{"images": images}'
        parts.append(
            f"""MLflow:

```python
import mlflow
outputs = mlflow.pyfunc.load_model("mlflow").predict({feed})      # numpy arrays by name
```"""
        )
    parts.append(
        f"""torch.hub, from a checkout of Equihand (the folder of this card is the URI):

```python
model = torch.hub.load("path/to/equihand", "equihand_{kind}", "path/or/s3/uri/of/this/folder{"" if bone else "/encoder.pth"}", source="local")
```"""
    )
    if encoder.settings.width == 64 and not encoder.settings.small_stem:
        name = encoder.settings.name
        parts.append(
            f"""The encoder alone, in torchvision:

```python
model = torchvision.models.{name}()
model.load_state_dict(torch.load("encoder.pth", weights_only=True)["state_dict"], strict=False)   # fc stays random
```"""
        )
    else:
        parts.append(
            "The encoder's keys are torchvision's, but its width or stem is not: build it with "
            "`pipeline.models.weights.load_encoder`, torchvision's class has other shapes."
        )
    return "\n\n".join(parts)


def _pose_text(size: int, view_margin: float, bone: str, bone_length: float) -> str:
    return f"""Input `camera`: float32 (B, 3, 3), intrinsics of the CROP in its pixels, K' = T K:

```python
def crop_camera(K, box, size={size}, margin={view_margin:.4g}):       # box: x0, y0, x1, y1 around the hand, source pixels
    side = margin * max(box[2] - box[0], box[3] - box[1])
    left, top, s = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2, size / side
    T = numpy.array([[s, 0, -s * left], [0, s, -s * top], [0, 0, 1]])
    return T @ K, T                                        # inverse of T: crop pixels -> source pixels
```

Left hands: mirror the crop, and give the camera of the mirrored crop: with T = [[-s, 0, size + s * left], [0, s, -s * top],
[0, 0, 1]], it is T @ K with its first column negated. Then negate x of joints_3d; the inverse of T takes joints_2d back.

Camera unknown: take a focal length in pixels of the source (1.2 times its longer side is a common guess) and its centre. Then
joints_2d and the pose are usable, the distance from the camera is not.

Output `joints_2d`: float32 (B, 21, 2), pixels of the crop.

Output `joints_3d`: float32 (B, 21, 3), metres, camera frame (x right, y down, z forward), for a hand whose reference bone
({_BONES[bone]}) is {1000 * bone_length:.4g} mm long, the mean of the training set. Hand's own bone length L known:
`joints_3d * L / {bone_length:.6g}`. joints_2d is its projection with `camera`, whatever the length.

Joints, in FreiHAND order: {_JOINT_LIST}."""


def _encoder_text(encoder: Encoder) -> str:
    return f"Output `features`: float32 (B, {encoder.num_features}), pooled features."
