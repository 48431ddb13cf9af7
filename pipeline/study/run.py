"""Runs a study: what its cells need, then the cells on the cluster, each once, then results and report.

    <storage>/<run_id>/settings.yaml
    <storage>/<run_id>/subsets/         frame sets of a share of the unlabelled clips
    <storage>/<run_id>/cells/KEY.json   a finished cell
    <storage>/<run_id>/work/KEY/        checkpoints of a cell under way, and the encoders of finished pretrainings
    <storage>/<run_id>/results.parquet  written after every fine-tuning
    <storage>/<run_id>/aside/           tables with rows that a later start did not ask for
    <storage>/<run_id>/report.html, table.md

A key stands for everything that decides a cell's result. So a study that was stopped in any way goes on, one whose
grids have grown runs what is new, and one whose settings have changed runs what they changed. The table alone is enough: where only
results.parquet was kept, its cells count as done, and their pretrainings are run again only if other cells start from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline.config import flatten, to_yaml
from pipeline.errors import DataError, SettingsError, TrainingError, UnfinishedError, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSettings, read_poses, select_labels
from pipeline.frames.mine import MineSettings, mine
from pipeline.frames.mixing import FrameSetShare, Mixture, uris_of
from pipeline.lease import lease
from pipeline.models.origin import origin_of
from pipeline.models.weights import load_encoder
from pipeline.progress import SILENT, Progress
from pipeline.ray_map import ray_map
from pipeline.reports.run_report import environment
from pipeline.run_log import log, run_log
from pipeline.runs import new_run_id
from pipeline.storage import absolute, join, list_files, preflight, read_bytes, read_json, write_bytes
from pipeline.study.findings import Finding
from pipeline.study.grid import Arm, Cell, arm_recipe, for_frames, identity
from pipeline.study.plan import Work, done_of, minutes, plan_table, works_of
from pipeline.study.report import write_report
from pipeline.study.results import ASIDE, About, KeptTables, Results, Row, merged, rows_of
from pipeline.study.schedule import Say, Schedule
from pipeline.study.settings import StudySettings
from pipeline.study.subsets import write_subset
from pipeline.tracked import tracked
from pipeline.training.board import progress_board
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe

Show = Callable[[str, Sequence[str], Sequence[Sequence[object]]], None]
"""Receives a table: title, column titles, rows."""


def run_study(
    settings: StudySettings,
    progress: Progress = SILENT,
    say: Say = lambda line: None,
    show: Show = lambda title, columns, rows: None,
    deadline: float | None = None,
    known_as: str | None = None,
) -> dict[str, Any]:
    """Run what is left of a study (needs a running Ray); {"run_id", "folder", "report", "num_cells", "findings"}.

    say, show: receive lines and the table of the plan. deadline: seconds since 1970 at which to stop, at the next
    checkpoints. known_as: see `Study`. Raises UnfinishedError at the deadline, TrainingError where cells failed; results and report of
    what is done are written all the same; SettingsError where another process runs the study.
    """
    run_id = settings.run.run_id or new_run_id("study")
    preflight(settings.run.storage, write=True)
    with lease(join(absolute(settings.run.storage), run_id), run_id, say):
        return _run_study(Study(settings, run_id, known_as), progress, say, show, deadline)


def _run_study(study: "Study", progress: Progress, say: Say, show: Show, deadline: float | None) -> dict[str, Any]:
    settings, run_id = study.settings, study.run_id
    show(*plan_table(settings, study.works, study.done()))
    write_bytes(join(study.folder, "settings.yaml"), to_yaml(settings).encode())
    tags = {"frame_set": settings.finetune.frame_set}
    made_from = origin_of(*(encoder.init for encoder in settings.encoders.values()))
    with (
        tracked(settings.tracking, study.folder, run_id, "study", settings, tags, made_from) as tracking,
        run_log(study.folder, "driver", warn),
    ):
        tracking.opened()
        log("settings", settings=flatten(settings))
        study.prepare(progress)
        total = sum(work.frames for work in study.works)
        with progress_board(progress, "study", total, "frames") as board:
            failed = Schedule(study, tracking.run, board, say, deadline).run()
        found = study.report()
        tracking.run.log_file("report.html")
        tracking.run.log_file("results.parquet")
    if failed:
        key, reason = next(iter(failed.items()))
        raise TrainingError(
            f"study '{run_id}': {len(failed)} of {len(study.works)} cells failed, such as {key}: {reason}; the same command "
            "tries them again"
        )
    left = study.left()
    if left:
        raise UnfinishedError(
            f"study '{run_id}' is not finished: {len(left)} of {len(study.works)} cells are left, about "
            f"{minutes(settings, left):.0f} minutes, the next is {left[0].words()}; the same command goes on"
        )
    return {
        "run_id": run_id,
        "folder": study.folder,
        "report": join(study.folder, "report.html"),
        "num_cells": len(study.works),
        "findings": [{"title": each.title, "outcome": each.outcome, "sentence": each.sentence} for each in found],
        **tracking.untracked(),
    }


class Study:
    """A study under way."""

    def __init__(self, settings: StudySettings, run_id: str, known_as: str | None = None) -> None:
        """Checks everything that can be checked before any long work. known_as: the digest that stands for the frame set in the
        keys of cells, where it is not its own: that of the same frames as another machine rendered them."""
        self.settings, self.run_id = settings, run_id
        self.folder = join(absolute(settings.run.storage), run_id)
        labelled_uri = settings.finetune.frame_set
        if not labelled_uri:
            raise SettingsError("setting 'finetune.frame_set' is required: the URI of a labelled frame set")
        preflight(labelled_uri, *(uris_of(settings.pretrain.frame_set) if settings.pretrain.frame_set else []))
        preflight(settings.run.storage, write=True)
        self.labelled = FrameSet.open(labelled_uri)
        for split in (settings.finetune.validation_split, settings.test_split):
            if self.labelled.manifest.rows_in(split) == 0:
                raise DataError(
                    f"{labelled_uri}: split '{split}' is empty; the set has {self.labelled.manifest.counts_text()}"
                )
        fewest = LabelSettings(fraction=min(share for grid in settings.grids for share in grid.labels))
        chosen = select_labels(self.labelled, settings.finetune.split, fewest)
        num_tested = len(read_poses(self.labelled, settings.test_split))
        if chosen.num_2d_only or num_tested < self.labelled.manifest.rows_in(settings.test_split):
            raise DataError(
                f"{labelled_uri}: has frames without joints in 3D, in which the errors of a study are measured"
            )
        self.unlabelled = Mixture.open(settings.pretrain.frame_set or labelled_uri, settings.pretrain.split)
        self.digest = known_as or self.labelled.manifest.digest
        unlabelled = known_as if known_as and not settings.pretrain.frame_set else identity(self.unlabelled)
        self.works = works_of(settings, unlabelled, self.digest)
        self.results: dict[str, dict[str, Any]] = {}
        there = set(list_files(join(self.folder, "cells"), ".json"))
        for work in self.works:
            uri = join(self.folder, "cells", f"{work.key}.json")
            if uri in there:
                self.results[work.key] = read_json(uri)
        self._files = {uri.rsplit("/", 1)[-1].removesuffix(".json") for uri in there}
        self._tables = KeptTables.read(self.folder)
        self.kept = self._tables.all

    def done(self) -> set[str]:
        """Keys of what is done."""
        return done_of(self.works, self.results, self.kept.keys if self.kept is not None else ())

    def left(self) -> list[Work]:
        """What is not."""
        done = self.done()
        return [work for work in self.works if work.key not in done]

    def read(self, name: str) -> bytes:
        """A file of the study."""
        return read_bytes(join(self.folder, name))

    def prepare(self, progress: Progress) -> None:
        """The frame sets of smaller shares, and mined pairs, that the cells to come need. A table with rows that nothing else holds, and
        that this study does not ask for, is set aside."""
        self._set_aside()
        arms = [work.arm for work in self.left() if work.cell is None]
        split = self.settings.pretrain.split
        subsets = {
            target: (each.uri, target, split, arm.unlabelled, arm.seed)
            for arm in arms
            if arm.unlabelled < 1
            for each in self.unlabelled.sets
            for target in [self._subset(each, arm.unlabelled, arm.seed)]
        }
        progress.start("subsets", len(subsets), "frame sets")
        for _ in ray_map(lambda subset: write_subset(*subset), subsets.values()):
            progress.advance()
        progress.finish()
        mined: set[str] = set()
        for arm in arms:
            positives = arm_recipe(self.settings, arm).objective.positives
            for each in self.unlabelled.sets if positives.kind == "similar" else []:
                uri = self._subset(each, arm.unlabelled, arm.seed)
                if uri not in mined:
                    mined.add(uri)
                    mine(
                        MineSettings(
                            frame_set=uri,
                            name=positives.pairs,
                            splits=(split,),  # type: ignore[arg-type]
                            keypoints=self.settings.similar_keypoints,
                            detector=self.settings.detector,
                        ),
                        progress,
                    )
        for name in {arm.encoder for arm in arms}:
            if (init := self.settings.encoders[name].init) is not None:
                load_encoder(init)
        for arm in arms:
            check_recipe(self.pretraining(arm).model_copy(update={"init": None}), workers=1)

    def _set_aside(self) -> None:
        """There it is read from, as soon as its cells are asked for again."""
        table = self._tables.newest
        held = self._files.union({work.key for work in self.works}, *(each.keys for each in self._tables.aside))
        if table is not None and any(row.encoder and row.key not in held for row in table.rows):
            written = table.about.created_at.replace(":", "").split("+")[0]
            uri = join(self.folder, ASIDE, f"{written}.parquet")
            table.write(uri)
            warn(f"{uri}: results of cells that this study does not ask for, set aside")

    def row(self, work: Work) -> Row:
        """A finished fine-tuning as a row of the results."""
        return rows_of(self.settings, [self._done(work)])[0]

    def report(self) -> list[Finding]:
        """Write the results and the report of what is done; its findings."""
        self.write_results()
        return write_report(self.folder)

    def write_results(self) -> None:
        """All finished fine-tunings as one table."""
        cells = [work for work in self.works if work.cell is not None]
        by_files = done_of(self.works, self.results)
        done = [self._done(work) for work in cells if work.key in by_files]
        kept = self.kept.rows_for({work.key: work.cell for work in cells if work.cell}) if self.kept else []
        first: dict[str, Any] = {"clips": [], "clip_frames": []}
        if done:
            first = done[0][1]
        elif kept and self.kept:
            first = asdict(self.kept.about)
        settings = self.settings
        about = About(
            title=settings.title,
            findings=settings.findings.model_dump(mode="json"),
            grids=[{"name": grid.name, "axis": grid.axis} for grid in settings.grids],
            clips=first["clips"],
            clip_frames=first["clip_frames"],
            **self.labelled.describe() | {"frame_set_digest": self.digest},
            test_split=settings.test_split,
            finetune_frames=settings.finetune.frames,
            num_cells=len(cells),
            settings=to_yaml(settings),
            machine=environment().model_dump(mode="json"),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        rows = merged(rows_of(settings, done), kept, [work.key for work in cells])
        Results(about, rows).write(join(self.folder, "results.parquet"))

    def _done(self, work: Work) -> tuple[Cell, dict[str, Any], dict[str, Any] | None]:
        """A finished fine-tuning with its result and that of its pretraining."""
        assert work.cell is not None
        return work.cell, self.results[work.key], self.results[work.after] if work.after else None

    def _subset(self, each: FrameSet, share: float, seed: int) -> str:
        """URI of a share of a frame set."""
        if share == 1:
            return each.uri
        return join(self.folder, "subsets", f"{each.manifest.digest[:12]}-u{share:g}-s{seed}")

    def pretraining(self, arm: Arm) -> PretrainRecipe:
        """How an arm is pretrained, and on what."""
        recipe = arm_recipe(self.settings, arm)
        shares = [
            FrameSetShare(uri=self._subset(each, arm.unlabelled, arm.seed), weight=weight)
            for each, weight in zip(self.unlabelled.sets, self.unlabelled.weights, strict=True)
        ]
        recipe = recipe.model_copy(update={"frame_set": shares if len(shares) > 1 else shares[0].uri})
        return for_frames(recipe, arm.frames, Mixture.open(recipe.frame_set, recipe.split))
