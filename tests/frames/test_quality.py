import contextlib
import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.frames.quality import QualitySettings, hash_distance, perceptual_hash, sharpness
from pipeline.frames.rejects import CHOICE_REASONS, Rejects
from pipeline.frames.rows import unit_groups
from pipeline.frames.sources import FrameHands, Hand, OpenUnit, Unit
from tests.conftest import real_data

BOX = (20.0, 20.0, 84.0, 84.0)


def texture(seed: int, size: int = 104) -> Image.Image:
    """A picture with detail of every size, as photographs have it."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize((size, size)), dtype=float)
        for n in (3, 6, 13, 26, 52, size)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[8, 6, 4, 3, 2, 2]).astype(np.uint8)).convert("RGB")


def luminance(seed: int) -> np.ndarray:
    return np.asarray(texture(seed).convert("L"))


def recoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


# --- the measures


@pytest.mark.parametrize("fraction", [1.0, 0.5, 1 / 1.5])
def test_sharpness_is_the_variance_of_the_laplacian(fraction):
    ndimage = pytest.importorskip("scipy.ndimage")
    values = luminance(0)
    border = max(round(len(values) * (1 - fraction) / 2), 1)
    inside = slice(border, len(values) - border)
    expected = ndimage.laplace(values.astype(float))[inside, inside].var()
    assert sharpness(values, fraction) == pytest.approx(expected, rel=1e-12)


def test_opencv_agrees():
    cv2 = pytest.importorskip("cv2")
    expected = cv2.Laplacian(luminance(1), cv2.CV_64F)[1:-1, 1:-1].var()
    assert sharpness(luminance(1)) == pytest.approx(expected, rel=1e-12)


def test_blur_lowers_sharpness_in_order():
    image = texture(2).convert("L")
    values = [sharpness(np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))) for sigma in (0, 0.5, 1, 2, 4)]
    assert all(a > 1.5 * b for a, b in itertools.pairwise(values))
    assert sharpness(np.full((40, 40), 77, np.uint8)) == 0


def test_only_the_middle_counts():
    values = np.full((60, 60), 100, np.uint8)
    values[:8] = np.random.default_rng(0).integers(0, 255, (8, 60))
    assert sharpness(values) > 100
    assert sharpness(values, 1 / 1.5) == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_hash_is_the_sign_of_the_low_frequencies(seed):
    fft = pytest.importorskip("scipy.fft")
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8))
    # scipy's norm differs by a factor of each row and column from plain cosines.
    spectrum = (fft.dctn(np.asarray(image, dtype=float), norm=None)[:8, :8]).ravel()
    expected = spectrum > np.median(spectrum[1:])
    found = [bool(perceptual_hash(image) >> (63 - bit) & 1) for bit in range(64)]
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 2  # cosines are rounded to 1/1024
    assert 31 <= sum(found) <= 33


def test_hashes_of_the_same_picture_are_near_and_of_others_far():
    pictures = [texture(seed) for seed in range(30)]
    hashes = [perceptual_hash(image.convert("L")) for image in pictures]
    for image, value in zip(pictures, hashes, strict=True):
        for changed in (recoded(image, 50), image.resize((71, 71)), image.point(lambda v: v * 0.7 + 20)):
            assert hash_distance(value, perceptual_hash(changed.convert("L"))) <= 4
    assert min(hash_distance(a, b) for a, b in itertools.combinations(hashes, 2)) >= 12


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_distance_counts_bits(one, other):
    assert hash_distance(one, other) == sum(a != b for a, b in zip(f"{one:064b}", f"{other:064b}", strict=True))


# --- in the ingest


class Pictures:
    """A source of pictures that are there already, one track, 10 a second."""

    def __init__(self, images, hands=None):
        self.images = images
        self.hands = hands or [[Hand(0, "right", BOX)] for _ in images]
        self.was_read: list[int] = []

    def list_files(self):
        return {}

    def list_units(self, rejects):
        return []

    def open(self, unit, rejects):
        def read(indexes):
            for index in indexes:
                self.was_read.append(index)
                yield index, self.images[index]

        frames = [FrameHands(i, i / 10, hands) for i, hands in enumerate(self.hands)]
        return contextlib.nullcontext(OpenUnit(frames, read))


def kept(source, stride_s: float = 0.0, group_size: int = 4, **quality):
    """(frame ids, groups of frame indexes, rejects)."""
    crops = SimpleNamespace(
        image_size=96,
        box_margin=1.5,
        jpeg_quality=92,
        group_size=group_size,
        group_stride_s=stride_s,
        quality=QualitySettings(**quality),
    )
    rejects = Rejects()
    groups = list(unit_groups(source, "s", Unit("u", "", len(source.images)), "train", crops, rejects))
    rows = sorted(row["frame_id"] for group in groups for row in group)
    total = sum(len(hands) for hands in source.hands)
    assert len(set(rows)) == len(rows)
    assert len(rows) + sum(rejects.counts.values()) == total  # kept + left out = all
    return rows, [[row["frame_index"] for row in group] for group in groups], rejects


def test_all_filters_are_off_by_default():
    images = [texture(0)] * 5
    rows, _, rejects = kept(Pictures(images))
    assert len(rows) == 5
    assert not rejects.counts


def test_repeated_frames_are_left_out_under_encoding_noise():
    # 12 pictures, each shown 1 to 4 times, encoded anew every time.
    rng = np.random.default_rng(0)
    shown = [seed for seed in range(12) for _ in range(rng.integers(1, 5))]
    images = [recoded(texture(seed), int(rng.integers(40, 95))) for seed in shown]
    rows, groups, rejects = kept(Pictures(images), min_change=6)
    first = [i for i, seed in enumerate(shown) if i == 0 or shown[i - 1] != seed]
    assert [int(row[-6:]) for row in rows] == first
    assert rejects.counts == {"near_duplicate": len(shown) - 12}
    assert rejects.num_frames == 0
    assert [len(group) for group in groups] == [4, 4, 4]  # groups are formed of what is kept


@settings(max_examples=25, deadline=None)
@given(shown=st.lists(st.integers(0, 3), min_size=1, max_size=14))
def test_each_kept_frame_differs_from_the_one_kept_before(shown):
    hashes = [perceptual_hash(TEXTURES[seed].convert("L")) for seed in shown]
    # A naive loop over pictures that fill the crop: no cutting, so their hashes are those of the crops.
    expected, last = [], None
    for index, value in enumerate(hashes):
        if last is None or bin(value ^ last).count("1") >= 8:
            expected.append(index)
            last = value
    source = Pictures([TEXTURES[seed] for seed in shown], [[Hand(0, "right", (16.0, 16.0, 80.0, 80.0))] for _ in shown])
    rows, _, _ = kept(source, min_change=8)
    assert [int(row[-6:]) for row in rows] == expected


TEXTURES = [texture(seed, 96) for seed in range(4)]


def test_a_slow_change_is_kept_now_and_then():
    a, b = texture(0), texture(1)
    images = [Image.blend(a, b, i / 40) for i in range(41)]
    rows, _, _ = kept(Pictures(images), min_change=10)
    assert 2 <= len(rows) <= 12


def test_hands_of_one_frame_are_compared_with_their_own_past():
    left, right = (10.0, 20.0, 50.0, 60.0), (50.0, 40.0, 90.0, 80.0)
    image = texture(5)
    hands = [[Hand(0, "left", left), Hand(1, "right", right)] for _ in range(3)]
    rows, _, rejects = kept(Pictures([image] * 3, hands), min_change=6)
    assert rows == ["s/u#0/000000", "s/u#1/000000"]
    assert rejects.counts == {"near_duplicate": 4}


def test_blurred_frames_are_left_out_and_not_compared_with():
    sharp = [texture(seed) for seed in range(4)]
    images = [sharp[0], sharp[1].filter(ImageFilter.GaussianBlur(3)), sharp[1], sharp[2], sharp[3]]
    rows, _, rejects = kept(Pictures(images), min_sharpness=30, min_change=6)
    assert [int(row[-6:]) for row in rows] == [0, 2, 3, 4]
    assert rejects.counts == {"blurred": 1}
    assert rejects.examples == {"blurred": ["s/u/000001"]}


def test_an_enlarged_hand_is_blurred():
    image = texture(0, 512)
    hands = [[Hand(0, "right", (100.0, 100.0, 100.0 + side, 100.0 + side))] for side in (64, 32, 12)]
    rows, _, rejects = kept(Pictures([image] * 3, hands), min_sharpness=200)
    assert rows == ["s/u/000000"]
    assert rejects.examples["blurred"] == ["s/u/000001", "s/u/000002"]


def test_small_and_uncertain_hands_are_left_out_unread():
    hands = [
        [Hand(0, "right", BOX, confidence=0.9)],
        [Hand(0, "right", BOX, confidence=0.49)],
        [Hand(0, "right", BOX)],  # nobody has said how certain
        [Hand(0, "right", (30.0, 30.0, 53.0, 40.0), confidence=0.9)],
        [Hand(0, "right", (30.0, 30.0, 54.0, 40.0), confidence=0.9)],  # the longer side counts
        [Hand(0, "right", (30.0, 30.0, 53.0, 40.0), confidence=0.1), Hand(1, "left", BOX, confidence=0.5)],
        [Hand(0, "right", (30.0, float("nan"), 31.0, 40.0))],
    ]
    source = Pictures([texture(0)] * 7, hands)
    rows, _, rejects = kept(source, min_confidence=0.5, min_hand_px=24)
    assert rows == ["s/u#0/000000", "s/u#0/000002", "s/u#0/000004", "s/u#1/000005"]
    assert rejects.counts == {"low_confidence": 2, "small_hand": 1, "bad_box": 1}
    assert source.was_read == [0, 2, 4, 5, 6]
    assert rejects.num_frames == 1


def test_names_of_clips_do_not_depend_on_filters():
    hands = [[Hand(0, "right", BOX, confidence=0.9), Hand(1, "left", BOX, confidence=0.1)] for _ in range(2)]
    rows, _, _ = kept(Pictures([texture(0)] * 2, hands), min_confidence=0.5)
    assert rows == ["s/u#0/000000", "s/u#0/000001"]


def test_a_long_clip_is_grouped_a_stretch_at_a_time(monkeypatch):
    monkeypatch.setattr("pipeline.frames.rows.STRETCH_ROWS", 24)
    image = texture(0)
    _, groups, _ = kept(Pictures([image] * 103), stride_s=0.2, group_size=4)
    assert sorted(i for group in groups for i in group) == list(range(103))
    assert (
        sorted(len(group) for group in groups)[-25:] == [4] * 25
    )  # at most three frames are left over, not three a stretch
    for group in groups:
        assert all(b - a >= 2 for a, b in itertools.pairwise(group))
        assert group[-1] - group[0] < 24


def test_groups_that_are_longer_than_a_stretch_are_formed_as_well_as_can_be(monkeypatch):
    monkeypatch.setattr("pipeline.frames.rows.STRETCH_ROWS", 8)
    _, groups, _ = kept(Pictures([texture(0)] * 50), stride_s=3.0, group_size=4)
    assert sorted(i for group in groups for i in group) == list(range(50))


def test_a_track_that_has_ended_is_given_out_at_once():
    hands = [[Hand(i // 5, "right", BOX)] for i in range(20)]
    source = Pictures([texture(0)] * 20, hands)
    crops = SimpleNamespace(
        image_size=32, box_margin=1.5, jpeg_quality=92, group_size=4, group_stride_s=0.0, quality=QualitySettings()
    )
    groups = unit_groups(source, "s", Unit("u", "", 20), "train", crops, Rejects())
    assert next(groups)[0]["clip_id"] == "s/u#0"
    assert len(source.was_read) == 6


def test_real_frames_keep_their_order_of_sharpness():
    folder = real_data("frames")
    paths = sorted(folder.glob("*/*.jpg"))[::100]
    for path in paths:
        image = Image.open(path).convert("L").resize((160, 160))
        blurred = image.filter(ImageFilter.GaussianBlur(2))
        assert sharpness(np.asarray(image)) > 3 * sharpness(np.asarray(blurred))
        assert hash_distance(perceptual_hash(image), perceptual_hash(recoded(image, 50).convert("L"))) <= 4


def test_choices_are_no_damage():
    rejects = Rejects()
    for reason in CHOICE_REASONS:
        rejects.add(reason, "x", count=10)
    assert (rejects.num_clips, rejects.num_frames) == (0, 0)
