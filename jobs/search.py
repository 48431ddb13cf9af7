"""Search for good fine-tuning settings, keep the best model, and say whether its settings are worth it.

    python -m jobs.search --config jobs/configs/search.yaml --finetune.frame_set s3://bucket/labelled \\
        --finetune.init s3://bucket/runs/pretrain-1 --run.storage s3://bucket/runs

After the search, the best settings and the default ones are trained anew with several seeds, and tested on a split that the search never
read (winner.*).
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.campaign.run import CampaignSettings, run_campaign
from pipeline.export.tracked_model import track_model
from pipeline.progress import SILENT, Progress


def run(settings: CampaignSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the search's result, with that of its winner."""
    with session():
        result = run_campaign(settings, progress)
    winner = result.get("winner")
    if winner is not None and isinstance(progress, TerminalProgress):
        for sentence in winner["conclusions"]:
            progress.note(sentence)
        registration = winner["registration"] or {}
        if "version" in registration:
            progress.note(f"{registration['uri']}: {registration['verdict']}")
    return track_model(result, settings.run, settings.tracking, progress)


JOB = Job("search", CampaignSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
