"""Predict hand joints in images, video or a frame set.

    python -m jobs.predict --model s3://bucket/models/hand-pose --input video.mp4 \\
        --detector.model hand_landmarker.task --output predictions --overlay

Writes predictions.parquet, one row a hand, and if asked the input with the hands drawn over it.
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.prediction.run import PREDICTIONS, PredictSettings, predict, prepare
from pipeline.progress import SILENT, Progress


def run(settings: PredictSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns counts, what was left out, and notes."""
    prepared = prepare(settings)
    with session():
        result = predict(prepared, progress)
    if isinstance(progress, TerminalProgress):
        for note in result["notes"]:
            progress.note(f"note: {note}")
        hands, frames = result["num_hands"], result["num_frames"]
        progress.note(f"{hands:,} hands in {frames:,} frames: {settings.output}/{PREDICTIONS}")
    return result


JOB = Job("predict", PredictSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
