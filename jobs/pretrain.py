"""Pretrain an encoder on an unlabelled frame set with equivariant contrastive learning.

    python -m jobs.pretrain --config jobs/configs/pretrain.yaml --frame_set s3://bucket/frames --run.storage s3://bucket/runs

On a laptop: python -m jobs.pretrain --config jobs/configs/pretrain_laptop.yaml --frame_set data/frames
"""

from typing import Any

from jobs.runtime import RaySettings, ray_session, run_job
from pipeline.progress import SILENT, Progress
from pipeline.training.pretrain import PretrainSettings, pretrain


class PretrainJob(PretrainSettings):
    """Settings of the job: those of the run, and the cluster."""

    ray: RaySettings = RaySettings()


def run(settings: PretrainJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns the run's result."""
    with ray_session(settings.ray):
        return pretrain(settings, progress)


if __name__ == "__main__":
    run_job(PretrainJob, run, "jobs.pretrain", __doc__)
