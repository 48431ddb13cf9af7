"""Runs that differ in their seed only: mean and spread, and groups of them against each other."""

import json
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

from pipeline.evaluation.metric_names import METRICS
from pipeline.evaluation.statistics import MIN_CLIPS, compare, holm
from pipeline.reports.compare_data import Measured, SeedGroup, Spread
from pipeline.reports.compare_folders import FRAMES, RunFolder
from pipeline.reports.compare_models import Models
from pipeline.reports.verdict import Comparison

SEED = "seed"
_TRAINED = ("pretrain", "finetune")
_MIN_SEEDS = 2
MIN_SEEDS_TO_COMPARE = 3
"""Fewer say too little of how trainings differ, as in a study."""


def seed_groups(runs: Sequence[RunFolder], models: Models | None, measured: Measured | None) -> list[SeedGroup]:
    """The groups of two runs or more that have the same settings and frames, and different seeds."""
    groups: dict[str, dict[int, RunFolder]] = {}
    for run in runs:
        if run.kind in _TRAINED and SEED in run.settings:
            others = {name: value for name, value in run.settings.items() if name != SEED}
            key = json.dumps([run.kind, run.origin.get(FRAMES), others], sort_keys=True, default=str)
            groups.setdefault(key, {}).setdefault(run.settings[SEED], run)
    several = [[*group.values()] for group in groups.values() if len(group) >= _MIN_SEEDS]
    found = [_group(group, measured) for group in several]
    return found if models is None or measured is None else _compared(found, models, measured)


def _group(group: Sequence[RunFolder], measured: Measured | None) -> SeedGroup:
    names = [run.name for run in group]
    errors = measured.errors if measured else {}
    of_group = {key: [by_run[name] for name in names if name in by_run] for key, by_run in errors.items()}
    keys = [key for key in group[0].metrics if all(key in run.metrics for run in group)]
    return SeedGroup(
        runs=names,
        seeds=[run.settings[SEED] for run in group],
        errors={key: _spread([each.value for each in found]) for key, found in of_group.items() if len(found) > 1},
        skills={
            key: _spread(skills)
            for key, found in of_group.items()
            if len(skills := [each.skill for each in found if each.skill is not None]) > 1
        },
        recorded={key: _spread([run.metrics[key] for run in group]) for key in keys},
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=fmean(values), sd=stdev(values), lowest=min(values), highest=max(values))


def _compared(groups: list[SeedGroup], models: Models, measured: Measured) -> list[SeedGroup]:
    """The groups, each against that of the first model, where there is one."""
    first = next((group for group in groups if next(iter(models.errors)) in group.runs), None)
    if first is None:
        return groups
    compared = [
        group.model_copy(update={"against_first": None if group is first else _against(group, first, models, measured)})
        for group in groups
    ]
    tested = [i for i, each in enumerate(compared) if each.against_first and each.against_first.p_value is not None]
    if len(tested) > 1:
        p_values = [each.against_first.p_value or 0.0 for each in compared if each.against_first]
        for place, p in zip(tested, holm(p_values), strict=True):
            compared[place] = compared[place].model_copy(update={"p_adjusted": p})
    return compared


def _against(group: SeedGroup, first: SeedGroup, models: Models, measured: Measured) -> Comparison | None:
    """Over the seeds that both have; None with fewer than three."""
    ours, theirs = (
        {seed: name for seed, name in zip(each.seeds, each.runs, strict=True) if name in models.errors}
        for each in (group, first)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < MIN_SEEDS_TO_COMPARE:
        return None
    key, clips = measured.judged, models.clips(measured.judged)
    names, clip_of = np.unique(np.asarray(clips), return_inverse=True)
    frames = np.bincount(clip_of)
    one, other = (
        np.stack([np.bincount(clip_of, weights=models.errors[arm[seed]][key].values) / frames for seed in seeds])
        for arm in (ours, theirs)
    )
    found, is_sure = compare(one, other, frames), len(names) >= MIN_CLIPS
    factor, unit = (100, "% of the hand") if key == "epe_2d" else (1, METRICS[key].unit)
    return Comparison(
        model=", ".join(ours[seed] for seed in seeds),
        baseline=", ".join(theirs[seed] for seed in seeds),
        metric=METRICS[key].label,
        unit=unit,
        value=factor * found.value,
        baseline_value=factor * found.other,
        num_frames=len(clips),
        num_clips=len(names),
        interval_percent=found.interval if is_sure else None,
        p_value=found.p_value if is_sure else None,
        num_runs=len(seeds),
    )
