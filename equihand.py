"""Equihand in a notebook: what one needs of it without a cluster, loaded on first use; neither Ray nor MLflow is imported.

    import equihand

    frames = equihand.FrameSet.open("s3://bucket/frames")
    batch = frames.load("train", limit=64)                                               # uint8 crops, RGB
    views = equihand.sample_views(equihand.ViewSettings(size=64), len(batch.frames))
    images = equihand.apply_views(batch.frames, views, equihand.ViewSettings(size=64))
    encoder, _ = equihand.load_encoder("s3://bucket/runs/my-pretraining")
    poses = equihand.predict_hands(images=[photograph], boxes=[[10, 20, 210, 220]])      # equihand-small

Whole jobs are run by `equihand NAME ...` or `python -m jobs.NAME ...`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline import __version__ as __version__
    from pipeline.evaluation.frozen import encode as encode
    from pipeline.evaluation.metrics import pose_metrics as pose_metrics
    from pipeline.evaluation.yardsticks import Constant as Constant
    from pipeline.frames.frame_set import FrameSet as FrameSet
    from pipeline.geometry import procrustes_align as procrustes_align
    from pipeline.hands import JOINTS as JOINTS
    from pipeline.models.weights import load_encoder as load_encoder
    from pipeline.models.weights import load_pose_model as load_pose_model
    from pipeline.objectives import nt_xent as nt_xent
    from pipeline.objectives import undo_transform as undo_transform
    from pipeline.prediction.in_process import predict_hands as predict_hands
    from pipeline.views import Views as Views
    from pipeline.views import ViewSettings as ViewSettings
    from pipeline.views import apply_views as apply_views
    from pipeline.views import sample_views as sample_views

_FROM = {
    "__version__": "pipeline",
    "FrameSet": "pipeline.frames.frame_set",
    "ViewSettings": "pipeline.views",
    "Views": "pipeline.views",
    "sample_views": "pipeline.views",
    "apply_views": "pipeline.views",
    "nt_xent": "pipeline.objectives",
    "undo_transform": "pipeline.objectives",
    "load_encoder": "pipeline.models.weights",
    "load_pose_model": "pipeline.models.weights",
    "encode": "pipeline.evaluation.frozen",
    "predict_hands": "pipeline.prediction.in_process",
    "pose_metrics": "pipeline.evaluation.metrics",
    "procrustes_align": "pipeline.geometry",
    "Constant": "pipeline.evaluation.yardsticks",
    "JOINTS": "pipeline.hands",
}
__all__ = [name for name in _FROM if name != "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'equihand' has no attribute '{name}'; there are {', '.join(__all__)}")
    value = getattr(import_module(_FROM[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM})
