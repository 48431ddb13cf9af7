"""Evaluate pose models on a labelled frame set: metrics, PCK curves, and frames that went well, so-so and badly."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from pipeline.config import Settings, Uri, to_yaml
from pipeline.cores import usable_cores
from pipeline.drawing.figures import Case, overlays, pick_cases
from pipeline.errors import SettingsError
from pipeline.evaluation.image_metrics import frame_errors_2d, image_metrics
from pipeline.evaluation.metric_names import PROBE_METRICS, metric_name
from pipeline.evaluation.metrics import MM, Protocol, pose_metrics
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM, Constant
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelledFrames, PoseBatch, load_labelled, read_joints_2d, read_poses
from pipeline.geometry import project
from pipeline.models.origin import origin_of
from pipeline.models.predict import Predictions, bone_lengths, predict
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.progress import SILENT, Progress
from pipeline.reports.answers import (
    TABLE_METRICS,
    TABLE_METRICS_2D,
    Answers,
    answers_in_image,
    beside_constant,
    beside_constant_2d,
    constant_answers,
    frame_errors_mm,
    random_answers,
    with_image,
)
from pipeline.reports.model_probes import ModelProbes, ModelProbeSettings, wanted
from pipeline.reports.report import build_report
from pipeline.reports.report_data import Overlays, Picture, ReportData, Results, Stage
from pipeline.reports.run_report import finished_runs, gather_report
from pipeline.reports.verdict import Comparison, Verdict, compare
from pipeline.runs import new_run_id
from pipeline.storage import absolute, join, preflight, write_bytes, write_json
from pipeline.tracked import Tracking, tracked
from pipeline.tracking import TrackingSettings


class EvaluateSettings(Settings):
    """What is evaluated, on what."""

    models: dict[str, Uri] = {}
    """Pose models to evaluate, by the name they get in tables: {name: URI of a checkpoint, a run, or a released
    file}."""
    encoders: dict[str, Uri] = {}
    """Encoders without a pose head, by name: {name: URI of a pretraining run or a weights file}. They are only
    probed."""
    frame_set: Uri
    """URI of a frame set with joints and cameras, or with joints in the image."""
    split: str = "test"
    """Split to evaluate on."""
    max_frames: int | None = Field(default=None, ge=1)
    """Evaluate on at most this many frames. none takes the whole split, which is held in memory."""
    scale: Literal["given", "mean"] = "given"
    """Where the length of each hand's reference bone comes from. given: from its labels, as in FreiHAND. mean: the mean
    of the training set."""
    protocol: Protocol = "freihand"
    """Which metrics: those of the official FreiHAND scorer, or those of PeCLR's code."""
    baseline: str | None = None
    """Name of the model with which the report compares the others. none: no comparison."""
    probe: ModelProbeSettings = ModelProbeSettings()
    num_cases: int = Field(default=6, ge=1, le=24)
    """How many frames the report shows of each kind: good, median, worst."""
    save_predictions: bool = False
    """Also write every model's joints, as Parquet."""
    use_gpu: bool | None = None
    """Whether to run on a GPU. none uses one if there is one."""
    output: Uri | None = None
    """URI of a folder for report.html, metrics.json, settings.yaml, the pictures and the predictions. none writes nothing."""
    pretrain_run: Uri | None = None
    """URI of the pretraining run that the report also shows: its views, curves and neighbours."""
    search_run: Uri | None = None
    """URI of the search that the report also shows."""
    title: str = "Equihand evaluation"
    """Title of the report."""
    track: bool = True
    """Also record the metrics as a run of MLflow."""
    tracking: TrackingSettings = TrackingSettings()
    """Where MLflow records this run, and where it has the curves of `pretrain_run`."""

    @field_validator("models", "encoders", mode="before")
    @classmethod
    def _accept_list(cls, models: Any) -> Any:
        """Also accept [{name: ..., uri: ...}, ...]."""
        if isinstance(models, list) and all(isinstance(m, dict) and {"name", "uri"} == m.keys() for m in models):
            return {model["name"]: model["uri"] for model in models}
        return models

    @model_validator(mode="after")
    def _no_name_of_a_yardstick(self) -> Self:
        taken = [name for name in self.models if name.startswith((CONSTANT, RANDOM))]
        if taken:
            raise ValueError(
                f"setting 'models': '{taken[0]}' is the name of a row that is always there; use another name"
            )
        return self

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> Self:
        if not self.models and not self.encoders:
            raise ValueError("setting 'models': name at least one model, or one of 'encoders'")
        both = self.models.keys() & self.encoders.keys()
        if both:
            raise ValueError(f"setting 'encoders': '{min(both)}' is also among the models; use another name")
        if self.encoders and self.probe.enabled is False:
            raise ValueError("setting 'probe.enabled' = false: encoders are only probed; leave them out, or probe")
        return self


