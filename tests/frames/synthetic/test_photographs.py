import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import storage
from pipeline.errors import DataError
from pipeline.frames.synthetic import photographs
from pipeline.frames.synthetic.background import BackgroundSettings
from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.photographs import photograph, photograph_uris

COLOURS = {"a.jpg": (200, 30, 30), "b.png": (30, 200, 30), "inner/c.jpeg": (30, 30, 200)}


@pytest.fixture(autouse=True)
def nothing_remembered():
    photograph_uris.cache_clear()
    photographs._shrunk.cache_clear()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (90, 60), colour).save(tmp_path / name)
    return str(tmp_path)


def test_every_photograph_is_used_and_keeps_its_colours(folder):
    rng = np.random.default_rng(0)
    pictures = [photograph(rng, folder, 40) for _ in range(30)]
    assert {picture.shape for picture in pictures} == {(3, 40, 40)}
    seen = {tuple((picture.mean((1, 2)) ** (1 / 2.2) * 255).round().int().tolist()) for picture in pictures}
    assert len(seen) == 3
    for colour in COLOURS.values():
        assert min(np.abs(np.array(found) - colour).max() for found in seen) <= 3


def test_parts_and_mirror_images_of_a_photograph(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], (80, 120, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    rng = np.random.default_rng(1)
    rising = [
        bool(picture[0, 0, -1] > picture[0, 0, 0])
        for picture in (photograph(rng, str(tmp_path), 32) for _ in range(40))
    ]
    assert 8 <= sum(rising) <= 32
    levels = {round(float(photograph(rng, str(tmp_path), 32).mean()), 3) for _ in range(10)}
    assert len(levels) > 5


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"no photographs here .* 'background.photographs'"):
        photograph_uris(str(tmp_path), 64)


def test_a_damaged_photograph_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg: not a readable image.*remove it"):
        photograph(np.random.default_rng(0), str(tmp_path), 64)


def test_a_large_folder_is_thinned_out_to_what_memory_allows(tmp_path, monkeypatch):
    for index in range(12):
        (tmp_path / f"{index:02d}.jpg").write_bytes(b"")
    monkeypatch.setattr(photographs, "_MEMORY_BYTES", 4 * 2 * 3 * (96**2))
    names = [uri.rsplit("/", 1)[-1] for uri in photograph_uris(str(tmp_path), 64)]
    assert names == ["00.jpg", "03.jpg", "06.jpg", "09.jpg"]


def test_stored_photographs_keep_to_the_limit(tmp_path):
    Image.new("RGB", (3000, 100)).save(tmp_path / "panorama.png")
    height, width, _ = photographs._shrunk(str(tmp_path / "panorama.png"), 64).shape
    assert (height, width) == (96, 192)


def test_clips_before_photographs(folder):
    settings = ClipSettings(frames_per_clip=1, image_size=64, background=BackgroundSettings(photographs=folder))
    clips = [sample_clip(settings, index) for index in range(6)]
    for index, clip in enumerate(clips):
        strongest = clip.background.mean((1, 2)).sort().values
        assert strongest[2] > 10 * strongest[1]  # pure colours, in linear light
        assert torch.equal(clip.background, sample_clip(settings, index).background)
    drawn = sample_clip(
        settings.model_copy(update={"background": settings.background.model_copy(update={"photograph_share": 0.0})}), 0
    )
    assert torch.equal(drawn.background, sample_clip(ClipSettings(frames_per_clip=1, image_size=64), 0).background)


def test_photographs_from_object_storage(s3):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50), (0, 0, 250)).save(buffer, "PNG")
    storage.write_bytes(f"{s3}/photographs/blue.png", buffer.getvalue())
    picture = photograph(np.random.default_rng(0), f"{s3}/photographs", 32)
    assert picture[2].min() > 0.9
    assert picture[:2].max() == 0
