"""Mine pairs of frames from different videos that show a similar 2D pose, as positives for pretraining (SiMHand).

    python -m jobs.mine --frame_set data/frames
    python -m jobs.pretrain --frame_set data/frames --objective.positives.kind similar

The pairs lie beside the frame set, which stays as it is. 2D joints come from labels, or, on unlabelled video, from the
hand detector: --keypoints detector --detector.model hand_landmarker.task
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from pipeline.frames.mine import MineSettings, mine
from pipeline.progress import SILENT, Progress


def run(settings: MineSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns what is known of the pairs."""
    with session():
        return mine(settings, progress).model_dump(mode="json")


JOB = Job("mine", MineSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
