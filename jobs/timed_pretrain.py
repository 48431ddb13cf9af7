"""A short real pretraining on frames made for it, and how fast it was. Needs a running Ray of this machine."""

import tempfile
import time
from typing import NamedTuple

import torch

from jobs.bench_frames import write_frames
from pipeline.errors import TrainingError
from pipeline.progress import Progress
from pipeline.storage import join
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.training.pretrain_run import PretrainSettings, run_pretrain

_SETTLED = 0.3  # of the job, its first batches, and the caches of the machine, left out


class Timed(NamedTuple):
    """How fast it was."""

    frames_per_s: float
    """Of all workers, once it has settled."""
    around_s: float
    """Seconds of the run beyond its frames at that rate: workers, network and first batch, the last checkpoint."""


def timed_pretrain(recipe: PretrainRecipe, num_rows: int, image_size: int, num_workers: int) -> Timed:
    """Pretrain for `recipe.epochs` on `num_rows` frames of that side (pixels), unprobed; one torch thread for each worker on a CPU."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        frames = join(folder, "frames")
        write_frames(frames, num_rows, image_size)
        values = recipe.model_dump() | {
            "frame_set": frames,
            "log_every": PretrainRecipe.model_fields["log_every"].default,
            "probe": {"enabled": False},
            "workers": {"num_workers": num_workers, "threads": None if torch.cuda.is_available() else 1},
            "run": {"storage": join(folder, "runs")},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
        wall_s = run_pretrain(PretrainSettings.model_validate(values), clock)["wall_s"]
    rate = clock.rate()
    return Timed(rate, max(0.0, wall_s - clock.seen[-1][1] / rate))


class Clock(Progress):
    """When how many frames were done."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def update(self, done: int, **figures: float | str) -> None:
        if done and (not self.seen or self.seen[-1][1] != done):
            self.seen.append((time.perf_counter(), done))

    def rate(self) -> float:
        """Frames a second once it has settled. Raises TrainingError where it was over before that could be seen."""
        last, total = self.seen[-1] if self.seen else (0.0, 0)
        first, done = next(((when, frames) for when, frames in self.seen if frames >= _SETTLED * total), (last, total))
        if done == total:
            raise TrainingError("the training was over before its speed could be seen; measure more steps")
        return (total - done) / (last - first)
