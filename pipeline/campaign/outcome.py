"""What came of the trainings, as plain JSON."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from pipeline.campaign.judgement import deciding_error, judge
from pipeline.campaign.retraining import DEFAULT, WINNER, Retrained
from pipeline.config import flatten
from pipeline.storage import join, read_json


def outcome_of(arms: Mapping[str, Sequence[Retrained]], best_by: str | None) -> dict[str, Any]:
    """arms: the trainings of WINNER, and of DEFAULT where it has other settings, by seed. best_by: by what the search judged.

    {"arms", "verdict", "beats_default", "beats_constant", "conclusions", "chosen", "best_checkpoint"}; see winner.crown.
    """
    winners = arms[WINNER]
    error = deciding_error(best_by, winners[0].errors.errors)
    errors = {arm: [each.errors.errors[error] for each in found] for arm, found in arms.items()}
    judgement = judge(errors[WINNER], errors.get(DEFAULT, []), error)
    # Not by the test split: then its errors there would no longer be those on frames by which nothing was chosen. Nor the median one:
    # the mean over seeds says what to expect of the settings, and a user wants the best of what is there.
    chosen = min(winners, key=lambda each: (each.score, each.job.recipe.finetune.seed))
    return {
        "arms": {arm: _of_arm(found) for arm, found in arms.items()},
        "verdict": judgement.model_dump(mode="json"),
        "beats_default": judgement.beats_default,
        "beats_constant": judgement.beats_constant,
        "conclusions": judgement.sentences(),
        "chosen": {
            "seed": chosen.job.recipe.finetune.seed,
            "uri": chosen.job.folder,
            "why": "best score on the validation split",
        },
        "best_checkpoint": read_json(join(chosen.job.folder, "result.json"))["best_checkpoint"],
    }


def _of_arm(found: Sequence[Retrained]) -> dict[str, Any]:
    metrics = [each.errors.metrics for each in found]
    names = [name for name in metrics[0] if all(name in each for each in metrics)]
    recipe = found[0].job.recipe
    settings = {name: value for name, value in flatten(recipe.finetune).items() if name != "seed"}
    if recipe.pretrain is not None:
        settings |= {f"pretrain.{name}": value for name, value in flatten(recipe.pretrain).items()}
    return {
        "settings": settings,
        "seeds": [
            {
                "seed": each.job.recipe.finetune.seed,
                "uri": each.job.folder,
                "score": each.score,
                "wall_s": each.wall_s,
                "metrics": each.errors.metrics,
            }
            for each in found
        ],
        "mean": {name: fmean(each[name] for each in metrics) for name in names},
        "deviation": {name: stdev(each[name] for each in metrics) for name in names} if len(metrics) > 1 else {},
    }
