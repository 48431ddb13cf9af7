"""The command `equihand NAME ...`: the same as `python -m jobs.NAME ...`."""

import runpy
import sys
from typing import NoReturn

JOBS = {
    "synthesize": "render labelled hand video",
    "ingest": "video, images or published sets -> frame set",
    "inspect": "a frame set's data card, and whether it is whole",
    "mine": "frames of other videos with a similar pose, as positives",
    "plan": "hours, storage and network of a pretraining",
    "pretrain": "frame set -> encoder",
    "finetune": "encoder + labelled frame set -> pose model",
    "search": "fine-tuning with many settings",
    "campaign_report": "a search's folder -> its report",
    "study": "what a method is worth: a grid of pretrainings and fine-tunings",
    "evaluate": "pose models -> metrics, comparison, report",
    "compare": "runs of any kind: settings that differ, their models on the same frames",
    "freihand": "FreiHAND's files and official scores",
    "predict": "images, video or a frame set -> joints, overlay video",
    "export": "weights, torch.export, ONNX, MLflow model, card",
    "reproduce": "a finished run once more, and what differs",
    "champion": "versions of a registered model, which is in use, and back to the one before",
    "sync": "what MLflow did not get of runs while it was away",
    "rendering_sheets": "pictures of what the settings of synthesize do",
    "demo": "all of them, on this machine",
}
"""What can be run here or submitted, and what it is for."""
_OTHERS = {
    "submit": "any of them on a Ray cluster",
    "bench": "measurements on this machine",
    "object_store": "a folder as an S3 endpoint on loopback",
}


def main() -> NoReturn:
    """Entry of the console command."""
    known = JOBS | _OTHERS
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: equihand NAME [--setting value ...]\n")
        print("\n".join(f"  {job:17}{what}" for job, what in known.items()))
        print("\n`equihand NAME --help` lists a job's settings.")
        sys.exit(0)
    if name not in known:
        print(f"error: unknown job '{name}'; there are: {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=True)
    sys.exit(0)
