"""A step's loss and gradients: on one worker or several, in one pass or in micro-batches, for every objective."""

import os
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from pipeline.frames.batches import Batch
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.objectives import ObjectiveSettings, latent, nt_xent, pairwise_loss, relative_transform
from pipeline.training.contrast import Pairs, columns_for, make_pairs, step_loss
from pipeline.training.distributed import gather_values
from pipeline.training.grad_cache import backward, cut
from pipeline.views import ViewSettings, generator_for
from tests.training.gloo import process_group

VIEWS = ViewSettings(size=32)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "peclr": {},
    "similarity": {"inverse": "similarity", "max_logits_rows": 5},
    "simclr": {"name": "simclr", "negatives": {"same_clip": "beyond", "beyond_seconds": 0.3}},
    "temporal": {"positives": {"kind": "temporal", "max_seconds": 0.5}, "negatives": {"same_clip": "mask"}},
    "similar": {"positives": {"kind": "similar", "adaptive_weights": True}, "max_logits_rows": 7},
    "pairwise": {"name": "pairwise"},
    "hybrid": {"name": "hybrid", "negatives": {"same_clip": "weight", "weight": 2.0}},
}
# Further settings, for which agreement between workers is all that is asked.
OTHERS: dict[str, dict[str, Any]] = {
    "reference": {"inverse": "reference", "temperature": 0.1},
    "similarity, weight": {"inverse": "similarity", "negatives": {"same_clip": "weight", "weight": 0.5}},
    "mask": {"negatives": {"same_clip": "mask"}},
    "plain hybrid": {"name": "hybrid"},
    "temporal, beyond": {"positives": {"kind": "temporal"}, "negatives": {"same_clip": "beyond"}},
    "similar, mask": {"positives": {"kind": "similar"}, "negatives": {"same_clip": "mask"}},
}


def objective_of(name: str) -> ObjectiveSettings:
    return ObjectiveSettings.model_validate({**OBJECTIVES, **OTHERS}[name])


def model_for(objective: ObjectiveSettings) -> PretrainModel:
    """In float64 and with frozen BatchNorm, whose statistics are not trivial."""
    torch.manual_seed(0)
    heads = ProjectionSettings(hidden=16, outputs=8, pairwise_hidden=16)
    model = PretrainModel(EncoderSettings(width=8), heads, objective)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def batch_of(frames: range) -> Batch:
    """Frames in clips of four, 0.2 s apart; their partners and joints; some lack joints or a partner."""
    pictures, partners, joints, other = [], [], [], []
    for frame in frames:
        generator = torch.Generator().manual_seed(frame)
        both = torch.randint(0, 256, (2, 3, 40, 40), generator=generator, dtype=torch.uint8)
        pictures.append(both[0])
        partners.append(both[1] if frame % 5 else both[0])
        joints.append(40 * torch.rand(21, 2, generator=generator))
        other.append(40 * torch.rand(21, 2, generator=generator) if frame % 5 else joints[-1])
        if frame == 3:
            joints[-1] = torch.full((21, 2), torch.nan)
    return Batch(
        0,
        0,
        torch.stack(pictures),
        {
            "frame_id": [f"f{frame}" for frame in frames],
            "clip_id": [f"c{frame // 4}" for frame in frames],
            "timestamp_s": [0.2 * (frame % 4) for frame in frames],
            "pair_frame_id": [f"p{frame}" if frame % 5 else f"f{frame}" for frame in frames],
            "pair_clip_id": [f"d{frame}" if frame % 5 else f"c{frame // 4}" for frame in frames],
            "pair_timestamp_s": [0.0 for frame in frames],
            "keypoints": torch.stack(joints),
            "pair_keypoints": torch.stack(other),
        },
        partners=torch.stack(partners),
    )


def pairs_of(name: str, frames: range, rank: int = 0) -> Pairs:
    batch = batch_of(frames)
    if objective_of(name).positives.kind != "similar":
        batch.partners = None
    return make_pairs(batch, objective_of(name), VIEWS, generator_for(0, rank=rank), torch.device("cpu"))


