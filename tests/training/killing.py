"""A training worker to kill in mid-run."""

import subprocess
import time
from pathlib import Path

import psutil


def wait_for_worker(job: subprocess.Popen, folder: Path) -> psutil.Process:
    """A training worker's process, once the run in `folder` has written a checkpoint."""
    for _ in range(3000):
        assert job.poll() is None, "the job ended before a worker could be killed"
        if list(folder.glob("checkpoint_*/meta.json")):
            for process in psutil.Process(job.pid).children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.1)
    raise AssertionError("no checkpoint was written")