@dataclass(frozen=True)
class Evaluation(Answers):
    """What one model did on a labelled set."""

    predictions: Predictions


def evaluate(settings: EvaluateSettings, progress: Progress = SILENT, stages: Sequence[Stage] = ()) -> dict[str, Any]:
    """Evaluate every model on the same frames. Needs no Ray. stages: what ran before, for the report.

    Returns plain JSON: {"frame_set", "frame_set_digest", "split", "num_frames", "scale", "protocol", "models": {name:
    {"uri", "metrics", "notes"}}, "yardsticks": {name: {"metrics"}} of what answers without looking, "verdict":
    verdict.Verdict, "conclusions": its sentences, "probes": {name: scores named as in metric_names.PROBE_METRICS},
    "mlflow_run_id", "results": report_data.Results}; <output>/metrics.json holds it without the pictures. The overlays are
    of the first model that is not the baseline. Where MLflow does not have all, "untracked" says why, and all else is there.
    Raises DataError where a model or the labels cannot be used, EquihandError at once where MLflow is required and does not answer.
    """
    preflight(settings.frame_set)
    if settings.output:
        preflight(settings.output, write=True)
    if settings.baseline is not None and settings.baseline not in settings.models:
        raise SettingsError(
            f"setting 'baseline' = '{settings.baseline}' is none of the models ({', '.join(settings.models)})"
        )
    frame_set = FrameSet.open(settings.frame_set)
    finished_runs(settings.pretrain_run, settings.search_run)
    if not settings.track:
        return _evaluated(settings, frame_set, progress, stages, None)
    output, run_id = absolute(settings.output) if settings.output else None, new_run_id("evaluate")
    made_from = origin_of(*settings.models.values(), *settings.encoders.values())
    with tracked(settings.tracking, output, run_id, "evaluate", settings, frame_set.describe(), made_from) as tracking:
        tracking.opened()
        outcome = _evaluated(settings, frame_set, progress, stages, tracking)
    return outcome | tracking.untracked()


