"""Search for good fine-tuning settings, and keep the best model.

    python -m jobs.search --config jobs/configs/search.yaml --finetune.frame_set s3://bucket/labelled \\
        --finetune.init s3://bucket/runs/pretrain-1 --run.storage s3://bucket/runs
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from pipeline.export.tracked_model import track_model
from pipeline.progress import SILENT, Progress
from pipeline.search.campaign import run_search
from pipeline.search.settings import SearchSettings


def run(settings: SearchSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the search's result."""
    with session():
        result = run_search(settings, progress)
    return track_model(result, settings.run, settings.tracking, progress)


JOB = Job("search", SearchSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
