"""How busy a machine is: processors, memory, disk, network and GPUs, under the names of MLflow's own system metrics.

MLflow's monitors would do it in their own way to MLflow: every worker would import it, and ask the server at every sample.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from pipeline.errors import one_line
from pipeline.run_log import log

_MEGA = 1e6
_JOIN_S = 5.0


class Machine:
    """This machine. Made and read by the same thread: psutil counts for each on its own."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first answer is 0; the next is what comes from now on
        self._received, self._sent = _network_bytes()
        self._gpus = _gpus()

    def read(self) -> dict[str, float]:
        """By MLflow's names: processors and GPUs in percent, processors since the last call; megabytes sent and received since this
        was made; of memory and disk what is used now."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        received, sent = _network_bytes()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGA,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGA,
            "disk_available_megabytes": disk.free / _MEGA,
            "network_receive_megabytes": (received - self._received) / _MEGA,
            "network_transmit_megabytes": (sent - self._sent) / _MEGA,
        }
        for number, gpu in enumerate(self._gpus):
            found |= {f"gpu_{number}_{name}": value for name, value in _of_gpu(gpu).items()}
        return {name: round(value, 1) for name, value in found.items()}


@contextmanager
def sampled(every_s: float, tell: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """While the block runs, give `tell` what `Machine.read` says, every `every_s` seconds, from a thread; 0: never. What goes wrong is
    in the run's log, and nowhere else."""
    if not every_s:
        yield
        return
    stop = threading.Event()

    def sample() -> None:
        said = False
        try:
            machine = Machine()
            while not stop.wait(every_s):
                try:
                    tell(machine.read())
                except Exception as error:  # of psutil, of the disk or of Ray; the next may go well again
                    if not said:
                        log("no system metrics", level="warning", what=one_line(error))
                    said = True
        except Exception as error:
            log("no system metrics", level="warning", what=one_line(error))

    thread = threading.Thread(target=sample, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_JOIN_S)


def _network_bytes() -> tuple[int, int]:
    """Received and sent by all its interfaces; nothing where it has none."""
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else (0, 0)


def _gpus() -> list[Any]:
    """NVML's handles of all GPUs of the machine, also of those that this process may not use."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no GPU
        return []


def _of_gpu(gpu: Any) -> dict[str, float]:
    """What this GPU tells; virtual ones and parts of one keep some things to themselves."""
    import pynvml

    found: dict[str, float] = {}
    with suppress(pynvml.NVMLError):
        found["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        found["memory_usage_megabytes"] = memory.used / _MEGA
        found["memory_usage_percentage"] = 100 * memory.used / memory.total
    with suppress(pynvml.NVMLError):
        watts = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000  # it says milliwatts
        found["power_usage_watts"] = watts
        found["power_usage_percentage"] = 100_000 * watts / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return found
