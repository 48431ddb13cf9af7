"""A campaign: a search, and then its winner."""

from typing import Any

from pipeline.campaign.report import write_campaign_report
from pipeline.campaign.winner import WinnerSettings, check_winner, crown, where_it_can_be_tested
from pipeline.errors import EquihandError, one_line, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.progress import SILENT, Progress
from pipeline.runs import read_result
from pipeline.search.campaign import run_search
from pipeline.search.settings import SearchSettings
from pipeline.storage import absolute, join, preflight, read_json, write_json
from pipeline.tracked import tracked_again


class CampaignSettings(SearchSettings):
    """A search over fine-tuning settings, and what becomes of its best ones."""

    winner: WinnerSettings = WinnerSettings()


def run_campaign(settings: CampaignSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run or go on with a campaign (needs a running Ray): the search's result, and under "winner" that of `crown`, where there is one.

    It is also in <storage>/<run_id>/result.json. Raises TrainingError when no trial gave a model, or a training of the winner failed.
    """
    preflight(settings.finetune.frame_set)
    chosen = where_it_can_be_tested(settings.winner, FrameSet.open(settings.finetune.frame_set))
    check_winner(chosen, settings)
    result = run_search(_without_what_was_added(settings, chosen), progress)
    folder = join(absolute(settings.run.storage), result["run_id"])
    if chosen.num_seeds:
        winner = crown(chosen, settings, folder, result, progress)
        untracked: dict[str, Any] = {name: winner.pop(name) for name in ("untracked", "num_lost") if name in winner}
        uri = join(folder, "result.json")
        stored = read_json(uri)
        if stored.get("winner") != winner:
            write_json(uri, {**stored, "winner": winner})
        result = {**result, "winner": winner, **untracked}
    return result | _report(folder, settings, result)


def _without_what_was_added(settings: CampaignSettings, chosen: WinnerSettings) -> CampaignSettings:
    """The same command again, after a start that added its trials and ended before there was a winner, adds no more."""
    if not settings.add_trials or not chosen.num_seeds or settings.run.run_id is None:
        return settings
    known = read_result(join(absolute(settings.run.storage), settings.run.run_id)) or {}
    if "winner" in known or known.get("add_trials") != settings.add_trials:
        return settings
    return settings.model_copy(update={"add_trials": 0, "num_trials": len(known["trials"])})


def _report(folder: str, settings: CampaignSettings, result: dict[str, Any]) -> dict[str, Any]:
    """Draw the campaign's page, also for MLflow; what MLflow does not have. A page that cannot be drawn costs no result."""
    try:
        write_campaign_report(folder)
    except (EquihandError, OSError, ValueError) as error:
        warn(
            f"{one_line(error)}; there is no report.html of {folder}, `python -m jobs.campaign_report {folder}` tries again"
        )
        return {}
    with tracked_again(settings.tracking, folder, result["run_id"], "search") as again:
        again.run.log_file("report.html")
    return again.untracked()
