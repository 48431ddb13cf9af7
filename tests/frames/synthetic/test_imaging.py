import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.imaging import Imaging, smear, take, through_jpeg
from pipeline.frames.synthetic.render import render_clip

SIZE = 24


def square(left, top, side=8, num_frames=2):
    """Pixels of a square in the second of two pictures, row by row, and a colour for each."""
    rows, columns = np.mgrid[top : top + side, left : left + side]
    pixel = torch.from_numpy((num_frames - 1) * SIZE * SIZE + rows.ravel() * SIZE + columns.ravel())
    colour = torch.linspace(0.2, 0.9, 3 * len(pixel)).view(3, -1)
    return pixel, colour


def test_what_does_not_move_is_drawn_as_it_is():
    pixel, colour = square(5, 7)
    layers = smear(pixel, colour, torch.zeros(2, len(pixel)), SIZE, 2)
    expected = torch.zeros(4, 2 * SIZE * SIZE)
    expected[:3, pixel], expected[3, pixel] = colour, 1
    torch.testing.assert_close(layers, expected)


@pytest.mark.parametrize("shift", [(6.0, 0.0), (0.0, -4.0), (5.0, 5.0)])
def test_a_moving_square_spreads_along_its_way_about_its_place(shift):
    pixel, _ = square(8, 8)
    layers = smear(pixel, torch.ones(3, len(pixel)), torch.tensor(shift)[:, None].expand(2, len(pixel)), SIZE, 2)
    first, second = layers[3].view(2, SIZE, SIZE).double()
    assert first.sum() == 0
    rows, columns = np.nonzero(second.numpy())
    for found, moved in ((columns, shift[0]), (rows, shift[1])):
        assert abs(np.ptp(found) + 1 - (8 + abs(moved))) <= 1
    centre = ndimage.center_of_mass(second.numpy())
    assert centre == pytest.approx((11.5, 11.5), abs=0.15)  # labels are of the middle of the exposure
    assert float(second.max()) <= 1
    torch.testing.assert_close(layers[0], layers[3])  # premultiplied


def test_motion_blur_follows_the_hand_and_leaves_labels_and_background():
    settings = ClipSettings(frames_per_clip=6, image_size=64, seed=2)
    blurred = settings.model_copy(
        update={"imaging": settings.imaging.model_copy(update={"motion_blur": 1.0, "shutter_s": 0.1})}
    )
    changed = 0.0
    for index in range(4):
        sharp, moving = sample_clip(settings, index), sample_clip(blurred, index)
        assert moving.bodies[0].shift is not None
        assert (sharp.joints_3d - moving.joints_3d).abs().max() < 0.02  # framed a little wider
        difference = (render_clip(sharp).int() - render_clip(moving).int()).abs()
        changed += float((difference > 8).float().mean())
    assert 0.01 < changed / 4 < 0.3


def test_defocus_equals_a_gaussian_filter_away_from_the_border():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 32, 32, generator=generator)
    blurred = take(pictures, Imaging(noise=0, defocus=1.3), torch.zeros_like(pictures))
    expected = ndimage.gaussian_filter(pictures.numpy(), (0, 0, 1.3, 1.3), truncate=8)
    np.testing.assert_allclose(blurred[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=1e-4)
    flat = torch.full((1, 3, 32, 32), 0.4)
    torch.testing.assert_close(take(flat, Imaging(noise=0, defocus=2.0), torch.zeros_like(flat)), flat)


def test_noise_contrast_and_saturation():
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    grey = torch.full((1, 3, 16, 16), 0.45)
    torch.testing.assert_close(take(grey, Imaging(noise=0.1, contrast=3.0), noise), grey + 0.1 * noise)
    red = torch.tensor([0.9, 0.3, 0.3]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    faded = take(red, Imaging(noise=0, saturation=0.0), noise)
    torch.testing.assert_close(faded, torch.full_like(faded, 0.5))


def test_jpeg_loses_more_at_a_lower_quality():
    frames = render_clip(sample_clip(ClipSettings(frames_per_clip=2, image_size=64), 0))
    errors = [(through_jpeg(frames, quality).float() - frames.float()).square().mean() for quality in (20, 60, 98)]
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2] > 0
    assert errors[2] < 25
