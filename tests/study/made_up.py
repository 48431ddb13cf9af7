"""Results of studies that never ran, with the truth known."""

from dataclasses import replace

import numpy as np

from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.study.results import About, Results, Row
from pipeline.study.settings import SCRATCH, FindingsSettings

NUM_CLIPS = 60
CONSTANT_MM = {"pa_epe": 14.6, "root_relative_epe": 100.0}
GRIDS = [
    {"name": "Findings", "axis": "methods"},
    {"name": "Unlabelled", "axis": "unlabelled"},
    {"name": "Labels", "axis": "labels"},
    {"name": "Length", "axis": "length"},
]


def study(
    means: dict[str, float],
    *,
    seeds: int = 3,
    unlabelled: dict[float, float] | None = None,
    claims: bool = True,
    noise: float = 0.5,
    spread: float = 0.1,
    pretrain_seen: dict[str, int] | None = None,
) -> Results:
    """Methods with 10 % of the labels whose true PA-EPE is known, mm; of root-relative errors, five times that.

    unlabelled: share -> PA-EPE of peclr. noise: standard deviation of a clip's error, beside how hard the clip is.
    spread: how far the seeds lie apart, one by one; against peclr's, and the largest share's, all others' seeds are in
    reverse.
    """
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 2, NUM_CLIPS)
    rows: list[Row] = []
    for seed in range(seeds):
        luck = spread * (seed - (seeds - 1) / 2)
        for method, mean in means.items():
            seen = (pretrain_seen or {}).get(method, 64_000)
            mean += luck if method == "peclr" else -luck
            rows.append(_row(rng, method, mean, hardness, noise, seed=seed, grids=["Findings"], seen=seen))
        for share, mean in (unlabelled or {}).items():
            mean += luck if share == 1 else -luck
            row = _row(rng, "peclr", mean, hardness, noise, seed=seed, grids=["Unlabelled"], seen=64_000)
            rows.append(
                replace(row, unlabelled=share, unlabelled_frames=round(16_000 * share), key=f"{row.key}-{share}")
            )
        for method, factor in ((CONSTANT, 1.0), (RANDOM, 1.4)):
            constant = factor * CONSTANT_MM["pa_epe"]
            row = _row(rng, method, constant, hardness, noise, seed=seed, grids=["Findings"], seen=0)
            relative = (factor * CONSTANT_MM["root_relative_epe"] + hardness).tolist()
            blind = replace(
                row,
                encoder="",
                root_relative_epe_mm=float(np.mean(relative)),
                clip_root_relative_epe_mm=relative,
                probe_pa_epe_mm=None,
                probe_root_relative_epe_mm=None,
                clip_probe_pa_epe_mm=None,
                clip_probe_root_relative_epe_mm=None,
                grids=["Findings", "Unlabelled"],
            )
            rows.append(blind)
    judged = FindingsSettings(claims=claims, invariant=("simclr", "simclr-same-views"))
    return Results(about(judged), rows)


def about(judged: FindingsSettings) -> About:
    return About(
        title="Made up <study>",
        findings=judged.model_dump(mode="json"),
        grids=GRIDS,
        clips=[f"clip-{number}" for number in range(NUM_CLIPS)],
        clip_frames=[4] * NUM_CLIPS,
        frame_set="s3://bucket/frames",
        frame_set_digest="ab" * 16,
        test_split="test",
        finetune_frames=36_000,
        num_cells=12,
        settings="title: <made up>\n",
        machine={"num_cpus": 2, "memory_gb": 15.5, "accelerator": "", "platform": "Linux", "versions": {"torch": "2"}},
        created_at="2026-11-01T10:00:00+00:00",
    )


def _row(
    rng: np.random.Generator,
    method: str,
    mean: float,
    hardness: np.ndarray,
    noise: float,
    *,
    seed: int,
    grids: list[str],
    seen: int,
) -> Row:
    pa = mean + hardness + rng.normal(0, noise, NUM_CLIPS)
    relative, probe = 5 * pa, pa + 1
    scratch = method in (SCRATCH, CONSTANT, RANDOM)
    return Row(
        key=f"{method}-{seed}",
        method=method,
        labels=0.1,
        labelled_frames=1600,
        seed=seed,
        grids=grids,
        pa_epe_mm=float(pa.mean()),
        root_relative_epe_mm=float(relative.mean()),
        pa_skill=1 - float(pa.mean()) / CONSTANT_MM["pa_epe"],
        root_relative_skill=1 - float(relative.mean()) / CONSTANT_MM["root_relative_epe"],
        constant_pa_epe_mm=CONSTANT_MM["pa_epe"],
        constant_root_relative_epe_mm=CONSTANT_MM["root_relative_epe"],
        clip_pa_epe_mm=pa.tolist(),
        clip_root_relative_epe_mm=relative.tolist(),
        encoder="half",
        probe_pa_epe_mm=float(probe.mean()),
        probe_root_relative_epe_mm=float(5 * probe.mean()),
        clip_probe_pa_epe_mm=probe.tolist(),
        clip_probe_root_relative_epe_mm=(5 * probe).tolist(),
        frames_seen=36_000,
        wall_s=180.0,
        unlabelled=0.0 if scratch else 1.0,
        unlabelled_frames=0 if scratch else 16_000,
        pretrain_frames=0 if scratch else 64_000,
        pretrain_frames_seen=0 if scratch else seen,
        pretrain_wall_s=0.0 if scratch else 800.0,
        objective="none" if scratch else method,
        used="" if scratch else "colour, scale, rotation, translation",
        undone="rotation, translation" if method == "peclr" else "",
    )