def merged(parts: list[Pairs]) -> Pairs:
    """All workers' pairs as one worker would hold them."""
    first = parts[0]
    offsets = torch.tensor([0, *(len(part) for part in parts[:-1])]).cumsum(0)
    partners = [part.partners for part in parts if part.partners is not None]
    members = [part.members for part in parts if part.members is not None]

    def joined(items: Any) -> Any:
        return type(items[0])(*(torch.cat(fields) for fields in zip(*items, strict=True)))

    return Pairs(
        torch.cat([part.frames for part in parts]),
        torch.cat(partners) if partners else None,
        [joined(views) for views in zip(*(part.views for part in parts), strict=True)],
        first.view_settings,
        torch.cat([part.second + offset for part, offset in zip(parts, offsets, strict=True)]),
        (joined([one for one, _ in members]), joined([other for _, other in members])) if members else None,
        0.0,
    )


def gradients(model: nn.Module) -> torch.Tensor:
    assert all(p.grad is not None for p in model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(network: nn.Module, pairs: Pairs, name: str, micro_batch: int | None) -> torch.Tensor:
    done = backward(
        network,
        lambda part: pairs.render(part).double(),
        lambda outputs: step_loss(outputs, pairs, objective_of(name)),
        cut(len(pairs), micro_batch),
    )
    return done.loss


@pytest.mark.parametrize("micro_batch", [1, 5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_change_nothing(name, micro_batch):
    pairs = pairs_of(name, range(12))
    whole, cached = (model_for(objective_of(name)) for _ in range(2))
    loss = run(whole, pairs, name, None)
    torch.testing.assert_close(run(cached, pairs, name, micro_batch), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradients(cached), gradients(whole), rtol=1e-5, atol=1e-7)


def _worker(rank: int, workers: int, cases: list[tuple[str, int | None]], port: int, folder: str) -> None:
    share = 12 // workers
    with process_group(rank, workers, port):
        results = []
        for name, micro_batch in cases:
            pairs = pairs_of(name, range(rank * share, (rank + 1) * share), rank)
            network = nn.parallel.DistributedDataParallel(model_for(objective_of(name)), broadcast_buffers=False)
            loss = run(network, pairs, name, micro_batch)
            results.append((gather_values(loss[None]).mean(), gradients(network)))
        if rank == 0:
            torch.save(results, os.path.join(folder, "results.pt"))


@pytest.mark.parametrize(
    ("workers", "micro_batches", "names"),
    [
        (1, [None, 5], ["peclr", "similar"]),
        (2, [None, 4], list(OBJECTIVES)),
        (2, [None], list(OTHERS)),
        (4, [None, 2], [*OBJECTIVES, *OTHERS]),
    ],
    ids=["one", "two", "two, others", "four"],
)
def test_several_workers_are_one(workers, micro_batches, names, tmp_path, free_port):
    """Every objective with real processes, in one pass and in micro-batches."""
    cases = [(name, micro_batch) for name in names for micro_batch in micro_batches]
    mp.start_processes(_worker, (workers, cases, free_port, str(tmp_path)), nprocs=workers, start_method="spawn")
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    share = 12 // workers
    for (name, _), (loss, gradient) in zip(cases, results, strict=True):
        parts = [pairs_of(name, range(rank * share, (rank + 1) * share), rank) for rank in range(workers)]
        model = model_for(objective_of(name))
        torch.testing.assert_close(loss, run(model, merged(parts), name, None), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, gradients(model), rtol=1e-4, atol=1e-6)


def test_losses_are_those_of_the_objectives():
    """The wiring against the pure functions, with outputs made up."""
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "projections": torch.randn(6, 2, 8, generator=generator),
        "transform": torch.randn(6, 8, generator=generator),
        "log_scales": torch.randn(1, 4, generator=generator).expand(6, 4),
    }
    pairs = pairs_of("peclr", range(6))
    z_1, z_2 = (latent(outputs["projections"][:, v], pairs.views[v], ObjectiveSettings()) for v in range(2))
    loss, _ = step_loss(outputs, pairs, ObjectiveSettings())
    torch.testing.assert_close(loss, nt_xent(z_1, z_2))

    sizes = {"rotation": 1, "translation": 2, "scale": 1, "colour": 4}
    predictions = dict(zip(sizes, outputs["transform"].split(list(sizes.values()), 1), strict=True))
    scales = dict(zip(sizes, outputs["log_scales"][0], strict=True))
    loss, _ = step_loss(outputs, pairs, ObjectiveSettings(name="pairwise"))
    torch.testing.assert_close(loss, pairwise_loss(predictions, relative_transform(*pairs.views), scales))

    pairs = pairs_of("hybrid", range(6))
    geometry = {name: predictions[name] for name in ("rotation", "translation", "scale")}
    outputs |= {"transform": outputs["transform"][:, :4], "log_scales": outputs["log_scales"][:, :3]}
    loss, done = step_loss(outputs, pairs, ObjectiveSettings(name="hybrid"))
    targets = relative_transform(pairs.views[0], pairs.views[2])
    z_1, z_2 = outputs["projections"].unbind(1)
    expected = nt_xent(z_1, z_2) + pairwise_loss(geometry, targets, scales)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(done.terms["contrast"] + done.terms["transform"], expected)


def test_temporal_pairs_join_two_frames_of_a_clip():
    pairs = pairs_of("temporal", range(12))
    assert pairs.fallback == 0
    frames = torch.arange(12)
    assert (pairs.second != frames).all()
    assert torch.equal(pairs.second // 4, frames // 4)
    assert pairs.members is not None
    one, other = pairs.members
    assert torch.equal(one.frame[pairs.second], other.frame)
    # What is contrasted with a first view is the second view of the partner, its own transform undone.
    outputs = {"projections": torch.randn(12, 2, 8)}
    _, done = step_loss(outputs, pairs, objective_of("temporal"))
    expected = latent(outputs["projections"][:, 1], pairs.views[1], ObjectiveSettings())[pairs.second]
    assert done.latents is not None
    torch.testing.assert_close(done.latents[:, 1], expected)
    first, second = pairs.examples(3)
    images = pairs.render(slice(0, 12))
    torch.testing.assert_close(first, images[:3])
    torch.testing.assert_close(second, images[12:][pairs.second[:3]])


def test_frames_without_a_partner_are_counted():
    batch = batch_of(range(5))  # the last is alone in its clip
    batch.partners = None
    pairs = make_pairs(batch, objective_of("temporal"), VIEWS, generator_for(0), torch.device("cpu"))
    assert pairs.fallback == pytest.approx(1 / 5)
    pairs = pairs_of("similar", range(12))
    assert pairs.fallback == pytest.approx(3 / 12)


def test_running_statistics_move_once_a_step():
    """The pass without gradients leaves them alone."""
    pairs = pairs_of("peclr", range(8))
    model = model_for(ObjectiveSettings()).train()
    run(model, pairs, "peclr", 4)
    assert model.state_dict()["encoder.bn1.num_batches_tracked"] == 2


def test_only_what_is_needed_is_read():
    assert columns_for(ObjectiveSettings()) == ()
    assert columns_for(objective_of("temporal")) == ("frame_id", "clip_id", "timestamp_s")
    assert "pair_keypoints" in columns_for(objective_of("similar"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pairwise", "positives": {"kind": "temporal"}}, "'temporal' do not go with 'pairwise'"),
        ({"name": "pairwise", "negatives": {"same_clip": "mask"}}, "'pairwise' has no negatives"),
        ({"positives": {"kind": "temporal", "adaptive_weights": True}}, "needs kind 'similar'"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSettings.model_validate(settings)
