"""Fine-tune an encoder into a 3D hand pose model on a labelled frame set.

    python -m jobs.finetune --config jobs/configs/finetune.yaml --frame_set s3://bucket/labelled \\
        --init s3://bucket/runs/pretrain-1 --run.storage s3://bucket/runs

On a laptop: python -m jobs.finetune --config jobs/configs/finetune_laptop.yaml --frame_set data/labelled
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from pipeline.export.tracked_model import track_model
from pipeline.progress import SILENT, Progress
from pipeline.training.finetune_run import FinetuneRunSettings, run_finetune


def run(settings: FinetuneRunSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the run's result."""
    with session():
        result = run_finetune(settings, progress)
    return track_model(result, settings.run, settings.tracking, progress)


JOB = Job("finetune", FinetuneRunSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
