"""Gather what a report says from the runs behind it: frame set, pretraining, search, and where they ran."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil
import torch
import yaml

from pipeline import __version__
from pipeline.cores import usable_cores
from pipeline.drawing.figures import contact_sheet
from pipeline.errors import DataError, one_line, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.reports.report_data import (
    Environment,
    FrameSetSection,
    Picture,
    Pretraining,
    ReportData,
    Results,
    Search,
    Stage,
    Trial,
    ViewsSection,
)
from pipeline.reports.verdict import Verdict
from pipeline.storage import exists, join, read_bytes, read_json
from pipeline.tracking import TrackingSettings, stored_run

_SHEET_FRAMES = 48
_SHOWN_VIEWS = ("size", "rotation_deg", "brightness", "saturation", "hue")
_LIBRARIES = ("torch", "ray", "mlflow")


def gather_report(
    *,
    title: str,
    frame_set: str,
    results: Results,
    verdict: Verdict | None,
    tracking: TrackingSettings,
    pretrain_run: str | None = None,
    search_run: str | None = None,
    stages: Sequence[Stage] = (),
) -> ReportData:
    """The data of a report; sections whose run is not given are left out, and curves that MLflow does not give.

    pretrain_run, search_run: URIs of finished runs' folders. Raises DataError where one is not that.
    """
    runs = {"pretrain": pretrain_run, "search": search_run}
    found = finished_runs(pretrain_run, search_run)
    settings = {kind: read_bytes(join(uri, "settings.yaml")).decode() for kind, uri in runs.items() if uri is not None}
    return ReportData(
        title=title,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_ids={kind: result["run_id"] for kind, result in found.items()},
        verdict=verdict,
        environment=environment(),
        stages=list(stages),
        frame_sets=[_frame_set(frame_set)],
        views=_views(pretrain_run, settings["pretrain"]) if pretrain_run else None,
        pretraining=_pretraining(pretrain_run, found["pretrain"], settings["pretrain"], tracking)
        if pretrain_run
        else None,
        search=_search(found["search"]) if "search" in found else None,
        results=results,
        settings=settings,
    )


def finished_runs(pretrain_run: str | None, search_run: str | None) -> dict[str, dict[str, Any]]:
    """The results of those runs that are given, by kind. Raises DataError where one is not a finished run of its kind."""
    runs = {"pretrain": pretrain_run, "search": search_run}
    return {kind: _result(uri, kind) for kind, uri in runs.items() if uri is not None}


def _result(uri: str, kind: str) -> dict[str, Any]:
    result_uri = join(uri, "result.json")
    if not exists(result_uri):
        raise DataError(f"{uri}: not a finished run (result.json is missing)")
    result: dict[str, Any] = read_json(result_uri)
    if result.get("kind") != kind:
        raise DataError(f"{uri}: is a {result.get('kind')} run, a {kind} run is needed here")
    return result


def environment() -> Environment:
    """This machine."""
    return Environment(
        num_cpus=usable_cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions={"equihand": __version__, **{name: version(name) for name in _LIBRARIES}},
    )


def _frame_set(uri: str) -> FrameSetSection:
    frame_set = FrameSet.open(uri)
    split = max(frame_set.manifest.splits(), key=frame_set.manifest.rows_in)
    frames = frame_set.load(split, limit=_SHEET_FRAMES, max_bad_fraction=0.5).frames
    sheet = Picture(png=contact_sheet(frames), alt="Crops of the frame set", caption=f"Some crops of split '{split}'")
    return FrameSetSection.of(frame_set, "Hand frames", sheet)


def _views(run: str, settings: str) -> ViewsSection:
    return ViewsSection(
        grid=_picture(
            run,
            "views.png",
            "Pairs of views of the same frames",
            "Two random views of each frame, as the network sees them",
        ),
        settings={name: value for name, value in yaml.safe_load(settings)["views"].items() if name in _SHOWN_VIEWS},
    )


def _pretraining(run: str, result: dict[str, Any], settings: str, tracking: TrackingSettings) -> Pretraining:
    values = yaml.safe_load(settings)
    encoder, objective, workers = values["encoder"], values["objective"], result["world_size"]
    history: dict[str, list[tuple[int, float]]] = {}
    try:
        history = stored_run(tracking, result).history()
    except Exception as error:  # its client and its database raise what they like
        warn(f"{one_line(error)}; the report has no curves of {run}")
    return Pretraining(
        run_id=result["run_id"],
        history={name: [(float(step), value) for step, value in points] for name, points in history.items()},
        facts={
            "Encoder": f"{encoder['name']}, width {encoder['width']}",
            "Objective": f"{objective['name']}, temperature {objective['temperature']}",
            "Epochs": values["epochs"],
            "Batch": f"{workers} x {values['batch_size']} frames, all contrasted",
            "Optimiser steps": result["metrics"]["step"],
            "Wall time": f"{result['wall_s']:.0f} s",
        },
        neighbours=_picture(
            run,
            "neighbours.png",
            "Frames and their nearest neighbours in feature space",
            "Left: a frame the encoder was not trained on. Right of it: the nearest other frames in feature space",
        ),
    )


def _search(result: dict[str, Any]) -> Search:
    metrics = result["metrics"]
    in_3d = "val_pa_epe_mm" in metrics or "val_epe_2d" not in metrics
    return Search(
        metric="validation PA-EPE" if in_3d else "validation 2D EPE",
        unit="mm" if in_3d else "hand sizes",
        trials=[Trial.model_validate(trial) for trial in result["trials"]],
        best=result["best_trial"],
        constant=metrics.get("val_constant_pa_epe_mm" if in_3d else "val_constant_epe_2d"),
    )


def _picture(run: str, name: str, alt: str, caption: str) -> Picture | None:
    uri = join(run, "pictures", name)
    return Picture(png=read_bytes(uri), alt=alt, caption=caption) if exists(uri) else None
