"""Runs a study's cells as Ray tasks: in order, as many at a time as the cluster holds, each once.

Not with ray_map: cells ask for CPUs and GPUs of their own, start from each other's results, and stop at a deadline.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import Settings
from pipeline.errors import EquihandError
from pipeline.ray_cluster import autoscaler_state, choose_gpus, is_fixed
from pipeline.ray_tasks import MAX_RETRIES, value_of
from pipeline.run_log import run_log
from pipeline.study.cells import Notice, Place, finetune_cell, pretrain_cell
from pipeline.study.grid import arm_recipe, cell_recipe
from pipeline.study.plan import Work
from pipeline.study.settings import CellSettings
from pipeline.tracked import Origin, Run
from pipeline.tracking_links import Source
from pipeline.training.board import BoardHandle
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe

if TYPE_CHECKING:
    from pipeline.study.run import Study

_POLL_S = 1.0
_POST_S = 0.5
_MOST_ASKED_FOR = 16  # of an autoscaler, where max_concurrent is not given

Say = Callable[[str], None]
"""Receives lines for people."""


class Schedule:
    """What runs, what waits, and what failed."""

    def __init__(self, study: "Study", parent: Run, board: BoardHandle, say: Say, deadline: float | None) -> None:
        """parent: MLflow run of the study. deadline: seconds since 1970 after which nothing begins, and cells stop at
        their next checkpoints."""
        self.study, self.settings = study, study.settings
        self.parent, self.board, self.say, self.deadline = parent, board, say, deadline
        self.failed: dict[str, str] = {}
        self._gpus: dict[str, float] = {}

    def run(self) -> dict[str, str]:
        """Run what is left; {key: reason} of what failed."""
        import ray

        study = self.study
        waiting = study.left()
        running: dict[Any, tuple[Work, Run]] = {}
        done = study.done()
        before = sum(work.frames for work in study.works if work.key in done)
        try:
            while waiting or running:
                while work := self._next(waiting, [work for work, _ in running.values()]):
                    waiting.remove(work)
                    tracked = self._track(work)
                    running[self._start(work)] = (work, tracked)
                if not running:
                    break
                for reference in ray.wait(list(running), timeout=_POLL_S)[0]:
                    self._ended(reference, *running.pop(reference))
                self.board.post("before", before, cells=f"{len(study.done())}/{len(study.works)}")
        finally:
            for reference, (_, tracked) in running.items():
                ray.cancel(reference, force=True)
                tracked.finish("KILLED")
        return self.failed

    def _next(self, waiting: Sequence[Work], running: Sequence[Work]) -> Work | None:
        """The first work that can start now."""
        if self.deadline is not None and time.time() > self.deadline:
            return None
        ready = (work for work in waiting if work.after is None or work.after in self.study.results)
        work = next(ready, None)
        return work if work is not None and self._has_room(work, running) else None

    def _has_room(self, work: Work, running: Sequence[Work]) -> bool:
        """Whether the cluster holds one more, with a CPU for reading beside each. The first one is always asked for."""
        import ray

        if not running:
            return True
        if self.settings.max_concurrent is not None and len(running) >= self.settings.max_concurrent:
            return False
        if not is_fixed() and autoscaler_state() is not None:  # nodes come for what waits
            return len(running) < _MOST_ASKED_FOR
        total = ray.cluster_resources()
        cpus, gpus = zip(*(self._resources(each) for each in [*running, work]), strict=True)
        return sum(cpus) + len(cpus) <= total.get("CPU", 0) and sum(gpus) <= total.get("GPU", 0) + 1e-6

    def _resources(self, work: Work) -> tuple[int, float]:
        """CPUs and GPUs of a work."""
        name = "pretrain_cell" if work.cell is None else "finetune_cell"
        cell: CellSettings = getattr(self.settings, name)
        if cell.gpus is not None:
            return cell.cpus, cell.gpus
        if name not in self._gpus:  # asked once: this is needed at every look
            self._gpus[name] = float(choose_gpus(None, 1, f"{name}.gpus"))
        return cell.cpus, self._gpus[name]

    def _start(self, work: Work) -> Any:
        """The work as a Ray task."""
        import ray

        cpus, gpus = self._resources(work)
        place = Place(work.key, self.study.folder, self.deadline, threads=cpus, use_gpu=gpus > 0)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_RETRIES)
        if work.cell is None:
            return remote(_pretrain).remote(place, self.study.pretraining(work.arm), self.board)
        encoder = self.study.results[work.after]["encoder"] if work.after else None
        settings = self.settings
        return remote(_finetune).remote(
            place,
            cell_recipe(settings, work.cell, encoder),
            settings.validations,
            settings.test_split,
            settings.probe_frames,
            self.board,
        )

    def _ended(self, reference: Any, work: Work, tracked: Run) -> None:
        """Take note of how a work ended. What starts from a failed pretraining never gets ready."""
        import ray

        try:
            result = value_of(reference)
        except (EquihandError, ray.exceptions.RayError) as error:
            self.failed[work.key] = str(error).strip().splitlines()[-1]
            self.say(f"failed: {work.words()}: {self.failed[work.key]}")
            tracked.finish("FAILED")
            return
        if "stopped" in result:
            tracked.finish("KILLED")
            return
        self.study.results[work.key] = result
        for metrics in result["history"]:
            tracked.log_metrics({k: v for k, v in metrics.items() if k != "step"}, step=int(metrics["step"]))
        seconds = f"{result['wall_s']:.0f} s"
        if work.cell is None:
            self.say(f"{work.words()}: loss {result['history'][-1]['loss']:.3f}, {seconds}")
        else:
            row = self.study.row(work)
            names = ("pa_epe_mm", "root_relative_epe_mm", "pa_skill", "root_relative_skill", "probe_pa_epe_mm")
            tracked.log_metrics({name: getattr(row, name) for name in names}, step=int(result["history"][-1]["step"]))
            self.say(
                f"{work.words()}: PA-EPE {row.pa_epe_mm:.1f} mm (constant {row.constant_pa_epe_mm:.1f}), root-relative "
                f"{row.root_relative_epe_mm:.1f} mm ({row.constant_root_relative_epe_mm:.1f}), {seconds}"
            )
            self.study.write_results()
        tracked.finish()

    def _track(self, work: Work) -> Run:
        """An MLflow run for the work."""
        settings = self.settings
        recipe: Settings
        recipe = arm_recipe(settings, work.arm) if work.cell is None else cell_recipe(settings, work.cell, None)
        tags = {"study": self.study.run_id, "method": work.arm.method, "grid": work.grid}
        before = [Source("cell", f"{self.study.run_id}-{work.after}")] if work.after else []
        return self.parent.child(f"{self.study.run_id}-{work.key}", "cell", recipe, tags, Origin(before))


def _pretrain(place: Place, recipe: PretrainRecipe, board: BoardHandle) -> dict[str, Any]:
    with run_log(place.folder, place.key, board.warn):
        return _with_progress(board, place.key, lambda notice: pretrain_cell(place, recipe, notice, board.warn))


def _finetune(
    place: Place,
    settings: FinetuneSettings,
    validations: int,
    test_split: str,
    probe_frames: int,
    board: BoardHandle,
) -> dict[str, Any]:
    with run_log(place.folder, place.key, board.warn):
        return _with_progress(
            board,
            place.key,
            lambda notice: finetune_cell(place, settings, validations, test_split, probe_frames, notice, board.warn),
        )


def _with_progress(board: BoardHandle, key: str, run: Callable[[Notice], dict[str, Any]]) -> dict[str, Any]:
    """The result of `run`, whose notices the board gets twice a second, and at last how far it came. One in every step of a small
    network takes 3 % of a core."""
    due = 0.0

    def notice(frames: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _POST_S
            board.post(key, frames)

    result = run(notice)
    if "frames" in result:
        board.post(key, result["frames"])
    return result
