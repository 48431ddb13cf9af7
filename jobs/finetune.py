"""Fine-tune an encoder into a 3D hand pose model on a labelled frame set.

    python -m jobs.finetune --config jobs/configs/finetune.yaml --frame_set s3://bucket/labelled \\
        --init s3://bucket/runs/pretrain-1 --run.storage s3://bucket/runs

On a laptop: python -m jobs.finetune --config jobs/configs/finetune_laptop.yaml --frame_set data/labelled
"""

from typing import Any

from jobs.runtime import RaySettings, ray_session, run_job
from pipeline.progress import SILENT, Progress
from pipeline.training.finetune_run import FinetuneRunSettings, run_finetune


class FinetuneJob(FinetuneRunSettings):
    """Settings of the job: those of the run, and the cluster."""

    ray: RaySettings = RaySettings()


def run(settings: FinetuneJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns the run's result."""
    with ray_session(settings.ray):
        return run_finetune(settings, progress)


if __name__ == "__main__":
    run_job(FinetuneJob, run, "jobs.finetune", __doc__)
