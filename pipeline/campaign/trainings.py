"""All trainings of a campaign, side by side on the cluster, each with a run of its own in MLflow."""

from collections.abc import Callable, Sequence

from pipeline.campaign.held_out import HeldOut
from pipeline.campaign.retraining import Retrained, Retraining, examine, finished, pretrain, read_trained, train
from pipeline.errors import EquihandError, TrainingError
from pipeline.progress import Progress
from pipeline.ray_tasks import TaskNeeds, run_tasks
from pipeline.search.trial import pretraining_folder
from pipeline.tracked import Run
from pipeline.training.board import BoardHandle, progress_board
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import batch_and_steps


def train_all(
    jobs: Sequence[Retraining],
    num_labels: int,
    load: Callable[[], SharedFrames],
    load_held_out: Callable[[], HeldOut],
    needs: TaskNeeds,
    parent: Run,
    progress: Progress,
) -> list[Retrained]:
    """Train and test what is left of the jobs; all of them, in their order. load, load_held_out: read frames, where they are needed.

    needs: of a training in one process, and of a test. parent: the campaign's run in MLflow. Raises TrainingError, after the others have
    ended, where one failed.
    """
    runs = {job.folder: parent.child(job.run_id, "retraining", job.recipe.finetune, _tags(job)) for job in jobs}
    done: dict[str, Retrained] = {}
    failed: dict[str, EquihandError] = {}
    try:
        for job in jobs:
            if (known := finished(job)) is not None:
                done[job.folder] = known
                _record(runs[job.folder], known)
        left = [job for job in jobs if job.folder not in done]
        frames = {job.folder: _frames_of(job, num_labels) for job in jobs}
        with progress_board(progress, "winner", sum(frames.values()), "frames") as board:
            board.post("before", sum(frames[folder] for folder in done))
            _pretrain(left, needs, board)
            untrained = [job for job in left if read_trained(job) is None]
            if untrained:
                for job, error in run_tasks(train, untrained, _of_driver(needs, untrained[0]), load(), board):
                    if error is not None:
                        failed[job.folder] = error
                        runs[job.folder].finish("FAILED")
        untested = [job for job in left if job.folder not in failed]
        if untested:
            progress.start("test", len(untested), "models")
            for job, found in run_tasks(examine, untested, needs, load_held_out()):
                if isinstance(found, EquihandError):
                    failed[job.folder] = found
                    runs[job.folder].finish("FAILED")
                    continue
                done[job.folder] = found
                _record(runs[job.folder], found)
                progress.advance()
            progress.finish()
    except BaseException:
        for folder in runs.keys() - done.keys() - failed.keys():
            runs[folder].finish("KILLED")
        raise
    for job in jobs:
        if (failure := failed.get(job.folder)) is not None:
            raise TrainingError(
                f"the search is done, but {len(failed)} of {len(jobs)} trainings of its winner and its default settings failed, such as "
                f"{job.name}: {failure}; the same command tries these again, --winner.seeds 0 leaves them out"
            ) from failure.__cause__
    return [done[job.folder] for job in jobs]


def _pretrain(jobs: Sequence[Retraining], needs: TaskNeeds, board: BoardHandle) -> None:
    """What no trial has pretrained, such as with the default settings where the space does not hold them."""
    missing = {
        pretraining_folder(job.recipe.pretrain, job.search): (job.recipe.pretrain, job.search, job.means)
        for job in jobs
        if job.recipe.pretrain is not None and job.settings() is None
    }
    for _, found in run_tasks(pretrain, [*missing.values()], needs, board):
        if isinstance(found, EquihandError):
            raise TrainingError(
                f"the search is done, but a pretraining of its winner or its default settings failed: {found}; the same command tries it "
                "again, --winner.seeds 0 leaves it out"
            ) from found.__cause__


def _of_driver(needs: TaskNeeds, job: Retraining) -> TaskNeeds:
    """Several workers have a place of their own; what starts them needs a CPU. One such training at a time by default: too many would hold
    each other's place for ever."""
    if job.means.num_workers == 1:
        return needs
    return TaskNeeds(cpus=1, most=needs.most or 1, start_timeout_s=needs.start_timeout_s)


def _frames_of(job: Retraining, num_labels: int) -> int:
    num_workers, recipe = job.means.num_workers, job.recipe.finetune
    batch_size, steps = batch_and_steps(recipe, num_labels, num_workers)
    return recipe.epochs * steps * batch_size * num_workers


def _tags(job: Retraining) -> dict[str, str]:
    return {"arm": job.arm, **job.frame_set}


def _record(run: Run, found: Retrained) -> None:
    """What came of it, at the times at which it did: told twice, it is there once."""
    at, step = None, 0
    for metrics in found.history:
        at, step = metrics.get("reported_at", at), int(metrics["step"])
        run.log_metrics({k: v for k, v in metrics.items() if k not in ("step", "reported_at")}, step, at)
    run.log_metrics({f"test_{name}": value for name, value in found.errors.metrics.items()}, step, at)
    run.finish(at=at)
