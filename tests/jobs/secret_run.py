"""The pipeline from rendered video to an evaluation in one Ray session, as small as it goes: for test_secrets.py.

python -m tests.jobs.secret_run FOLDER STORAGE; what Ray knows of the job goes to FOLDER/ray_jobs.txt.
"""

import importlib
import os
import sys
from pathlib import Path

from jobs.runtime import RaySettings, ray_session
from jobs.terminal import TerminalProgress
from pipeline.config import to_yaml
from pipeline.run_log import log, run_log


def main(folder: Path, storage: str) -> None:
    tracked = [f"--run.storage={storage}/runs", f"--tracking.uri=sqlite:///{folder}/mlflow.db"]
    trained = ["--batch_size=4", "--views.size=32", "--precision=float32", *tracked]
    jobs = {
        "synthesize": [f"--out={storage}/clips", "--num_clips=6", "--frames_per_clip=4", "--image_size=48"],
        "ingest": [
            *("--source.kind=labelled_video", f"--source.uri={storage}/clips", f"--output={storage}/frames"),
            *("--image_size=32", "--group_size=2", "--splits.train=0.5", "--splits.val=0.25", "--splits.test=0.25"),
        ],
        "pretrain": [
            *(f"--frame_set={storage}/frames", "--epochs=1", "--num_readers=1", "--encoder.width=8"),
            *("--run.run_id=pretrain", *trained),
        ],
        "finetune": [
            *(f"--frame_set={storage}/frames", "--epochs=1", f"--init={storage}/runs/pretrain"),
            *("--run.run_id=finetune", *trained),
        ],
        "evaluate": [
            *(f"--models.tuned={storage}/runs/finetune", f"--encoders.pretrained={storage}/runs/pretrain"),
            *(f"--frame_set={storage}/frames", "--split=test", f"--output={storage}/evaluation", *tracked[1:]),
        ],
    }
    with ray_session(RaySettings(address="local", num_cpus=4, object_store_mb=200)), TerminalProgress() as progress:
        for name, arguments in jobs.items():
            job = importlib.import_module(f"jobs.{name}").JOB
            given = job.load(arguments)
            print(to_yaml(given))
            job.run(job.own(given), progress, *([] if job.ray is None else [ray_session]))
        with run_log(f"{storage}/runs/pretrain", "environment"):
            # As a careless line would write it. The name of a user counts as no secret here: it may be a common word.
            shown = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_USERNAME"}
            log("the environment", environment=shown)
        from ray._private.state import state

        (folder / "ray_jobs.txt").write_text(str(state.job_table()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