def _evaluated(
    settings: EvaluateSettings,
    frame_set: FrameSet,
    progress: Progress,
    stages: Sequence[Stage],
    tracking: Tracking | None,
) -> dict[str, Any]:
    """Evaluate, and record it with `tracking`."""
    models = {name: load_pose_model(uri) for name, uri in settings.models.items()}
    data = load_labelled(frame_set, settings.split, limit=settings.max_frames)
    use_gpu = torch.cuda.is_available() if settings.use_gpu is None else settings.use_gpu
    device = torch.device("cuda" if use_gpu else "cpu")
    # torch knows nothing of a container's CPU limit.
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    poses = torch.from_numpy(read_poses(frame_set, settings.probe.train_split))
    probes = None
    if settings.encoders or wanted(settings.probe, len(poses), data):
        probes = ModelProbes(settings.probe, frame_set, data, device)
    progress.start("evaluate", (len(models) + len(settings.encoders)) * len(data), "frames")
    of_set = Constant.of(poses) if len(poses) else None
    in_image = answers_in_set(frame_set, settings.probe.train_split, data)
    constant_epe = in_image[0].metrics["epe_2d"] if in_image else None
    constants = {name: loaded.constant or of_set for name, loaded in models.items()}
    evaluations = []
    probed: dict[str, dict[str, float]] = {}
    for name, loaded in models.items():
        evaluations.append(
            evaluate_model(name, loaded, data, settings.scale, settings.protocol, device, constants[name], constant_epe)
        )
        if probes is not None:
            probed[name] = probes.of_pose_model(loaded)
        key = "pa_epe_mm" if data.has_3d.any() else "epe_2d"
        label, metrics = metric_name(key), evaluations[-1].metrics
        figures = {label.label: metrics[key], CONSTANT: metrics.get(f"constant_{key}")}
        progress.advance(
            len(data),
            **{f"{name} {label.unit}": round(v, label.decimals) for name, v in figures.items() if v is not None},
        )
    for name, uri in settings.encoders.items():
        assert probes is not None
        probed[name] = probes.of_pretrained(uri)
        progress.advance(len(data))
    progress.finish()
    baseline = next((e for e in evaluations if e.name == settings.baseline), None)
    others = [e for e in evaluations if e is not baseline]
    if data.has_3d.any():
        target = torch.from_numpy(data.joints_3d[data.has_3d])
        of_constants = constant_answers(constants, target, settings.protocol)
        yardsticks = list({answers.name: answers for answers in of_constants.values()}.values())
        if evaluations and len(poses):
            shown = constants[evaluations[0].name] if len(yardsticks) == 1 else None
            yardsticks.append(random_answers(poses, target, settings.protocol, shown))
        yardsticks = [with_image(answers, in_image) for answers in yardsticks]
    else:
        of_constants = dict.fromkeys(models, in_image[0]) if in_image else {}
        yardsticks = in_image if models else []
    verdict = judge(evaluations, of_constants, baseline, data)
    results = Results(
        models=[evaluation.result() for evaluation in evaluations],
        yardsticks=[answers.result() for answers in yardsticks],
        baseline=settings.baseline or "",
        test_set=f"{settings.frame_set}, split '{settings.split}', {len(data)} frames",
        overlays=case_overlays((others or evaluations)[0], data, settings.num_cases) if evaluations else [],
        probes=probed,
    )
    outcome: dict[str, Any] = {
        **frame_set.describe(),
        "split": settings.split,
        "num_frames": len(data),
        "scale": settings.scale,
        "protocol": settings.protocol,
        "models": {
            evaluation.name: {
                "uri": settings.models[evaluation.name],
                "metrics": evaluation.metrics,
                "notes": model_notes(models[evaluation.name], settings, of_set, data)
                + labels_notes(frame_set, settings.split),
            }
            for evaluation in evaluations
        },
        "yardsticks": {answers.name: {"metrics": answers.metrics} for answers in yardsticks},
        "verdict": verdict.model_dump(mode="json"),
        "conclusions": verdict.sentences(),
        "probes": probed,
        "mlflow_run_id": tracking.mlflow_run_id if tracking else None,
    }
    if settings.output:
        report = gather_report(
            title=settings.title,
            frame_set=settings.frame_set,
            results=results,
            verdict=verdict if evaluations else None,
            tracking=settings.tracking,
            pretrain_run=settings.pretrain_run,
            search_run=settings.search_run,
            stages=stages,
        )
        names = _write(settings.output, settings, outcome, report, evaluations, data)
        if tracking is not None:
            for name in names:
                tracking.run.log_file(name)
    if tracking is not None:
        tracking.run.log_metrics(_tracked([*evaluations, *yardsticks], probed), step=0)
    return {**outcome, "results": results.model_dump(mode="json")}


def evaluate_model(
    name: str,
    loaded: LoadedPoseModel,
    data: LabelledFrames,
    scale: Literal["given", "mean"] = "given",
    protocol: Protocol = "freihand",
    device: torch.device | None = None,
    constant: Constant | None = None,
    constant_epe_2d: float | None = None,
) -> Evaluation:
    """Predict the joints of labelled frames and compare them with the labels, in 3D where these are.

    constant: adds the skill over it. constant_epe_2d: that of always answering the same in the image; adds the skill over it.
    """
    model = loaded.model.to(device or torch.device("cpu"))
    batch = data.batch(slice(None))
    in_3d = batch.has_3d
    lengths = bone_lengths(model, batch.joints_3d, in_3d) if scale == "given" else None
    predictions = predict(model, batch.frames, batch.camera, loaded.view_size, lengths)
    true_2d = project(batch.joints_3d, batch.camera)
    metrics = image_metrics(predictions.joints_2d, true_2d, torch.from_numpy(data.pixel_size))
    metrics = beside_constant_2d(metrics, constant_epe_2d)
    errors = np.zeros(0)
    if in_3d.any():
        pred, target = predictions.joints_3d[in_3d], batch.joints_3d[in_3d]
        metrics = beside_constant(pose_metrics(pred, target, protocol), constant, target, protocol) | metrics
        errors = frame_errors_mm(pred, target, protocol)
    return Evaluation(name, metrics, errors, frame_errors_2d(predictions.joints_2d, true_2d), predictions)


