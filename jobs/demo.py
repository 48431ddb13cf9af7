"""The whole pipeline on one machine, from rendered hand video to a report: no GPU, no account, a few minutes.

    make demo                    (or: python -m jobs.demo)
    make demo ARGS=--fresh       start over

Stages: synthesize hand video -> ingest it into a frame set -> pretrain an encoder on all of it without labels -> fine-tune on a
few labels, from the pretrained encoder and from scratch with the same budget, both at the same time -> evaluate both beside
what one fixed hand reaches -> report. Everything lies in an S3 object store on loopback, as it would on a cluster. Run it again
and finished stages are skipped; after Ctrl-C it goes on.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs import ingest, synthesize
from jobs.object_store import ObjectStore
from jobs.runtime import Job, RaySettings, Session, run_job
from jobs.terminal import TerminalProgress
from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.ray_map import beside
from pipeline.reports.evaluate import EvaluateSettings, comparison_table, evaluate
from pipeline.reports.report_data import Stage
from pipeline.storage import copy_to_local
from pipeline.tracking import TrackingSettings
from pipeline.training.finetune_run import FinetuneRunSettings, run_finetune
from pipeline.training.pretrain_run import PretrainSettings, run_pretrain

BUCKET = "equihand"
STATE_NAME, LOG_NAME = "state.json", "demo.log"


class DemoJob(Settings):
    """Size of the demo; the defaults fit two cores, 6 GB of memory and less than 8 minutes."""

    folder: str = "demo"
    """Local folder for everything: object store, MLflow database, logs, report."""
    fresh: bool = False
    """Delete what an earlier demo left and start over."""
    num_clips: int = Field(default=800, ge=60)
    """Rendered clips, each of another hand before another background."""
    pretrain_epochs: int = Field(default=24, ge=1)
    """Passes over the training frames without labels."""
    num_labels: int = Field(default=1200, ge=40)
    """Labelled frames to fine-tune on."""
    finetune_frames: int = Field(default=32_000, ge=100)
    """Labelled frames that each fine-tuning sees, repeats counted."""
    seed: int = Field(default=5, ge=0)
    """Seed of rendering and training."""


def run(settings: DemoJob, progress: TerminalProgress, session: Session) -> dict[str, Any]:
    """Run what is not done yet; returns the evaluation's result."""
    folder = Path(settings.folder).absolute()
    if settings.fresh:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stages = _Stages(folder / STATE_NAME, _identity(settings), progress)
    steps = _steps(settings, folder, progress)
    progress.plan(len(steps))
    report = folder / "report.html"
    if not all(name in stages.results for name, _ in steps) or not report.exists():
        with ObjectStore(folder / "object_store", bucket=BUCKET) as store, session():
            for name, step in steps:
                stages.run(name, step, store.save)
            copy_to_local(stages.results["evaluate"]["report"], report)
    else:
        for name, step in steps:
            stages.run(name, step)
    evaluated = stages.results["evaluate"]
    _say_what_came_out(evaluated, report, progress)
    return evaluated


