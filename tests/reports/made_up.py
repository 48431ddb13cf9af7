"""Comparisons of runs that nobody trained, with the errors that a test wants."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluation.statistics import clip_interval, holm
from pipeline.reports.compare_data import Measured, ModelError
from pipeline.reports.compare_folders import RunFolder
from pipeline.reports.verdict import Verdict, compare

CLIPS = [f"clip-{number}" for number in range(30) for _ in range(4)]
"""The clip of each frame."""


def errors_around(mean: float, seed: int = 0, num_clips: int = 30) -> np.ndarray:
    """Errors (4 * num_clips,) of frames, of just that mean: hard and easy clips, the same for all, and noise of this seed."""
    hardness = np.repeat(np.random.default_rng(99).normal(0, 1.5, num_clips), 4)
    errors = hardness + np.random.default_rng(seed).normal(0, 0.5, 4 * num_clips)
    centred: np.ndarray = mean + errors - errors.mean()
    return centred


def measured_with(errors: Mapping[str, np.ndarray], constant: float | None = 20.0, num_clips: int = 30) -> Measured:
    """As judged() gives it, of PA-EPE alone. errors: of each frame, by run; the first is what the others are compared with."""
    clips, first = CLIPS[: 4 * num_clips], next(iter(errors))
    of_constant = None if constant is None else errors_around(constant, 77, num_clips)
    against = {
        run: None if of_constant is None else compare(run, e, "constant pose", of_constant, clips)
        for run, e in errors.items()
    }
    between = {run: compare(run, e, first, errors[first], clips) for run, e in errors.items() if run != first}
    known = [each.p_value for each in between.values() if each.p_value is not None]
    adjusted = dict(zip(between, holm(known), strict=True)) if len(known) > 1 else {}
    return Measured(
        frame_set="frames",
        frame_set_digest="0",
        split="test",
        num_frames=len(clips),
        num_clips=num_clips,
        judged="pa_epe_mm",
        errors={
            "pa_epe_mm": {
                run: ModelError(
                    value=float(values.mean()),
                    interval=clip_interval(values, clips),
                    constant=None if of_constant is None else float(of_constant.mean()),
                    skill=None if (beside := against[run]) is None else -beside.percent / 100,
                    against_first=between.get(run),
                    p_adjusted=adjusted.get(run),
                )
                for run, values in errors.items()
            }
        },
        others={},
        verdict=Verdict(
            against_constant=[each for each in against.values() if each is not None],
            without_constant=[run for run, each in against.items() if each is None],
            between_models=[*between.values()],
        ),
    )


def run_with(
    name: str,
    kind: str = "finetune",
    settings: Mapping[str, object] = {},
    metrics: Mapping[str, float] = {},
    history: Sequence[Mapping[str, float]] = (),
) -> RunFolder:
    """A run's folder."""
    return RunFolder(
        name, f"/runs/{name}", kind, dict(settings), {}, dict(metrics), [dict(each) for each in history], model=None
    )
