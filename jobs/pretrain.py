"""Pretrain an encoder on an unlabelled frame set with equivariant contrastive learning.

    python -m jobs.pretrain --config jobs/configs/pretrain.yaml --frame_set s3://bucket/frames --run.storage s3://bucket/runs

On a laptop: python -m jobs.pretrain --config jobs/configs/pretrain_laptop.yaml --frame_set data/frames
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from pipeline.export.tracked_model import track_model
from pipeline.progress import SILENT, Progress
from pipeline.training.pretrain_run import PretrainSettings, run_pretrain


def run(settings: PretrainSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the run's result."""
    with session():
        result = run_pretrain(settings, progress)
    return track_model(result, settings.run, settings.tracking, progress)


JOB = Job("pretrain", PretrainSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
