"""Models for torch.hub.

    model = torch.hub.load("path/to/checkout", "equihand_pose", source="local")                          # equihand-small
    model = torch.hub.load("path/to/checkout", "equihand_pose", "s3://bucket/models/hand-pose", source="local")

URIs are those of jobs: a shipped model's name, a local path, file:// or s3://. Nothing is downloaded from anywhere else.
"""

from torch import nn

dependencies = ["torch", "torchvision", "safetensors", "pyarrow", "pydantic", "yaml"]


def equihand_encoder(uri: str = "equihand-small") -> nn.Module:
    """The encoder behind a URI: a checkpoint, a run, an exported folder's encoder.pth, torchvision's or PeCLR's files.

    Takes uint8 (B, 3, H, W) RGB hand crops, gives features (B, F). `model.encoder` is the ResNet, under torchvision's names.
    """
    from pipeline.export.programs import EncoderProgram
    from pipeline.models.weights import load_encoder

    return EncoderProgram(load_encoder(uri)[0])


def equihand_pose(uri: str = "equihand-small") -> nn.Module:
    """The pose model behind a URI: a checkpoint, a run, an exported folder, or PeCLR's released fine-tuned file.

    model(images, camera) with uint8 (B, 3, S, S) RGB crops of right hands, S = `model.view_size`, and the crops' cameras
    (B, 3, 3), gives joints_2d (B, 21, 2) in pixels of the crop and joints_3d (B, 21, 3) in metres.
    """
    from pipeline.export.programs import PoseProgram
    from pipeline.models.weights import load_pose_model

    loaded = load_pose_model(uri)
    return PoseProgram(loaded.model, loaded.view_size)