def answers_in_set(frame_set: FrameSet, train_split: str, data: LabelledFrames) -> list[Answers]:
    """The constant in the image and joints taken blindly, of the training split's labels; nothing where it has none."""
    train = read_joints_2d(frame_set, train_split)
    if not len(train):
        return []
    target = project(torch.from_numpy(data.joints_3d), torch.from_numpy(data.camera))
    return answers_in_image(train, target, frame_set.manifest.image_size, torch.from_numpy(data.pixel_size))


def judge(
    evaluations: Sequence[Evaluation],
    of_constants: Mapping[str, Answers],
    baseline: Evaluation | None,
    data: LabelledFrames,
) -> Verdict:
    """Each model against its constant (of_constants, by model), and the others against the baseline: by PA-EPE on the frames
    with joints in 3D, else by the error in the image."""
    clips = [frame_id.rsplit("/", 1)[0] for frame_id in data.frame_ids]

    def against(model: Answers, other: Answers) -> Comparison:
        if data.has_3d.any():
            of_errors = [clip for clip, in_3d in zip(clips, data.has_3d, strict=True) if in_3d]
            return compare(model.name, model.errors_mm, other.name, other.errors_mm, of_errors)
        errors, others = 100 * model.errors_2d, 100 * other.errors_2d
        return compare(model.name, errors, other.name, others, clips, metric="2D EPE", unit="% of the hand")

    return Verdict(
        against_constant=[against(e, of_constants[e.name]) for e in evaluations if e.name in of_constants],
        without_constant=[e.name for e in evaluations if e.name not in of_constants],
        between_models=[against(e, baseline) for e in evaluations if baseline is not None and e is not baseline],
    )


def labels_notes(frame_set: FrameSet, split: str) -> list[str]:
    """What a reader has to know of the labels."""
    sources = frame_set.manifest.detector_labels(split)
    if not sources:
        return []
    named = ", ".join(f"'{source}'" for source in sources)
    return [
        f"joints of {named} are a detector's answers, no ground truth: errors say how far a model is from that detector"
    ]


def case_of(evaluation: Evaluation, batch: PoseBatch, true_2d: Tensor, row: int, in_3d: bool, label: str) -> Case:
    """A model's answer on a frame (row of the batch), to be drawn. true_2d: (N, 21, 2) where its joints are in the crops."""
    return Case(
        image=batch.frames[row],
        predicted=evaluation.predictions.joints_2d[row],
        true=true_2d[row],
        predicted_3d=evaluation.predictions.joints_3d[row] if in_3d else None,
        true_3d=batch.joints_3d[row] if in_3d else None,
        label=label,
    )


def case_overlays(evaluation: Evaluation, data: LabelledFrames, num_cases: int) -> list[Overlays]:
    """Pictures of good, median and worst frames: predicted and true hands on the crop, and from the side.

    They are chosen among those with joints in 3D by PA-EPE; where there are none, by the error in the image.
    """
    batch = data.batch(slice(None))
    true_2d = project(batch.joints_3d, batch.camera)
    in_3d = bool(batch.has_3d.any())
    of_errors = np.flatnonzero(batch.has_3d) if in_3d else np.arange(len(data))
    errors, unit = (evaluation.errors_mm, "mm") if in_3d else (100 * evaluation.errors_2d, "%")
    groups = pick_cases(errors, num_cases)
    sections = []
    for title, chosen in (("Good", groups.good), ("Median", groups.median), ("Worst", groups.worst)):
        rows = of_errors[chosen].tolist()
        cases = [
            case_of(evaluation, batch, true_2d, row, in_3d, f"{errors[number]:.1f} {unit}")
            for number, row in zip(chosen, rows, strict=True)
        ]
        if cases:
            names = ", ".join(data.frame_ids[row] for row in rows)
            picture = Picture(
                png=overlays(cases),
                alt=f"{title} predictions of {evaluation.name} drawn on the frames",
                caption=f"{evaluation.name}: {names}",
            )
            sections.append(Overlays(title=title, picture=picture))
    return sections


def comparison_table(outcome: Mapping[str, Any]) -> tuple[list[str], list[list[str | float | None]]]:
    """Column titles and rows of the comparison, for a terminal: models, then what answers without looking.

    outcome: what `evaluate` returned.
    """
    every = [*outcome["results"]["models"], *outcome["results"].get("yardsticks", [])]
    in_3d = any("pa_epe_mm" in answers["metrics"] for answers in every)
    keys = TABLE_METRICS if in_3d else TABLE_METRICS_2D
    names = [metric_name(key) for key in keys]
    columns = ["model", *(f"{name.label} ({name.unit})" if name.unit else name.label for name in names)]
    rows: list[list[str | float | None]] = []
    for answers in every:
        values = [answers["metrics"].get(key) for key in keys]
        cells = [None if v is None else round(v, n.decimals) for v, n in zip(values, names, strict=True)]
        rows.append([answers["name"], *cells])
    return columns, rows


