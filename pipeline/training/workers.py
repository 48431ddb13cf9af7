"""The workers of a training run: how many, on what, for how long waited for."""

from typing import Any

from pydantic import Field, field_validator

from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.ray_cluster import choose_gpus, is_fixed
from pipeline.runs import RunSettings
from pipeline.tracking import TrackingSettings


class WorkerSettings(Settings):
    """The workers of a training run."""

    num_workers: int | tuple[int, int] = 1
    """Number of training processes: one for each GPU, or for every few CPU cores. [least, most] takes what the cluster has, and
    goes on with fewer or more when nodes go or come (pretraining only)."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs that each worker reserves."""
    use_gpu: bool | None = None
    """Whether to train on GPUs. none uses them if the cluster has one for each worker, and is refused where an autoscaler starts
    nodes."""
    labels: dict[str, str] = {}
    """Labels of the cluster's nodes that train, such as {ray-subcluster: training}; {} takes any."""
    reader_labels: dict[str, str] = {}
    """Labels of the nodes that read frames for them, such as {ray-subcluster: data}; {} takes any."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch in each worker. none divides the usable cores of a node between its workers (1 thread with a
    GPU)."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run restarts from its last checkpoint after losing a worker, before it gives up. Nodes that are taken
    away after a notice do not count."""
    start_timeout_s: float = Field(default=1800, gt=0)
    """Seconds for which a run waits for nodes, workers, a first step or data, at the start and later, before it ends with
    a line that names what is missing. What it waits for is said from ten seconds on."""
    hang_timeout_s: float = Field(default=600, ge=5)
    """Seconds without a step or an answer after which workers count as hanging: they are ended, and restart from the last
    checkpoint, within `max_failures`. It must be longer than the longest step; waiting for data, the first step,
    probes and validations do not count."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_or_two(cls, value: Any) -> Any:
        try:
            numbers = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in (1, 2) or numbers[0] < 1 or numbers[0] > numbers[-1]:
            raise ValueError("must be a number of at least 1, or two of them, [least, most]")
        return numbers[0] if len(numbers) == 1 else tuple(numbers)

    @property
    def least(self) -> int:
        """Workers without which a run does not train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """Workers that a run has where the cluster has room for them."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class LaunchSettings(Settings):
    """Where a run trains, is kept and is tracked."""

    workers: WorkerSettings = WorkerSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def reader_cpus(workers: WorkerSettings, use_gpu: bool) -> int:
    """Logical CPUs that a task which reads frames reserves. Where the number of workers is open, they take all that there are."""
    return 1 if use_gpu or workers.least == workers.most else 0


def check_resources(workers: WorkerSettings) -> bool:
    """Whether to use GPUs. Raises SettingsError where the cluster can never hold the workers, and a reader beside them."""
    least = workers.least
    use_gpu = choose_gpus(workers.use_gpu, least, "workers.use_gpu")
    if is_fixed():
        _check_fixed(workers, use_gpu)
    return use_gpu


def _check_fixed(workers: WorkerSettings, use_gpu: bool) -> None:
    """Of a Ray of one node, to which nothing will come."""
    import ray

    total, least = ray.cluster_resources(), workers.least
    cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
    if use_gpu and gpus < least:
        raise SettingsError(
            f"setting 'workers.num_workers' = {least}: this machine has {gpus} GPUs; use fewer workers or "
            "workers.use_gpu false"
        )
    reserved = reader_cpus(workers, use_gpu)
    needed = least * workers.cpus_per_worker + reserved
    if cpus < needed:
        to_read = " (one of them to read data)" if reserved else ""
        raise SettingsError(
            f"setting 'workers.num_workers' = {least}: {needed:g} logical CPUs are needed{to_read}, this Ray has {cpus:g}; use "
            "fewer workers, or a larger ray.num_cpus"
        )
