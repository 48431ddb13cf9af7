"""The measurement of views on a few tiny frames: what is compared, and what is said where a library is missing."""

import io
import random

import pytest
import torch
from PIL import Image

from jobs import bench_peers, bench_views
from jobs.bench_views import BenchViewsJob
from pipeline.errors import DataError
from pipeline.frames.crop import encode_jpeg
from pipeline.views import ViewSettings

TINY = BenchViewsJob(num_frames=6, crop_size=40, batch_size=4, rounds=2, views=ViewSettings(size=32))


def absent(settings, crop_size):
    raise ImportError("no such library")


def whole(settings, crop_size):
    def sample(jpeg):
        image = torch.tensor(list(Image.open(io.BytesIO(jpeg)).resize((32, 32)).tobytes()), dtype=torch.uint8)
        return image.view(32, 32, 3), image.view(32, 32, 3)

    return sample


def test_rows(monkeypatch, capsys):
    monkeypatch.setattr(bench_peers, "PEERS", {"ready": (whole, "pillow"), "gone": (absent, "no-such-package")})
    result = bench_views.run(TINY)
    rows = {row["what"]: row for row in result["rows"]}
    ready = rows["decode + collate, views made on the device"]
    assert ready["against"].startswith("ready (")
    assert ready["ratio"] > 0
    assert ready["target"] == ">= 6"
    assert rows["two views ready on the CPU"]["target"] == ">= 2.5"
    assert rows["two 32 px views: gone"]["value"] is None
    assert "not installed" in rows["two 32 px views: gone"]["against"]
    assert 0.1 < rows["decode stage of the stream"]["ratio"] < 10
    assert rows["host to device, views made there"]["value"] == 40 * 40 * 3 / 1000
    assert all(len(rates) == 2 for rates in result["rates"].values())
    assert "no-such-package not installed" in capsys.readouterr().out


def test_without_any_peer(monkeypatch):
    monkeypatch.setattr(bench_peers, "PEERS", {"gone": (absent, "no-such-package")})
    rows = {row["what"]: row for row in bench_views.run(TINY.model_copy(update={"rounds": 1}))["rows"]}
    assert rows["two views ready on the CPU"]["ratio"] is None
    assert "no peer" in rows["two views ready on the CPU"]["against"]


def test_frame_sets_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no frame set here"):
        bench_views.run(TINY.model_copy(update={"frame_set": str(tmp_path / "nothing")}))


@pytest.mark.parametrize("name", list(bench_peers.PEERS))
def test_peers_show_the_crop(name):
    """Each peer makes two views of the right size that look like the frame: dark left, bright right."""
    settings = ViewSettings(size=32, rotation_deg=0, translation=0, hue=0, saturation=(1, 1), brightness=(1, 1))
    try:
        sample = bench_peers.PEERS[name][0](settings, 40)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    random.seed(0)
    torch.manual_seed(0)
    picture = Image.new("RGB", (40, 40), (40, 40, 40))
    picture.paste((200, 200, 200), (20, 0, 40, 40))
    views = sample(encode_jpeg(picture, 95))
    assert len(views) == 2
    for view in views:
        image = view if view.shape[0] == 3 else view.permute(2, 0, 1)
        assert image.shape == (3, 32, 32)
        if name != "lightly SimCLR":  # which may mirror, and shows any part
            halves = image.float().mean((0, 1))
            assert halves[:12].mean() + 50 < halves[-12:].mean()
    batches = list(bench_peers.loader(sample, [encode_jpeg(picture, 95)] * 3, 2, normalised=True))
    assert [first.shape for first, _ in batches] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    assert batches[0][0].dtype == torch.float32
