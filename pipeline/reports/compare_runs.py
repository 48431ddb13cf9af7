"""Compare runs: what differs in their settings, what they reached, and their models on the very same frames.

<output>/compare.html, compare.json, pictures/
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import Field, model_validator

from pipeline.config import Settings, Uri
from pipeline.progress import SILENT, Progress
from pipeline.reports.compare_data import ComparedRun, ComparedRuns, Measured, letter_of
from pipeline.reports.compare_folders import RunFolder, read_runs
from pipeline.reports.compare_models import Models, choose_frames, judged, load_models, measure
from pipeline.reports.compare_page import build_page
from pipeline.reports.compare_seeds import seed_groups
from pipeline.reports.compare_values import curves, differing, num_same, shared_metrics
from pipeline.reports.compare_words import answer, model_tests
from pipeline.runs import run_folder
from pipeline.storage import absolute, join, preflight, write_bytes, write_json


class CompareSettings(Settings):
    """What is compared."""

    runs: tuple[Uri, ...]
    """The runs: URIs of their folders, or ids of runs in `storage`; the others are compared with the first. They may also stand
    first, without `--runs`."""
    storage: Uri = "runs"
    """URI of the folder that holds the runs which are given by their ids."""
    frame_set: Uri | None = None
    """Labelled frame set on which all pose models are measured. none: the one that they were fine-tuned on."""
    split: str | None = None
    """Split of it. none: test, or where it has none the first run's validation split."""
    max_frames: int | None = Field(default=None, ge=1)
    """Measure on at most this many frames. none takes the whole split, which is held in memory."""
    num_cases: int = Field(default=4, ge=1, le=24)
    """How many frames the page shows of each kind: good, median, worst, and those on which the models differ most."""
    use_gpu: bool | None = None
    """Whether to run on a GPU. none uses one if there is one."""
    output: Uri | None = None
    """URI of a folder for compare.html, compare.json and the pictures. none writes nothing."""

    @model_validator(mode="after")
    def _several(self) -> "CompareSettings":
        if len(self.runs) < 2:
            raise ValueError("setting 'runs': give two runs or more, to compare the others with the first")
        return self


def compare_runs(settings: CompareSettings, progress: Progress = SILENT) -> ComparedRuns:
    """Compare runs of any kind, finished or not. Needs no Ray.

    Raises SettingsError where a folder is not that of a run, or models were trained on different frames and none are given;
    MissingError for an unknown run; DataError or StorageError where the frames that are given cannot be used.
    """
    if settings.output:
        preflight(settings.output, write=True)
    if settings.frame_set:
        preflight(settings.frame_set)
    runs = read_runs([run_folder(name, settings.storage) for name in settings.runs])
    letters = {run.name: letter_of(number) for number, run in enumerate(runs)}
    models, measured, notes = _measured(settings, runs, letters, progress)
    groups = seed_groups(runs, models, measured)
    compared = ComparedRuns(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        runs=[
            ComparedRun(
                name=run.name,
                letter=letters[run.name],
                kind=run.kind,
                uri=run.uri,
                seed=run.settings.get("seed"),
                note=run.note,
            )
            for run in runs
        ],
        answer=answer(runs, measured, groups),
        notes=notes,
        settings=differing({run.name: run.settings for run in runs}),
        num_same_settings=num_same({run.name: run.settings for run in runs}),
        origin=differing({run.name: run.origin for run in runs}),
        recorded=shared_metrics(runs),
        curves=curves(runs),
        groups=groups,
        measured=measured,
    )
    if settings.output:
        _write(settings.output, compared)
    return compared


def _measured(
    settings: CompareSettings, runs: Sequence[RunFolder], letters: Mapping[str, str], progress: Progress
) -> tuple[Models | None, Measured | None, list[str]]:
    loaded, notes = load_models(runs)
    if not loaded:
        if settings.frame_set or settings.split:
            notes.append("no run has a pose model that can be measured: runs are compared by what they recorded")
        return None, None, notes
    frames, why = choose_frames(runs, loaded, settings.frame_set, settings.split, settings.max_frames)
    if frames is None:
        return None, None, [*notes, why]
    use_gpu = torch.cuda.is_available() if settings.use_gpu is None else settings.use_gpu
    models = measure(loaded, frames, torch.device("cuda" if use_gpu else "cpu"), progress)
    measured = judged(models, letters, settings.num_cases)
    tests = model_tests(measured)
    if len(tests) > 1:
        notes.append(
            f"p-values are corrected for the {len(tests)} comparisons with the first model (Holm), intervals are not"
        )
    return models, measured, [*notes, *frames.notes]


def to_json(compared: ComparedRuns) -> dict[str, Any]:
    """Plain JSON of all but the pictures."""
    found: dict[str, Any] = compared.model_dump(mode="json", exclude={"measured": {"overlays"}})
    return found


def _write(output: str, compared: ComparedRuns) -> None:
    output = absolute(output)
    for section in compared.measured.overlays if compared.measured else ():
        write_bytes(join(output, "pictures", f"{section.title.lower().replace(' ', '_')}.png"), section.picture.png)
    write_bytes(join(output, "compare.html"), build_page(compared).encode())
    write_json(join(output, "compare.json"), to_json(compared))  # last: it says that the rest is there
