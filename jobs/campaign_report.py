"""Draw the report of a search anew from what lies in its folder, also while it runs.

    python -m jobs.campaign_report runs/search-1        # the search's folder, on any storage

It writes report.html into that folder and names it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.runtime import Job, run_job
from jobs.terminal import TerminalProgress
from pipeline.campaign.report import write_campaign_report
from pipeline.config import Settings, Uri
from pipeline.progress import SILENT, Progress


class CampaignReportSettings(Settings):
    """Settings of the job."""

    run: Uri
    """URI of the search's folder. It may also stand first, without `--run`."""


def run(settings: CampaignReportSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; {"report": URI}."""
    uri = write_campaign_report(settings.run)
    if isinstance(progress, TerminalProgress):
        progress.note(f"report: {uri}")
    return {"report": uri}


@dataclass(frozen=True)
class _CampaignReportJob(Job[CampaignReportSettings]):
    def load(self, argv: Sequence[str] | None) -> CampaignReportSettings:
        """The search may stand first, before all settings."""
        given = list(sys.argv[1:] if argv is None else argv)
        if given and not given[0].startswith("-"):
            given = [f"--run={given[0]}", *given[1:]]
        return super().load(given)


JOB = _CampaignReportJob("campaign_report", CampaignReportSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
