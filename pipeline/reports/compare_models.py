"""Several models measured on the very same frames: every error with its interval, beside the constant pose and the first model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline import hands
from pipeline.config import Uri
from pipeline.drawing.figures import pick_cases, side_by_side
from pipeline.errors import DataError, SettingsError, StorageError
from pipeline.evaluation.metric_names import METRICS
from pipeline.evaluation.metrics import MM, joint_errors
from pipeline.evaluation.statistics import clip_interval, holm
from pipeline.evaluation.yardsticks import CONSTANT, Constant
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelledFrames, load_labelled, read_poses
from pipeline.geometry import project
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.progress import Progress
from pipeline.reports.answers import TABLE_METRICS, TABLE_METRICS_2D
from pipeline.reports.compare_data import Measured, ModelError
from pipeline.reports.compare_folders import RunFolder
from pipeline.reports.evaluate import Evaluation, answers_in_set, case_of, evaluate_model
from pipeline.reports.report_data import Overlays, Picture
from pipeline.reports.verdict import Comparison, Verdict, compare

_TRAIN_SPLIT = "train"
_PA, _ROOT_RELATIVE, _EPE, _IMAGE = "pa_epe_mm", "root_relative_epe_mm", "epe_mm", "epe_2d"
_NO_ERRORS = ("pa_auc", "auc", "pck_2d_05", "pck_2d_10", "pck_2d_20", "auc_2d")


class Frames(NamedTuple):
    """What the models are measured on."""

    frame_set: FrameSet
    split: str
    data: LabelledFrames
    notes: list[str]


class FrameErrors(NamedTuple):
    """One error of one model on each frame that has it, in the unit of metric_names.METRICS."""

    values: np.ndarray
    """(N,)"""
    constant: np.ndarray | None
    """(N,) of always answering one fixed hand; None where none is known, or the error says where the hand is."""


@dataclass(frozen=True)
class Models:
    """The models of the runs, measured."""

    frames: Frames
    evaluations: dict[str, Evaluation]
    """By run."""
    errors: dict[str, dict[str, FrameErrors]]
    """{run: {error: ...}}"""

    @property
    def judged(self) -> str:
        """The error that verdicts are of."""
        return _PA if self.frames.data.has_3d.any() else _IMAGE

    def clips(self, error: str) -> list[str]:
        """The clip of each frame that has the error."""
        data = self.frames.data
        has_error = np.full(len(data), True) if error == _IMAGE else data.has_3d
        return [name.rsplit("/", 1)[0] for name, known in zip(data.frame_ids, has_error, strict=True) if known]


def load_models(runs: Sequence[RunFolder]) -> tuple[dict[str, LoadedPoseModel], list[str]]:
    """The pose models of those runs that have one, and what is wrong with those that cannot be read."""
    models, notes = {}, []
    for run in runs:
        if run.model is not None:
            try:
                models[run.name] = load_pose_model(run.model)
            except (DataError, StorageError) as error:
                notes.append(f"{run.name}: its model is not measured: {error}")
    return models, notes


def choose_frames(
    runs: Sequence[RunFolder],
    models: Mapping[str, LoadedPoseModel],
    frame_set: Uri | None,
    split: str | None,
    max_frames: int | None,
) -> tuple[Frames | None, str]:
    """The frames to measure the models on; None, and why, where there are none to read.

    frame_set: URI; None takes that of the first run with a model, and raises SettingsError where the models were trained on
    different ones. split: None takes test, or where the set has none the first run's validation split. Raises DataError or
    StorageError where a set or split that is given cannot be used.
    """
    with_model = [run for run in runs if run.name in models]
    uri = frame_set or _trained_on(with_model, models)
    if uri is None:
        return (
            None,
            "no run names a labelled frame set; give one with --frame_set to measure the models on the same frames",
        )
    try:
        opened = FrameSet.open(uri)
        notes, chosen = [], split
        if chosen is None:
            validation = next((run.settings.get("validation_split") for run in with_model), None) or "val"
            chosen = "test" if opened.manifest.rows_in("test") else validation
            if chosen != "test":
                notes.append(f"{uri} has no frames in split 'test': split '{chosen}' is taken")
        data = load_labelled(opened, chosen, limit=max_frames)
    except (DataError, StorageError) as error:
        if frame_set is not None or split is not None:
            raise
        return None, f"the models are not measured on the same frames: {error}; give others with --frame_set"
    return Frames(opened, chosen, data, [*notes, *_seen_before(with_model, models, opened, chosen)]), ""


def _trained_on(runs: Sequence[RunFolder], models: Mapping[str, LoadedPoseModel]) -> str | None:
    """URI of the frame set of all models. Raises SettingsError where they have different ones."""
    sets = {run.name: run.settings.get("frame_set") for run in runs}
    known = {name: uri for name, uri in sets.items() if isinstance(uri, str)}
    if not known:
        return None
    first, uri = next(iter(known.items()))
    for name, other in known.items():
        digests = [models[each].meta.get("frame_set_digest", sets[each]) for each in (first, name)]
        if other != uri and digests[0] != digests[1]:
            raise SettingsError(
                f"the frame set of {first} is {uri}, that of {name} {other}: say on which frames to compare them (--frame_set)"
            )
    return uri


def _seen_before(
    runs: Sequence[RunFolder], models: Mapping[str, LoadedPoseModel], frame_set: FrameSet, split: str
) -> list[str]:
    """What makes the errors of some models look better than they are, and frames that are others now."""
    own = [run for run in runs if run.kind != "evaluate" and run.settings.get("frame_set") == frame_set.uri]
    digests = {run.name: models[run.name].meta.get("frame_set_digest") for run in runs}
    changed = [run.name for run in own if digests[run.name] not in (None, frame_set.manifest.digest)]
    notes = [f"{frame_set.uri}: its frames are others now than {', '.join(changed)} read"] if changed else []
    for setting, what in (
        ("split", "was trained on these frames: its errors say nothing of others"),
        ("validation_split", "chose its best checkpoint on these frames: its errors on others are larger"),
    ):
        names = [
            run.name
            for run in runs
            if (run in own or digests[run.name] == frame_set.manifest.digest)
            and models[run.name].meta.get("settings", {}).get(setting) == split
        ]
        if names:
            notes.append(f"{', '.join(names)}: {what if len(names) == 1 else f'each {what}'}")
    return notes


def measure(models: Mapping[str, LoadedPoseModel], frames: Frames, device: torch.device, progress: Progress) -> Models:
    """Let every model answer the frames. Raises DataError, with its name, where that of one is not finite."""
    data = frames.data
    poses = torch.from_numpy(read_poses(frames.frame_set, _TRAIN_SPLIT))
    of_set = Constant.of(poses) if len(poses) else None
    in_image = answers_in_set(frames.frame_set, _TRAIN_SPLIT, data)
    evaluations, errors = {}, {}
    progress.start("evaluate", len(models) * len(data), "frames")
    for name, loaded in models.items():
        constant = loaded.constant or of_set
        constant_epe = in_image[0].metrics["epe_2d"] if in_image else None
        try:
            evaluations[name] = evaluate_model(
                name, loaded, data, device=device, constant=constant, constant_epe_2d=constant_epe
            )
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        errors[name] = _frame_errors(evaluations[name], data, constant, in_image[0].errors_2d if in_image else None)
        progress.advance(len(data))
    progress.finish()
    return Models(frames, evaluations, errors)


def _frame_errors(
    evaluation: Evaluation, data: LabelledFrames, constant: Constant | None, constant_2d: np.ndarray | None
) -> dict[str, FrameErrors]:
    found = {}
    if data.has_3d.any():
        target = torch.from_numpy(data.joints_3d[data.has_3d])
        pred = evaluation.predictions.joints_3d[torch.from_numpy(data.has_3d)]
        wrist = slice(hands.WRIST, hands.WRIST + 1)
        of_constant = constant.errors(target) if constant is not None else (None, None)
        aligned, relative = ((MM * each.mean(-1)).numpy() if each is not None else None for each in of_constant)
        moved = joint_errors(pred - pred[:, wrist], target - target[:, wrist])
        found = {
            _PA: FrameErrors(evaluation.errors_mm, aligned),
            _ROOT_RELATIVE: FrameErrors(_mm(moved), relative),
            _EPE: FrameErrors(_mm(joint_errors(pred, target)), None),
        }
    return {**found, _IMAGE: FrameErrors(evaluation.errors_2d, constant_2d)}


def _mm(errors: torch.Tensor) -> np.ndarray:
    values: np.ndarray = (MM * errors.double().mean(-1)).numpy()
    return values


def judged(models: Models, letters: Mapping[str, str], num_cases: int) -> Measured:
    """All of it as plain data. letters: of every run, for the pictures. num_cases: frames of each kind in them."""
    frames, first = models.frames, next(iter(models.errors))
    errors = {key: _errors(models, key) for key in models.errors[first]}
    by_run = errors[models.judged]
    compared = {run: _against_constant(models, run, models.judged) for run in models.errors}
    metrics = {run: evaluation.result().metrics for run, evaluation in models.evaluations.items()}
    keys = [key for key in dict.fromkeys((*TABLE_METRICS, *TABLE_METRICS_2D)) if key in _NO_ERRORS]
    others = {key: {run: value for run, of in metrics.items() if (value := of.get(key)) is not None} for key in keys}
    return Measured(
        **frames.frame_set.describe(),
        split=frames.split,
        num_frames=len(frames.data),
        num_clips=len(set(models.clips(_IMAGE))),
        judged=models.judged,
        errors=errors,
        others={key: values for key, values in others.items() if values},
        verdict=Verdict(
            against_constant=[each for each in compared.values() if each is not None],
            without_constant=[run for run, each in compared.items() if each is None],
            between_models=[each.against_first for each in by_run.values() if each.against_first is not None],
        ),
        overlays=_overlays(models, letters, num_cases),
    )


def _errors(models: Models, key: str) -> dict[str, ModelError]:
    """One error of all models."""
    clips, first = models.clips(key), next(iter(models.errors))
    found = {}
    for run, errors in models.errors.items():
        values, constant = errors[key]
        against = _against_constant(models, run, key)
        interval = against.interval_percent if against else None
        found[run] = ModelError(
            value=float(values.mean()),
            interval=clip_interval(values, clips),
            constant=float(constant.mean()) if constant is not None else None,
            skill=-against.percent / 100 if against else None,
            skill_interval=(-interval[1] / 100, -interval[0] / 100) if interval else None,
            against_first=None
            if run == first
            else _compare(models, key, run, values, first, models.errors[first][key].values),
        )
    tested = {
        run: p for run, each in found.items() if each.against_first and (p := each.against_first.p_value) is not None
    }
    if len(tested) > 1:
        for run, p in zip(tested, holm([*tested.values()]), strict=True):
            found[run] = found[run].model_copy(update={"p_adjusted": p})
    return found


def _against_constant(models: Models, run: str, key: str) -> Comparison | None:
    values, constant = models.errors[run][key]
    return None if constant is None else _compare(models, key, run, values, CONSTANT, constant)


def _compare(models: Models, key: str, run: str, values: np.ndarray, other: str, others: np.ndarray) -> Comparison:
    name = METRICS[key]
    factor, unit = (100, "% of the hand") if key == _IMAGE else (1, name.unit)
    return compare(run, factor * values, other, factor * others, models.clips(key), metric=name.label, unit=unit)


def _overlays(models: Models, letters: Mapping[str, str], num_cases: int) -> list[Overlays]:
    """The same frames with the answer of every model: good, median and worst frames of the first, and those on which the models
    differ most."""
    batch = models.frames.data.batch(slice(None))
    in_3d = bool(batch.has_3d.any())
    rows = np.flatnonzero(batch.has_3d.numpy()) if in_3d else np.arange(len(batch.frames))
    factor, unit = (1, "mm") if in_3d else (100, "%")
    errors = {run: factor * each[models.judged].values for run, each in models.errors.items()}
    true_2d = project(batch.joints_3d, batch.camera)
    first = next(iter(errors))
    groups = pick_cases(errors[first], num_cases)
    sections = {
        f"Good frames of {letters[first]}": groups.good,
        f"Median frames of {letters[first]}": groups.median,
        f"Worst frames of {letters[first]}": groups.worst,
    }
    if len(errors) > 1:
        shown = {*groups.good, *groups.median, *groups.worst}
        apart = np.ptp(np.stack([*errors.values()]), axis=0)
        order = [int(number) for number in np.argsort(-apart, kind="stable") if int(number) not in shown]
        sections["Frames on which the models differ most"] = order[:num_cases]
    found = []
    for title, chosen in sections.items():
        cases = [
            [
                case_of(evaluation, batch, true_2d, row, in_3d, f"{letters[run]}  {errors[run][number]:.1f} {unit}")
                for run, evaluation in models.evaluations.items()
            ]
            for number, row in zip(chosen, rows[chosen].tolist(), strict=True)
        ]
        if cases:
            names = ", ".join(models.frames.data.frame_ids[row] for row in rows[chosen].tolist())
            picture = Picture(png=side_by_side(cases), alt=f"{title}: the answer of every model", caption=names)
            found.append(Overlays(title=title, picture=picture))
    return found
