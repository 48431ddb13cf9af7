"""Search for good fine-tuning settings, and keep the best model.

    python -m jobs.search --config jobs/configs/search.yaml --finetune.frame_set s3://bucket/labelled \\
        --finetune.init s3://bucket/runs/pretrain-1 --run.storage s3://bucket/runs
"""

from typing import Any

from jobs.runtime import RaySettings, ray_session, run_job
from pipeline.progress import SILENT, Progress
from pipeline.search.campaign import SearchSettings, run_search


class SearchJob(SearchSettings):
    """Settings of the job: those of the search, and the cluster."""

    ray: RaySettings = RaySettings()


def run(settings: SearchJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns the search's result."""
    with ray_session(settings.ray):
        return run_search(settings, progress)


if __name__ == "__main__":
    run_job(SearchJob, run, "jobs.search", __doc__)
