"""What pretraining looks at while it runs: a probe of the frozen features, and pictures."""

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings, Uri
from pipeline.errors import DataError
from pipeline.evaluation.frozen import encode, frozen_scores, turning_scores
from pipeline.evaluation.probes import nearest_neighbours
from pipeline.frames.batches import Batch
from pipeline.frames.frame_set import FrameSet
from pipeline.models.pretrain import PretrainModel
from pipeline.models.projection import project
from pipeline.views import ViewSettings, denormalise

_MAX_BAD_FRACTION = 0.1  # of the probe's frames; a run that bears some bad ones is not to end for its probe
_NUM_QUERIES, _NUM_NEIGHBOURS = 6, 6
NUM_VIEW_PAIRS = 24
"""In the picture of views."""


class ProbeSettings(Settings):
    """What the frozen features know, every few epochs, on a labelled frame set: ridge regression to root-relative 3D
    joints, retrieval of similar poses, and whether the projection turns with the image."""

    enabled: bool = False
    """Whether to measure what the features know while training runs. Needs a frame set with joints."""
    frame_set: Uri | None = None
    """Labelled frame set of the probe. none takes the one that pretraining uses (the first, where there are several).
    Result, checkpoints and MLflow's tags name it (`probe_frame_set`)."""
    every_epochs: int = Field(default=5, ge=1)
    """Epochs between probes. The last epoch is always probed, and each probed epoch gets a checkpoint."""
    train_split: str = "train"
    """Split on which the regression is fitted, and from which poses are retrieved."""
    test_split: str = "val"
    """Split on which the probe is measured."""
    num_train: int = Field(default=2000, ge=50)
    """Largest number of frames to fit on."""
    num_test: int = Field(default=1000, ge=10)
    """Largest number of frames to measure on."""

    def due(self, epochs_done: int, last: bool) -> bool:
        """Whether this epoch is probed."""
        return self.enabled and (last or epochs_done % self.every_epochs == 0)


class OnlineProbe:
    """Holds the probe's frames in memory and measures an encoder on them."""

    @staticmethod
    def check(settings: ProbeSettings, frame_set: str) -> None:
        """Raise DataError before any long work where the probe's frames are missing."""
        if settings.enabled:
            frames = FrameSet.open(settings.frame_set or frame_set)
            for split in (settings.train_split, settings.test_split):
                if frames.manifest.rows_in(split) == 0:
                    raise DataError(
                        f"{frames.uri}: the probe needs split '{split}'; the set has {frames.manifest.counts_text()}; "
                        "setting 'probe.frame_set' names another one"
                    )
            _load(frames, settings.test_split, 1)

    def __init__(self, settings: ProbeSettings, frame_set: str, views: ViewSettings, device: torch.device) -> None:
        self.settings, self.views, self.device = settings, views, device
        self._uri = settings.frame_set or frame_set
        self._frames: tuple[Batch, Batch] | None = None

    def run(self, model: PretrainModel, with_pictures: bool) -> tuple[dict[str, float], dict[str, bytes]]:
        """Metrics named probe_*, errors in mm, and pictures by file name.

        model: its mode is left as it was.
        """
        if self._frames is None:
            frames = FrameSet.open(self._uri)
            self._frames = (
                _load(frames, self.settings.train_split, self.settings.num_train),
                _load(frames, self.settings.test_split, self.settings.num_test),
            )
        train, test = self._frames
        was_training = model.training
        model.eval()
        encoder, projection = model.encoder, model.projection
        features = [encode(encoder, batch.frames, self.views, self.device) for batch in (train, test)]
        joints = [batch.columns["joints_3d"] for batch in (train, test)]
        scores = frozen_scores((features[0], features[1]), (joints[0], joints[1]))
        if projection is not None:
            scores |= turning_scores(
                lambda images: project(encoder, projection, encoder.maps(images)),
                test.frames,
                self.views,
                self.device,
            )
        scores["bad_frames"] = sum(len(batch.problems) for batch in (train, test))
        model.train(was_training)
        pictures = {"neighbours.png": _neighbours_picture(features[1], test.frames)} if with_pictures else {}
        return {f"probe_{name}": float(value) for name, value in scores.items()}, pictures


def _load(frames: FrameSet, split: str, limit: int) -> Batch:
    return frames.load(split, limit=limit, columns=("joints_3d",), max_bad_fraction=_MAX_BAD_FRACTION)


def view_pairs_picture(first: Tensor, second: Tensor) -> bytes:
    """PNG of pairs of views as the network saw them. first, second: (N, 3, S, S), normalised."""
    from pipeline.drawing.figures import view_pairs

    return view_pairs(denormalise(first.cpu()), denormalise(second.cpu()))


def _neighbours_picture(features: Tensor, frames: Tensor) -> bytes:
    """PNG: frames and their nearest neighbours among the other frames, by cosine similarity of features."""
    from pipeline.drawing.figures import neighbours

    queries = torch.linspace(0, len(frames) - 1, _NUM_QUERIES).round().long().unique()
    found = nearest_neighbours(features, features[queries], _NUM_NEIGHBOURS + 1)
    results = torch.stack(
        [
            frames[[i for i in row.tolist() if i != q][:_NUM_NEIGHBOURS]]
            for q, row in zip(queries.tolist(), found, strict=True)
        ]
    )
    return neighbours(frames[queries], results)