def probe_table(outcome: Mapping[str, Any]) -> tuple[list[str], list[list[str | float]]]:
    """Column titles and rows of what the probes found, for a terminal. outcome: what `evaluate` returned."""
    probes = outcome["probes"]
    keys = [key for key in PROBE_METRICS if any(key in scores for scores in probes.values())]
    names = [PROBE_METRICS[key] for key in keys]
    columns = ["encoder of", *(f"{name.label} ({name.unit})" if name.unit else name.label for name in names)]
    rows: list[list[str | float]] = [
        [model, *(round(scores[k], n.decimals) if k in scores else "-" for k, n in zip(keys, names, strict=True))]
        for model, scores in probes.items()
    ]
    return columns, rows


def model_notes(
    loaded: LoadedPoseModel, settings: EvaluateSettings, of_set: Constant | None, data: LabelledFrames
) -> list[str]:
    """What a reader of the model's metric numbers has to know. of_set: the constant of the frame set's training split."""
    num_3d = int(data.has_3d.sum())
    if not num_3d:
        return [
            "no frame has joints in 3D: errors are those in the image, in sizes of the hand (longer side of its tight box)"
        ]
    notes = ["each hand's reference bone was given: EPE and AUC do not contain errors of the hand's size"]
    if settings.scale == "mean":
        length = float(loaded.model.mean_bone_length) * MM
        notes = [f"the hands' size was unknown: every reference bone was taken as {length:.1f} mm"]
    if num_3d < len(data):
        notes.append(
            f"{num_3d} of {len(data)} frames have joints in 3D: errors in mm and AUC are theirs, those in the image are of all"
        )
    train = f"split '{settings.probe.train_split}' of {settings.frame_set}"
    if loaded.constant is not None:
        notes.append(f"{CONSTANT}: of the {loaded.constant.num_poses} labels that the model was trained on")
    elif of_set is not None:
        notes.append(f"{CONSTANT}: of the {of_set.num_poses} labels in {train}, as the model brings none")
    else:
        notes.append(f"no {CONSTANT}: the model brings none, and {train} has no labels to make one of")
    return notes


def _tracked(answers: Sequence[Answers], probed: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics for MLflow: "<model or yardstick>/<metric>" and "<model>/probe_<score>"."""
    found = {f"{e.name}/{name}": value for e in answers for name, value in e.result().metrics.items()}
    found |= {f"{name}/probe_{key}": value for name, scores in probed.items() for key, value in scores.items()}
    return {name: value for name, value in found.items() if value is not None}


def _write(
    output: str,
    settings: EvaluateSettings,
    outcome: dict[str, Any],
    report: ReportData,
    evaluations: Sequence[Evaluation],
    data: LabelledFrames,
) -> list[str]:
    """The names of what belongs into MLflow, too: not the predictions, which are many."""
    names = ["metrics.json", "report.html"]
    write_bytes(join(output, "settings.yaml"), to_yaml(settings).encode())
    for section in report.results.overlays if report.results else ():
        names.append(f"pictures/overlays_{section.title.lower()}.png")
        write_bytes(join(output, names[-1]), section.picture.png)
    for evaluation in evaluations if settings.save_predictions else ():
        write_bytes(join(output, "predictions", f"{evaluation.name}.parquet"), _parquet(evaluation, data))
    write_bytes(join(output, "report.html"), build_report(report).encode())
    write_json(join(output, "metrics.json"), outcome)  # last: it says that the rest is there
    return names


def _parquet(evaluation: Evaluation, data: LabelledFrames) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    errors_mm = np.full(len(data), np.nan)
    errors_mm[data.has_3d] = evaluation.errors_mm
    table = pa.table(
        {
            "frame_id": data.frame_ids,
            "hand": data.hands,
            "joints_3d": evaluation.predictions.joints_3d.flatten(1).tolist(),
            "joints_2d": evaluation.predictions.joints_2d.flatten(1).tolist(),
            "pa_epe_mm": pa.array(errors_mm, from_pandas=True),
            "epe_2d": evaluation.errors_2d,
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
