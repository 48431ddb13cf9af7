"""One model trained anew, and tested: a single process with its own device, from its last checkpoint on.

<search>/winner/winner/seed-105/    the best trial's settings with one seed; <search>/winner/default/seed-105/ those of the search
    settings.yaml                   its fine-tuning settings
    checkpoint_*                    see models/kept.py
    result.json                     it is trained; the folder is now a run of fine-tuning like any other
    test.json                       and tested: ModelErrors
"""

import hashlib
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.campaign.held_out import HeldOut, HeldOutSplit, ModelErrors, measure
from pipeline.config import to_yaml
from pipeline.errors import DamagedError, DataError, MissingError
from pipeline.models.checkpoints import META, SaveCheckpoint, read_part
from pipeline.models.kept import Kept, checkpoints_in, read_best, read_history
from pipeline.run_log import log, run_log
from pipeline.runs import read_result
from pipeline.storage import delete, join, read_bytes, read_json, write_bytes, write_json
from pipeline.training.board import BoardHandle
from pipeline.training.finetune import finetune
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.worker import Worker

WINNER, DEFAULT = "winner", "default"
"""Whose settings: the best trial's, or those that the search began with."""


@dataclass(frozen=True)
class Retraining:
    """What is to be done."""

    arm: str
    recipe: FinetuneSettings
    """With its seed, and the number of epochs."""
    folder: str
    """URI."""
    search: str
    """Run id of the search."""
    about: HeldOutSplit
    """On what it is tested."""
    frame_set: dict[str, str]
    """On what it is trained, as FrameSet.describe tells it."""
    threads: int
    use_gpu: bool

    @property
    def run_id(self) -> str:
        """For MLflow, where a training with other settings, such as of a later best trial, is another run."""
        what = to_yaml(self.recipe) + self.frame_set["frame_set_digest"]
        digest = hashlib.blake2b(what.encode(), digest_size=3).hexdigest()
        return f"{self.search}-{self.arm}-seed-{self.recipe.seed}-{digest}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm} with seed {self.recipe.seed}"


@dataclass(frozen=True)
class Retrained:
    """What came of it."""

    job: Retraining
    score: float
    """Of its best checkpoint on the validation split; smaller is better."""
    wall_s: float
    history: list[dict[str, float]]
    """Metrics at each of its checkpoints."""
    errors: ModelErrors


def retrain(job: Retraining, data: dict[str, Any], held_out: HeldOut, board: BoardHandle) -> Retrained:
    """Train and test it, or what is left of that; a task on the cluster. data: the frames, as `finetune` takes them."""
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if job.use_gpu else "cpu")
    with run_log(job.folder, "worker-0", board.warn):
        if read_trained(job) is None:
            _train(job, data, device, board)
        found = finished(job)
        if found is None:
            write_json(join(job.folder, "test.json"), measure(job.folder, held_out, device).to_json())
            found = finished(job)
    assert found is not None
    return found


def measured(item: tuple[str, int, bool], held_out: HeldOut) -> ModelErrors:
    """Test a model; a task on the cluster. item: its URI, threads, whether to use a GPU."""
    uri, threads, use_gpu = item
    torch.set_num_threads(threads)
    return measure(uri, held_out, torch.device("cuda" if use_gpu else "cpu"))


def finished(job: Retraining) -> Retrained | None:
    """What there is of it, where it is trained and tested already, with these settings on these frames."""
    result = read_trained(job)
    if result is None:
        return None
    try:
        errors = ModelErrors.from_json(read_json(join(job.folder, "test.json")))
    except (MissingError, DamagedError, KeyError, TypeError):
        return None
    if not job.about.is_like(vars(errors.about)):
        return None
    return Retrained(job, result["score"], result["wall_s"], read_history(job.folder), errors)


def read_trained(job: Retraining) -> dict[str, Any] | None:
    """The result of its training, where that is done."""
    return read_result(job.folder) if _is_same(job) else None


def _train(job: Retraining, data: dict[str, Any], device: torch.device, board: BoardHandle) -> None:
    if not _is_same(job):  # of other settings or frames, such as of the trial that was the best before
        delete(job.folder)
        write_bytes(join(job.folder, "settings.yaml"), to_yaml(job.recipe).encode())
    kept = Kept(job.folder)

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, {**metrics, "wall_s": kept.wall_s, "reported_at": time.time()})

    with tempfile.TemporaryDirectory() as directory:
        try:
            resume = kept.resume(directory, board.warn)
        except DataError as error:  # once more costs less than a campaign that does not end
            board.warn(f"{error}; it starts anew")
            resume = None
        log("settings", settings=job.recipe.model_dump(mode="json"))
        worker = Worker(
            device=device,
            folder=job.folder,
            resume=resume,
            report=report,
            notice=lambda frames, figures: board.post(job.name, frames),
            say=board.warn,
        )
        returned = finetune(job.recipe, **data, worker=worker)
    result = {
        "run_id": job.run_id,
        "kind": "finetune",
        "best_checkpoint": read_best(job.folder)[0],
        "last_checkpoint": kept.newest,
        "wall_s": round(kept.wall_s, 1),
        **returned,
        "num_labels": len(data["train"]),
        **job.frame_set,
        "world_size": 1,
    }
    write_json(join(job.folder, "result.json"), result)


def _is_same(job: Retraining) -> bool:
    """Whether what lies in its folder is of these settings and frames."""
    try:
        if read_bytes(join(job.folder, "settings.yaml")) != to_yaml(job.recipe).encode():
            return False
        digests = {read_part(uri, META).get("frame_set_digest") for uri in checkpoints_in(job.folder)[-1:]}
    except MissingError:
        return False
    except DamagedError:  # `Kept` sees to it
        return True
    return digests <= {job.frame_set["frame_set_digest"]}
