"""FreiHAND's evaluation: write the prediction file of a model, and score prediction files offline.

python -m jobs.freihand --data FreiHAND_pub_v2_eval --model s3://bucket/models/hand-pose --predictions pred.zip
python -m jobs.freihand --data FreiHAND_pub_v2_eval --predictions pred.zip       # scores a file that is there
"""

from typing import Any

from jobs.runtime import Job, run_job
from jobs.terminal import TerminalProgress
from pipeline.evaluation.yardsticks import CONSTANT
from pipeline.progress import SILENT, Progress
from pipeline.reports.freihand_run import FreiHandSettings, run_freihand


def run(settings: FreiHandSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns the scores."""
    result = run_freihand(settings, progress)
    if isinstance(progress, TerminalProgress):
        if result["num_predicted"]:
            progress.note(f"{result['num_predicted']} predictions: {settings.predictions}")
        scores = result["scores"]
        if scores is None:
            progress.note(f"not scored: {settings.data} has no evaluation_xyz.json")
        else:
            constant, metrics = scores["constant"] or {}, scores["pose_metrics"]
            names = [name for name in scores if name.startswith(("xyz_", "mesh_", "f_"))]
            rows = [[name, scores[name], constant.get(name)] for name in names]
            rows += [[name, metrics[name], 0.0] for name in ("pa_skill", "mpjpe_skill") if name in metrics]
            title = f"FreiHAND, {scores['num_samples']} hands (means in cm)"
            progress.table(title, ["score", "value", CONSTANT], rows)
            progress.note(scores["conclusion"] or f"no {CONSTANT}: neither the model nor training_xyz.json brings one")
    return result


JOB = Job("freihand", FreiHandSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
