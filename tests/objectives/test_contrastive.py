import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives import nt_xent, nt_xent_global, similarity_stats
from tests.conftest import golden

seeds = st.integers(0, 2**31 - 1)


def pairs(num, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num, dim, generator=generator, dtype=torch.float64)


def naive_nt_xent(view_1, view_2, temperature):
    rows = [row / row.norm() for row in torch.cat([view_1, view_2])]
    num = len(view_1)
    total = 0.0
    for i, anchor in enumerate(rows):
        terms = {j: math.exp(float(anchor @ other) / temperature) for j, other in enumerate(rows) if j != i}
        total -= math.log(terms[(i + num) % (2 * num)] / sum(terms.values()))
    return total / (2 * num)


@pytest.mark.parametrize(("dtype", "tag", "tolerance"), [(torch.float64, "f64", 1e-10), (torch.float32, "f32", 1e-5)])
def test_reference(dtype, tag, tolerance):
    v = golden("a_ntxent")
    raw = torch.from_numpy(v["raw"]).to(dtype).requires_grad_()
    loss = nt_xent(raw[:16], raw[16:])
    loss.backward()
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss.item(), v[f"loss_{tag}"], rtol=tolerance)
    assert raw.grad is not None
    np.testing.assert_allclose(raw.grad, v[f"grad_raw_{tag}"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("tag", "tolerance"), [("f64", 1e-10), ("f32", 1e-5)])
def test_reference_unit_vectors(tag, tolerance):
    """The reference takes unit vectors as free; ours normalises them again, which leaves the gradient along the sphere."""
    v = golden("a_ntxent")
    unit = torch.nn.functional.normalize(torch.from_numpy(v["raw"]).to(torch.from_numpy(v[f"z_{tag}"]).dtype), dim=1)
    np.testing.assert_allclose(unit, v[f"z_{tag}"], rtol=tolerance, atol=tolerance)
    z = torch.from_numpy(v[f"z_{tag}"]).requires_grad_()
    loss = nt_xent(z[:16], z[16:])
    loss.backward()
    np.testing.assert_allclose(loss.item(), v[f"loss_{tag}"], rtol=tolerance)
    free = torch.from_numpy(v[f"grad_z_{tag}"])
    along = free - (free * z.detach()).sum(1, keepdim=True) * z.detach()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad, along, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_reference_temperatures(temperature):
    v = golden("a_ntxent")
    raw = torch.from_numpy(v["raw"])
    loss = nt_xent(raw[:16], raw[16:], temperature)
    assert loss.item() == pytest.approx(float(v[f"loss_f64_tau_{str(temperature).replace('.', 'p')}"]), rel=1e-10)


def test_reference_special_cases():
    v = golden("a_ntxent")
    z = torch.from_numpy(v["z_f64"])
    assert nt_xent(z[:4], z[:4]).item() == pytest.approx(float(v["loss_f64_identical_views_N4"]), rel=1e-10)
    single = nt_xent(z[:1], z[16:17]).item()
    assert single == pytest.approx(float(v["loss_f64_single_pair_N1"]), abs=1e-12)


@given(seeds, st.integers(1, 6), st.floats(0.05, 2))
@settings(max_examples=30, deadline=None)
def test_naive_loop_agrees(seed, num, temperature):
    view_1, view_2 = pairs(num, seed=seed)
    assert nt_xent(view_1, view_2, temperature).item() == pytest.approx(
        naive_nt_xent(view_1, view_2, temperature), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (3, 3, 3, 3), (5, 4, 2, 1), (7, 0, 5)])
def test_shards_equal_the_whole(sizes):
    """What each worker computes, weighted by its share, adds up to the plain loss and its gradient."""
    view_1, view_2 = pairs(12)
    whole_1, whole_2 = view_1.clone().requires_grad_(), view_2.clone().requires_grad_()
    expected = nt_xent(whole_1, whole_2, 0.2)
    expected.backward()
    view_1.requires_grad_()
    view_2.requires_grad_()
    total, offset = torch.zeros((), dtype=torch.float64), 0
    for size in sizes:
        local = slice(offset, offset + size)
        total = total + size / 12 * nt_xent_global(view_1[local], view_2[local], view_1, view_2, offset, 0.2)
        offset += size
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(view_1.grad, whole_1.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(view_2.grad, whole_2.grad, rtol=1e-10, atol=1e-13)


def test_offset_beyond_the_gathered_rows_is_refused():
    view_1, view_2 = pairs(4)
    with pytest.raises(ValueError, match="not among the 4"):
        nt_xent_global(view_1[:2], view_2[:2], view_1, view_2, 3)


def test_autocast_does_not_lower_precision():
    view_1, view_2 = pairs(16, 32).float()
    expected = nt_xent(view_1, view_2, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nt_xent(view_1, view_2, 0.05)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert nt_xent(view_1.bfloat16(), view_2.bfloat16()).dtype == torch.float32


def test_zero_rows_give_finite_gradients():
    view_1, view_2 = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4)
    nt_xent(view_1, view_2).backward()
    assert view_1.grad is not None
    assert view_1.grad.isfinite().all()


def test_similarity_stats_by_naive_loops():
    view_1, view_2 = pairs(5)
    stats = similarity_stats(view_1, view_2)
    unit = torch.nn.functional.normalize(torch.stack([view_1, view_2]), dim=-1)
    positive = [(unit[0, i] @ unit[1, i]).item() for i in range(5)]
    negative = [
        (unit[a, i] @ unit[b, j]).item() for a in (0, 1) for b in (0, 1) for i in range(5) for j in range(5) if i != j
    ]
    assert stats["positive_similarity"].item() == pytest.approx(np.mean(positive))
    assert stats["negative_similarity"].item() == pytest.approx(np.mean(negative))
    distance = (unit[0] - unit[1]).norm(dim=-1)
    assert stats["alignment"].item() == pytest.approx((distance**2).mean().item())
    spread = [torch.pdist(view).pow(2).mul(-2).exp().mean().log().item() for view in unit]
    assert stats["uniformity"].item() == pytest.approx(np.mean(spread))
    assert all(value.ndim == 0 for value in stats.values())
