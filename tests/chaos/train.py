"""The job: `jobs.pretrain`, whose workers also note which frames each step took, and take their time for it."""

import json
import os
import time
from pathlib import Path

from jobs import pretrain as job
from jobs.runtime import run_job
from pipeline.frames.batches import Batch
from pipeline.training import pretrain, pretrain_run
from pipeline.training.worker import Worker

RECORDS = "CHAOS_RECORDS"
"""Names a folder. Where it holds a file `pause`, each step takes as many seconds longer."""


def recorded_epochs(settings, mixture, worker: Worker):
    """`run_epochs` with steps that are written down: {"at", "step", "rank", "frames"}."""
    run = pretrain.Steps.run
    records = Path(os.environ[RECORDS])
    pause = records / "pause"
    with open(records / f"{os.getpid()}-{worker.rank}.jsonl", "a", buffering=1) as file:

        def recorded(steps: pretrain.Steps, batch: Batch, waited: float, leaving: bool = False) -> None:
            if pause.exists():
                time.sleep(float(pause.read_text()))
            run(steps, batch, waited, leaving)
            values = {"at": time.time(), "step": steps.number, "rank": worker.rank, "frames": batch.columns["frame_id"]}
            file.write(json.dumps(values) + "\n")

        pretrain.Steps.run = recorded  # type: ignore[method-assign, assignment]
        try:
            return pretrain.run_epochs(settings, mixture, worker)
        finally:
            pretrain.Steps.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    pretrain_run.run_epochs = recorded_epochs
    run_job(job.JOB)
