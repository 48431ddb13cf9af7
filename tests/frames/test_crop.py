import io

import numpy as np
import pytest
from PIL import Image

from pipeline.frames.crop import (
    assumed_camera,
    crop_camera,
    crop_matrix,
    cut,
    encode_jpeg,
    is_box,
    is_inside,
    joints_on_rays,
    mirror_joints,
)


def ramp(width: int = 300, height: int = 200) -> Image.Image:
    """Red rises with x and green with y, by 0.8 a pixel: linear, so a right resampling keeps it exact."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return Image.fromarray(np.stack([0.8 * x, 0.8 * y, np.zeros_like(x)], axis=2).round().astype(np.uint8))


def to_source(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [32, 64, 160])
@pytest.mark.parametrize("box", [(100.3, 60.7, 160.1, 121.9), (90.0, 50.0, 130.0, 150.0), (140.25, 90.5, 160.0, 101.0)])
def test_crop_pixels_are_where_the_matrix_says(box, size, mirrored):
    matrix = crop_matrix(box, size, 1.5, mirrored)
    crop = np.asarray(cut(ramp(), matrix, size), dtype=float)
    assert crop.shape == (size, size, 3)
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    source = to_source(matrix, x, y)
    np.testing.assert_allclose(crop[..., 0], 0.8 * source[..., 0], atol=1.01)  # rounding, twice
    np.testing.assert_allclose(crop[..., 1], 0.8 * source[..., 1], atol=1.01)
    assert abs((crop[..., 0] - 0.8 * source[..., 0]).mean()) < 0.1  # and no shift: 0.1 is an eighth of a pixel


def test_the_matrix_centres_the_longer_side():
    matrix = crop_matrix((10, 20, 30, 60), 90, 1.5, mirrored=False)
    corners = np.array([[20 - 30, 40 - 30, 1], [20 + 30, 40 + 30, 1]]) @ matrix.T
    np.testing.assert_allclose(corners, [[0, 0], [90, 90]])
    mirrored = crop_matrix((10, 20, 30, 60), 90, 1.5, mirrored=True)
    np.testing.assert_allclose(np.array([[-10, 10, 1], [50, 70, 1]]) @ mirrored.T, [[90, 0], [0, 90]], atol=1e-12)


def test_outside_the_image_is_black_and_the_border_stays_sharp():
    white = Image.new("RGB", (100, 100), "white")
    matrix = crop_matrix((-20, 30, 20, 70), 60, 1.0, mirrored=False)  # left half outside; 1.5 crop pixels a pixel
    crop = np.asarray(cut(white, matrix, 60), dtype=float)
    assert crop[:, :28].max() < 20
    assert crop[:, 32:].min() > 235


def test_small_crops_are_antialiased():
    stripes = np.zeros((200, 200, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    matrix = crop_matrix((20, 20, 180, 180), 40, 1.0, mirrored=False)
    crop = np.asarray(cut(Image.fromarray(stripes), matrix, 40), dtype=float)
    assert np.abs(crop - 127.5).max() < 3


@pytest.mark.parametrize("mirrored", [False, True])
def test_camera_and_joints_follow_the_crop(mirrored):
    rng = np.random.default_rng(0)
    camera = np.array([[210.0, 1.5, 150.0], [0.0, 205.0, 100.0], [0.0, 0.0, 1.0]])
    joints = rng.normal(size=(21, 3)) * 0.05 + [0.02, -0.01, 0.5]
    matrix = crop_matrix((100.3, 60.7, 160.1, 121.9), 128, 1.5, mirrored)
    pixels = joints @ camera.T
    expected = (pixels / pixels[:, 2:]) @ matrix.T
    crop_joints = mirror_joints(joints) if mirrored else joints
    new_camera = crop_camera(camera, matrix)
    found = crop_joints @ new_camera.T
    np.testing.assert_allclose(found[:, :2] / found[:, 2:], expected, atol=1e-9)
    assert new_camera[0, 0] > 0
    assert new_camera[1, 1] > 0
    np.testing.assert_allclose(new_camera[2], [0, 0, 1])


@pytest.mark.parametrize(
    ("box", "good"),
    [
        ((1, 2, 30, 40), True),
        ([-5.5, 0, 10, 10], True),
        ((5, 5, 5, 9), False),
        ((9, 9, 1, 1), False),
        ((0, 0, float("nan"), 4), False),
        ((0, 0, float("inf"), 4), False),
        ((1, 2, 3), False),
        ((1, 2, None, 4), False),
        (("a", 2, 3, 4), False),
        ([[1, 2], [3, 4]], False),
    ],
)
def test_is_box(box, good):
    assert is_box(box) is good


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((10, 10, 20, 20), True),
        ((-5, 10, 5, 20), True),
        ((-6, 10, 4, 20), False),
        ((95, 45, 105, 55), False),  # a quarter
        ((200, 10, 210, 20), False),
        ((-100, -100, 200, 200), False),
    ],
)
def test_is_inside(box, inside):
    assert is_inside(box, 100, 50) is inside


def test_jpeg_round_trip():
    image = ramp(64, 64)
    decoded = Image.open(io.BytesIO(encode_jpeg(image, 92)))
    assert decoded.format == "JPEG"
    assert np.abs(np.asarray(decoded, dtype=float) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize(("distance", "tolerance"), [(0.4, 0.025), (4.0, 0.003)])
def test_joints_on_rays_are_seen_where_they_were_seen(distance, tolerance):
    camera = assumed_camera(640, 480)
    shape = np.random.default_rng(0).normal(scale=0.03, size=(21, 3))
    true = shape + np.array([0.1, -0.05, 1.0]) * distance
    pixels = true @ camera.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    joints = joints_on_rays(pixels, shape - 7.0, camera)  # around any centre
    seen = joints @ camera.T
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], pixels, atol=1e-9)
    np.testing.assert_allclose(np.diff(joints[:, 2]), np.diff(shape[:, 2]), atol=1e-12)
    # Weak perspective: the better the farther away.
    np.testing.assert_allclose(joints, true, rtol=0, atol=tolerance * distance)
