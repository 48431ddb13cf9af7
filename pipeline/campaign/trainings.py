"""All trainings of a campaign, side by side on the cluster, each with a run of its own in MLflow."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.campaign.held_out import HeldOut
from pipeline.campaign.retraining import Retrained, Retraining, finished, retrain
from pipeline.errors import EquihandError, TrainingError
from pipeline.progress import Progress
from pipeline.ray_tasks import TaskNeeds, run_tasks
from pipeline.tracked import Run
from pipeline.training.board import progress_board
from pipeline.training.finetune_recipe import batch_and_steps


def train_all(
    jobs: Sequence[Retraining],
    num_labels: int,
    load: Callable[[], tuple[dict[str, Any], HeldOut]],
    needs: TaskNeeds,
    parent: Run,
    progress: Progress,
) -> list[Retrained]:
    """Train and test what is left of the jobs; all of them, in their order. load: reads the frames, once, where something is left.

    parent: the campaign's run in MLflow. Raises TrainingError, after the others have ended, where one failed.
    """
    runs = {job.folder: _opened_run(parent, job) for job in jobs}
    done: dict[str, Retrained] = {}
    for job in jobs:
        if (known := finished(job)) is not None:
            done[job.folder] = known
            _record(runs[job.folder], known)
    left = [job for job in jobs if job.folder not in done]
    failed: dict[str, EquihandError] = {}
    if left:
        frames = {job.folder: _frames_of(job, num_labels) for job in jobs}
        with progress_board(progress, "winner", sum(frames.values()), "frames") as board:
            board.post("before", sum(frames[folder] for folder in done))
            try:
                for job, found in run_tasks(retrain, left, needs, *load(), board):
                    if isinstance(found, EquihandError):
                        failed[job.folder] = found
                        runs[job.folder].finish("FAILED")
                    else:
                        done[job.folder] = found
                        _record(runs[job.folder], found)
            except BaseException:
                for folder in runs.keys() - done.keys() - failed.keys():
                    runs[folder].finish("KILLED")
                raise
    for job in jobs:
        if (error := failed.get(job.folder)) is not None:
            raise TrainingError(
                f"the search is done, but {len(failed)} of {len(jobs)} trainings of its winner and its default settings failed, such as "
                f"{job.name}: {error}; the same command tries these again, --winner.seeds 0 leaves them out"
            ) from error.__cause__
    return [done[job.folder] for job in jobs]


def _frames_of(job: Retraining, num_labels: int) -> int:
    batch_size, steps = batch_and_steps(job.recipe, num_labels, 1)
    return job.recipe.epochs * steps * batch_size


def _opened_run(parent: Run, job: Retraining) -> Run:
    """MLflow's run of a training."""
    return parent.child(job.run_id, "retraining", job.recipe, {"arm": job.arm, **job.frame_set})


def _record(run: Run, found: Retrained) -> None:
    """What came of it, at the times at which it did: told twice, it is there once."""
    at, step = None, 0
    for metrics in found.history:
        at, step = metrics.get("reported_at"), int(metrics["step"])
        run.log_metrics({k: v for k, v in metrics.items() if k not in ("step", "reported_at")}, step, at)
    run.log_metrics({f"test_{name}": value for name, value in found.errors.metrics.items()}, step, at)
    run.finish(at=at)
