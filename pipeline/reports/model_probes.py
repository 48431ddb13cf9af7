"""Probes of finished models: what their encoders know of the pose, and whether their points turn with the image."""

import numpy as np
import torch
from pydantic import Field

from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.evaluation.frozen import encode, frozen_scores, turning_scores
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelledFrames, PoseBatch, load_labelled
from pipeline.models.pose import PoseModel
from pipeline.models.projection import project
from pipeline.models.weights import LoadedPoseModel, load_encoder, load_projection
from pipeline.views import ViewSettings


class ModelProbeSettings(Settings):
    """Frozen features against poses: ridge regression, retrieval of similar poses, and equivariance."""

    enabled: bool | None = None
    """Whether to probe; none: where the frame set has joints in 3D, also in `train_split`."""
    train_split: str = "train"
    """Split that the regression is fitted on, poses are retrieved from, and random training poses are taken from (also the
    constant pose, where a model brings none)."""
    num_train: int = Field(default=2000, ge=2)
    """Frames to fit on, at most."""
    num_test: int = Field(default=1000, ge=1)
    """Frames to measure on, at most: evenly from those that are evaluated."""


class ModelProbes:
    """Holds the probes' frames in memory."""

    def __init__(
        self, settings: ModelProbeSettings, frame_set: FrameSet, test: LabelledFrames, device: torch.device
    ) -> None:
        """Raises DataError where there are too few frames to fit on."""
        self.device = device
        train = load_labelled(frame_set, settings.train_split, limit=settings.num_train)
        fitted, measured = np.flatnonzero(train.has_3d), np.flatnonzero(test.has_3d)
        if len(fitted) < 2 or not len(measured):
            raise DataError(
                f"{frame_set.uri}: split '{settings.train_split}' has {len(fitted)} frames with joints in 3D and the evaluated one "
                f"{len(measured)}; probes are fitted on 2 or more and measured on 1 or more"
            )
        self.train: PoseBatch = train.batch(fitted)
        rows = np.linspace(0, len(measured) - 1, min(settings.num_test, len(measured))).round().astype(int)
        self.test: PoseBatch = test.batch(measured[rows])

    def of_pose_model(self, loaded: LoadedPoseModel) -> dict[str, float]:
        """Scores of a pose model's encoder; its 2D joints are the points that should turn with the image."""
        model: PoseModel = loaded.model.to(self.device)
        views = ViewSettings(size=loaded.view_size)
        turning = turning_scores(
            lambda images: model(images).joints_25d[..., :2].flatten(1), self.test.frames, views, self.device
        )
        return self._of_encoder(model.encoder, views) | turning

    def of_pretrained(self, uri: str) -> dict[str, float]:
        """Scores of an encoder without a pose head; the points are its projections, where its file holds the head."""
        encoder, meta = load_encoder(uri)
        encoder = encoder.to(self.device).eval()
        size = meta.get("settings", {}).get("views", {}).get("size")
        views = ViewSettings() if size is None else ViewSettings(size=size)
        scores = self._of_encoder(encoder, views)
        projection = load_projection(uri)
        if projection is not None:
            head = projection.to(self.device).eval()
            scores |= turning_scores(
                lambda images: project(encoder, head, encoder.maps(images)), self.test.frames, views, self.device
            )
        return scores

    def _of_encoder(self, encoder: torch.nn.Module, views: ViewSettings) -> dict[str, float]:
        features = [encode(encoder, batch.frames, views, self.device) for batch in (self.train, self.test)]
        return frozen_scores((features[0], features[1]), (self.train.joints_3d, self.test.joints_3d))


def wanted(settings: ModelProbeSettings, num_train: int, test: LabelledFrames) -> bool:
    """Whether to probe models. num_train: frames with joints in 3D in the split to fit on."""
    return num_train > 1 and bool(test.has_3d.any()) if settings.enabled is None else settings.enabled
