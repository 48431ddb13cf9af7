"""Which settings a search's scores depend on: PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), beside what chance gives.

A setting is important where the best trials have other values of it than all trials. Conditional settings are judged among the trials
that have them (arXiv:2601.20800).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from pipeline.search.space import Dimension, Space, as_parameters

LEAST_TRIALS = 20
"""With a score. Of fewer nothing can be told."""
_BEST_SHARE = 0.25  # of the trials; a tenth, as in the paper, are too few where trials are counted in tens
_LEAST_BEST = 5  # trials, as Optuna advises
SHUFFLES = 99
"""Chance exceeds the largest of so many once in 100 times."""


@dataclass(frozen=True)
class Importance:
    """How much one setting tells the best trials from all."""

    name: str
    share: float
    """Of the importance of all settings, 0 to 1."""
    chance: float
    """What its share is at most where the scores are dealt to the trials at random."""

    @property
    def is_clear(self) -> bool:
        """Whether it is more than chance gives."""
        return self.share > self.chance


def importances(space: Space, values: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[Importance]:
    """Of the settings that vary, the most important first. values, scores: of the trials with a score, of which smaller is better.

    Nothing for fewer than LEAST_TRIALS, and where all trials are alike.
    """
    distributions = {name: _distribution(dimension) for name, dimension in space.items()}
    varied = {name: each for name, each in distributions.items() if each is not None and not each.single()}
    if len(scores) < LEAST_TRIALS or not varied:
        return []
    study = _study(space, varied, values)
    found = _ped_anova(study, scores)
    total = sum(found.values())
    if total <= 0:
        return []
    rng = np.random.default_rng(0)
    dealt = [_ped_anova(study, rng.permutation(scores).tolist()) for _ in range(SHUFFLES)]
    return [
        Importance(name, value / total, max(each[name] for each in dealt) / total)
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ]


def num_best(num_trials: int) -> int:
    """Trials that count as the best."""
    return max(_LEAST_BEST, round(_BEST_SHARE * num_trials))


def _study(space: Space, varied: Mapping[str, BaseDistribution], values: Sequence[Mapping[str, Any]]) -> optuna.Study:
    """The trials as Optuna knows them, without values that the space does not hold. Their scores come later."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for each in values:
        held = {name: value for name, value in each.items() if name in varied and space[name].holds(value)}
        parameters = as_parameters(space, held)
        some = {name: varied[name] for name in parameters}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=some, value=0.0))
    return study


def _ped_anova(study: optuna.Study, scores: Sequence[float]) -> dict[str, float]:
    """{setting: importance} where the trials have these scores, in their order."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=num_best(len(scores)) / len(scores))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that smaller is taken for better; that few trials have a setting, which chance tells
        return evaluator.evaluate(study, target=lambda trial: scores[trial.number])


def _distribution(dimension: Dimension) -> BaseDistribution | None:
    """As `Dimension.suggest` draws; None of a fixed value."""
    if dimension.limits is not None:
        low, high = dimension.limits
        if dimension.is_integer:
            return IntDistribution(int(low), int(high), log=dimension.is_log)
        return FloatDistribution(low, high, log=dimension.is_log)
    if dimension.choice is None:
        return None
    return CategoricalDistribution([as_parameters({"": dimension}, {"": each})[""] for each in dimension.choice])