def _steps(
    settings: DemoJob, folder: Path, progress: TerminalProgress
) -> list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """Name and action of each stage; an action gets the results of the stages before it."""
    root = f"s3://{BUCKET}"
    storage = {"storage": f"{root}/runs"}
    tracking = TrackingSettings(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="demo").model_dump()
    encoder = {"width": 24}
    view_size = 64

    def synthesize_clips(_: dict[str, Any]) -> dict[str, Any]:
        # Few frames far apart: many hands and poses for little rendering.
        job = synthesize.SynthesizeJob(
            out=f"{root}/clips",
            num_clips=settings.num_clips,
            frames_per_clip=6,
            fps=2,
            image_size=96,
            viewpoint="desk",
            seed=settings.seed,
        )
        return synthesize.run(job, progress)

    def ingest_clips(_: dict[str, Any]) -> dict[str, Any]:
        job = ingest.IngestJob.model_validate(
            {
                "source": {"kind": "labelled_video", "uri": f"{root}/clips", "name": "synthetic"},
                "output": f"{root}/frames",
                "image_size": 96,
                # All frames of a clip side by side: same hand, light and background, so that only the pose tells them apart.
                "group_size": 6,
                "group_stride_s": 0.5,
                "splits": {"train": 0.8, "val": 0.08, "test": 0.12},
                "rows_per_shard": 1024,
                "row_group_size": 128,
                "seed": settings.seed,
            }
        )
        return ingest.run(job, progress)

    def pretrain_encoder(_: dict[str, Any]) -> dict[str, Any]:
        job = PretrainSettings.model_validate(
            {
                "frame_set": f"{root}/frames",
                "epochs": settings.pretrain_epochs,
                "batch_size": 64,
                "seed": settings.seed,
                "views": {"size": view_size},
                # Points read from heat maps, each a place in the image: what is undone is undone on places.
                "projection": {"kind": "spatial"},
                # A batch holds whole clips, whose frames only the pose tells apart: these negatives count a hundredfold.
                "objective": {
                    "inverse": "similarity",
                    "temperature": 0.1,
                    "negatives": {"same_clip": "weight", "weight": 100},
                },
                "encoder": encoder,
                "optimiser": {"learning_rate": 2e-3, "weight_decay": 1e-4, "warmup_fraction": 0.05},
                "probe": {"enabled": True, "every_epochs": 8, "num_train": 1000, "num_test": 400},
                "checkpoint": {"every_epochs": 5, "keep": 2},
                "workers": {"num_workers": 2},
                "num_readers": 1,
                "window_mb": 48,
                "run": {**storage, "run_id": "demo-pretrain"},
                "tracking": tracking,
            }
        )
        return run_pretrain(job, progress)

    def finetuning(init: str | None, run_id: str) -> FinetuneRunSettings:
        return FinetuneRunSettings.model_validate(
            {
                "frame_set": f"{root}/frames",
                "init": init,
                "encoder": encoder,
                "views": {"size": view_size},
                "labels": {"num": settings.num_labels},
                # Small batches: as many steps as the time allows. One thread: two hold each other up with so few frames.
                "batch_size": 16,
                "optimiser": {"learning_rate": 1e-3, "weight_decay": 0.05},
                "loss": {"weight_aligned": 30.0},
                "frames": settings.finetune_frames,
                "validate_every": max(1, settings.finetune_frames // settings.num_labels // 4),
                "max_validation_frames": 400,
                "seed": settings.seed,
                "workers": {"num_workers": 1, "threads": 1},
                "run": {**storage, "run_id": run_id},
                "tracking": tracking,
            }
        )

    def finetune_twice(results: dict[str, Any]) -> dict[str, Any]:
        with beside(run_finetune, finetuning(None, "demo-finetune-scratch")) as from_scratch:
            pretrained = run_finetune(finetuning(results["pretrain"]["last_checkpoint"], "demo-finetune"), progress)
            return {"pretrained": pretrained, "from scratch": from_scratch()}

    def evaluate_models(results: dict[str, Any]) -> dict[str, Any]:
        job = EvaluateSettings.model_validate(
            {
                "models": {
                    "pretrained (PeCLR)": results["fine-tune twice"]["pretrained"]["best_checkpoint"],
                    "from scratch": results["fine-tune twice"]["from scratch"]["best_checkpoint"],
                    "equihand-small (shipped)": "equihand-small",
                },
                "baseline": "from scratch",
                "frame_set": f"{root}/frames",
                "split": "test",
                "output": f"{root}/evaluation",
                "pretrain_run": f"{root}/runs/demo-pretrain",
                "title": "Equihand demo",
                "tracking": tracking,
            }
        )
        stages = [Stage(name=s.name, seconds=s.seconds, skipped=s.skipped) for s in progress.stage_times]
        return evaluate(job, progress, stages) | {"report": f"{root}/evaluation/report.html"}

    return [
        ("synthesize", synthesize_clips),
        ("ingest", ingest_clips),
        ("pretrain", pretrain_encoder),
        ("fine-tune twice", finetune_twice),
        ("evaluate", evaluate_models),
    ]


class _Stages:
    """Which stages are done, kept in a file: a finished one is not run again."""

    def __init__(self, path: Path, identity: str, progress: TerminalProgress) -> None:
        self.path, self.progress = path, progress
        if not path.exists():
            path.write_text(json.dumps({"identity": identity, "stages": {}}))
        self.state = json.loads(path.read_text())
        if self.state["identity"] != identity:
            raise SettingsError(f"{path.parent} holds a demo of other settings; use --fresh to start over")

    @property
    def results(self) -> dict[str, Any]:
        """Results of the finished stages, by name."""
        return {name: stage["result"] for name, stage in self.state["stages"].items()}

    def run(
        self, name: str, action: Callable[[dict[str, Any]], dict[str, Any]], keep: Callable[[], Any] | None = None
    ) -> None:
        """Run a stage, unless it is done. keep: saves what the stage made; only then is it marked as done."""
        if name in self.state["stages"]:
            self.progress.skip_stage(name, seconds=self.state["stages"][name]["seconds"])
            return
        started = time.monotonic()
        with self.progress.stage(name):
            result = action(self.results)
            if keep is not None:
                keep()
        self.state["stages"][name] = {"result": result, "seconds": round(time.monotonic() - started, 1)}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self.path)


def _clear(folder: Path) -> None:
    """Delete an earlier demo, but nothing that is not one; the log goes on."""
    found = [path for path in folder.iterdir() if path.name != LOG_NAME] if folder.exists() else []
    if found and not (folder / STATE_NAME).exists():
        raise SettingsError(f"setting 'folder' = '{folder}': holds files that are not a demo's; they are not deleted")
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _identity(settings: DemoJob) -> str:
    decisive = settings.model_dump(mode="json", exclude={"fresh", "folder"})
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _say_what_came_out(evaluated: dict[str, Any], report: Path, progress: TerminalProgress) -> None:
    progress.table("Result on unseen hands (test split)", *comparison_table(evaluated))
    for sentence in evaluated.get("conclusions", ()):
        progress.note(sentence)
    database = report.with_name("mlflow.db")
    progress.note(f"report:  {report}")
    progress.note(f"MLflow:  {sys.executable} -m mlflow ui --backend-store-uri sqlite:///{database} --host 127.0.0.1")


JOB = Job(
    "demo",
    DemoJob,
    run,
    __doc__,
    ray=RaySettings(address="local", num_cpus=4, object_store_mb=400),
    chatter_to=lambda settings: Path(settings.folder) / LOG_NAME,
)

if __name__ == "__main__":
    run_job(JOB)
