"""A small pretraining on a Ray of its own, and what the node's metrics endpoint said of its last step: python -m ... FOLDER."""

import json
import os
import sys
import threading
import time
import urllib.request
from pathlib import Path

EVERY_S = 0.5
PATIENCE_S = 90
SETTLE_S = 3  # every figure is exported once a second
FRAMES_SEEN = 192


def scrape() -> str:
    """The endpoint of this node."""
    import ray

    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def is_whole(text: str) -> bool:
    """Whether the endpoint knows every figure of the run, and its last step."""
    from pipeline.gauges import METRICS, exported

    names = [name for metric in METRICS for name in exported(metric)]
    seen = [line for line in text.splitlines() if line.startswith("ray_equihand_frames_seen{")]
    return all(name in text for name in names) and any(float(line.split()[-1]) == FRAMES_SEEN for line in seen)


def main(folder: str) -> None:
    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - it is 10 s by default
    from jobs.runtime import RaySettings, ray_session
    from pipeline import gauges
    from pipeline.progress import SILENT
    from pipeline.training import waiting
    from pipeline.training.launch import train_on_workers
    from pipeline.training.pretrain import run_epochs
    from pipeline.training.pretrain_recipe import check_recipe
    from pipeline.training.pretrain_run import PretrainSettings

    settings = PretrainSettings.model_validate(
        {
            "frame_set": f"{folder}/frames",
            "epochs": 2,
            "batch_size": 16,
            "log_every": 2,
            "shares": 1,
            "max_bad_fraction": 0.1,
            "num_readers": 1,
            "precision": "float32",
            "views": {"size": 32},
            "encoder": {"width": 8},
            "projection": {"hidden": 32, "outputs": 16},
            "workers": {"threads": 1},
            "run": {"storage": f"{folder}/runs", "run_id": "watched"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )

    def loop(settings, mixture, worker):
        """Its last figures are told every second, as long as its process lives: until they have been scraped."""
        gauges.REPEAT_S = 0.0
        result = run_epochs(settings, mixture, worker)
        deadline = time.monotonic() + PATIENCE_S
        while not Path(folder, "is_scraped").exists() and time.monotonic() < deadline:
            time.sleep(EVERY_S)
        return result

    waiting.REPEAT_S = 0.0
    seen, ended = [""], threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            try:
                seen[0] = scrape()
                if is_whole(seen[0]):
                    time.sleep(SETTLE_S)
                    seen[0] = scrape()
                    Path(folder, "is_scraped").touch()
                    return
            except OSError:  # it is starting still
                continue

    with ray_session(RaySettings(address="local", num_cpus=2, object_store_mb=128)):
        watcher = threading.Thread(target=watch)
        watcher.start()
        mixture = check_recipe(settings, 1)
        result = train_on_workers(
            loop, settings, mixture, kind="pretrain", num_best=1, total=0, progress=SILENT, tags={}
        )
        ended.set()
        watcher.join()
    Path(folder, "scraped.json").write_text(json.dumps({"result": result, "text": seen[0]}))


if __name__ == "__main__":
    main(sys.argv[1])
