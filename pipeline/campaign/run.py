"""A campaign: a search, and then its winner."""

from typing import Any

from pipeline.campaign.winner import WinnerSettings, check_winner, crown, where_it_can_be_tested
from pipeline.frames.frame_set import FrameSet
from pipeline.progress import SILENT, Progress
from pipeline.search.campaign import run_search
from pipeline.search.settings import SearchSettings
from pipeline.storage import absolute, join, preflight, read_json, write_json


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
    result = run_search(settings, progress)
    if not chosen.num_seeds:
        return result
    folder = join(absolute(settings.run.storage), result["run_id"])
    winner = crown(chosen, settings, folder, result, progress)
    untracked: dict[str, Any] = {name: winner.pop(name) for name in ("untracked", "num_lost") if name in winner}
    uri = join(folder, "result.json")
    stored = read_json(uri)
    if stored.get("winner") != winner:
        write_json(uri, {**stored, "winner": winner})
    return {**result, "winner": winner, **untracked}
