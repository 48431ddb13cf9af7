"""Mine pairs of frames from different videos that show a similar 2D pose, as positives for pretraining (SiMHand).

    python -m jobs.mine --frame_set data/frames
    python -m jobs.pretrain --frame_set data/frames --objective.positives.kind similar

The pairs lie beside the frame set, which stays as it is. 2D joints come from labels, or, on unlabelled video, from the
hand detector: --keypoints detector --detector.model hand_landmarker.task
"""

from typing import Any

from jobs.runtime import RaySettings, ray_session, run_job
from pipeline.frames.mine import MineSettings, mine
from pipeline.progress import SILENT, Progress


class MineJob(MineSettings):
    """Settings of the job."""

    ray: RaySettings = RaySettings()


def run(settings: MineJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns what is known of the pairs."""
    mining = MineSettings(**settings.model_dump(include=set(MineSettings.model_fields)))
    with ray_session(settings.ray):
        return mine(mining, progress).model_dump(mode="json")


if __name__ == "__main__":
    run_job(MineJob, run, "jobs.mine", __doc__)
