"""How busy a machine is, beside what MLflow's own monitors say of it."""

import importlib
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from pipeline.system_metrics import Machine, sampled


def of_mlflow(*names: str) -> dict[str, float]:
    """What MLflow's monitors say, by name of their modules and classes."""
    found: dict[str, float] = {}
    for name in names:
        module = importlib.import_module(f"mlflow.system_metrics.metrics.{name.lower()}_monitor")
        monitor = getattr(module, f"{name}Monitor")()
        monitor.collect_metrics()
        found |= monitor.aggregate_metrics()
    return found


def test_names_and_values_are_those_of_mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as on a machine without GPUs
    machine = Machine()
    spin = time.process_time() + 0.3
    while time.process_time() < spin:
        pass
    found, expected = machine.read(), of_mlflow("CPU", "Disk", "Network")
    assert found.keys() == expected.keys()
    for name in found:
        if name.startswith(("system_memory", "disk")):
            assert found[name] == pytest.approx(expected[name], rel=0.2), name
    assert 0 < found["cpu_utilization_percentage"] <= 100


def test_network_counts_from_the_start(monkeypatch):
    counters = [SimpleNamespace(bytes_recv=3_000_000, bytes_sent=0), SimpleNamespace(bytes_recv=8e6, bytes_sent=1e6)]
    monkeypatch.setattr(psutil, "net_io_counters", lambda: counters.pop(0))
    found = Machine().read()
    assert (found["network_receive_megabytes"], found["network_transmit_megabytes"]) == (5.0, 1.0)


def nvml(**changes) -> ModuleType:
    """NVIDIA's library on a machine with two GPUs; changes: functions that answer something else."""
    module = ModuleType("pynvml")
    answers = {
        "NVMLError": type("NVMLError", (Exception,), {}),
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=(1 + gpu) * 10e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu, memory=1),
        "nvmlDeviceGetPowerUsage": lambda gpu: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
    }
    for name, value in (answers | changes).items():
        setattr(module, name, value)
    return module


def test_gpus_are_named_as_mlflow_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.delitem(sys.modules, "mlflow.system_metrics.metrics.gpu_monitor", raising=False)
    found = {name: value for name, value in Machine().read().items() if name.startswith("gpu")}
    assert found == of_mlflow("GPU")
    assert found["gpu_1_memory_usage_megabytes"] == 20_000
    assert found["gpu_1_power_usage_percentage"] == 50


def test_a_gpu_that_keeps_something_to_itself_tells_the_rest(monkeypatch):
    module = nvml()

    def refuse(gpu):
        raise module.NVMLError

    module.nvmlDeviceGetPowerUsage = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    names = {name for name in Machine().read() if name.startswith("gpu_0")}
    assert names == {
        f"gpu_0_{what}" for what in ("utilization_percentage", "memory_usage_megabytes", "memory_usage_percentage")
    }


def test_samples_come_until_the_block_ends_whatever_goes_wrong():
    told: list[dict[str, float]] = []
    enough = threading.Event()

    def tell(metrics):
        told.append(metrics)
        if len(told) == 2:
            raise OSError("the disk is full")
        if len(told) == 4:
            enough.set()

    with sampled(0.01, tell):
        assert enough.wait(60)
    num = len(told)
    time.sleep(0.1)
    assert len(told) == num
    assert not [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_no_samples_are_taken_where_none_are_wanted():
    with sampled(0, lambda metrics: None):
        assert not [thread for thread in threading.enumerate() if thread.name == "system-metrics"]
