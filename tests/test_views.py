import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import geometry, image_ops
from pipeline.views import (
    IMAGE_MEAN,
    IMAGE_STD,
    Views,
    ViewSettings,
    apply_views,
    cat_views,
    denormalise,
    exchange_colour,
    generator_for,
    identity_views,
    sample_views,
    view_matrix,
)

PLAIN: dict[str, Any] = {"brightness": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0, "offset": (0.0, 0.0)}


def colours(images):
    """Values 0-1 of normalised images."""
    return images * torch.tensor(IMAGE_STD)[:, None, None] + torch.tensor(IMAGE_MEAN)[:, None, None]


def random_frames(num, size, seed=0):
    """Smooth random pictures, uint8 (num, 3, size, size)."""
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def frame_with_dots(points, size, sigma=2.5):
    """uint8 (P, 3, size, size): picture k shows one soft white dot at points[k], in pixels."""
    centre = torch.arange(size) + 0.5
    x = torch.exp(-0.5 * ((centre - points[:, :1]) / sigma) ** 2)
    y = torch.exp(-0.5 * ((centre - points[:, 1:]) / sigma) ** 2)
    return (y[:, :, None] * x[:, None, :] * 255).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)


def centroids(images):
    """Weighted centre (N, 2), in pixels, of bright images (N, 3, H, W) on black."""
    weight = colours(images)[:, 0].clamp_min(0)
    weight = torch.where(weight > 0.02, weight, 0.0)
    centre = torch.arange(weight.shape[-1]) + 0.5
    total = weight.sum((1, 2))
    return torch.stack([(weight.sum(1) * centre).sum(1) / total, (weight.sum(2) * centre).sum(1) / total], -1)


class TestGeometry:
    @pytest.mark.parametrize(("crop_size", "size"), [(160, 128), (96, 64), (160, 64), (128, 128)])
    def test_joints_are_found_where_the_matrix_says(self, crop_size, size):
        """Dots drawn into frames appear in the views where view_matrix puts them, to 0.1 pixel."""
        num = 63
        generator = torch.Generator().manual_seed(crop_size)
        points = (0.3 + 0.4 * torch.rand(num, 2, generator=generator)) * crop_size
        config = ViewSettings(size=size, padding="zeros", **PLAIN)
        views = sample_views(config, num, generator_for(0))
        images = apply_views(frame_with_dots(points, crop_size, sigma=crop_size / 50), views, config)
        expected = geometry.transform_points(view_matrix(views, crop_size, size), points[:, None])[:, 0]
        inside = ((expected > size * 0.15) & (expected < size * 0.85)).all(1)
        assert inside.sum() > 40
        error = (centroids(images) - expected)[inside].norm(dim=1)
        assert error.max() < 0.1

    def test_directions_on_screen(self):
        """Each number alone moves the content as its description says."""
        config = ViewSettings(size=128, padding="zeros", **PLAIN)
        plain = identity_views(1, scale=1.0)
        right_of_centre = frame_with_dots(torch.tensor([[96.0, 64.0]]), 128)

        def seen(**changes):
            return centroids(apply_views(right_of_centre, plain._replace(**changes), config))[0]

        torch.testing.assert_close(seen(), torch.tensor([96.0, 64.0]), atol=0.05, rtol=0)
        # Counter-clockwise on screen: what was on the right goes up.
        torch.testing.assert_close(
            seen(angle=torch.tensor([math.pi / 2])), torch.tensor([64.0, 32.0]), atol=0.05, rtol=0
        )
        torch.testing.assert_close(
            seen(translation=torch.tensor([[0.125, 0.25]])), torch.tensor([112.0, 96.0]), atol=0.05, rtol=0
        )
        torch.testing.assert_close(seen(scale=torch.tensor([1.5])), torch.tensor([112.0, 64.0]), atol=0.05, rtol=0)

    def test_identity_at_full_size_returns_the_frame(self):
        frames = random_frames(3, 64)
        config = ViewSettings(size=64)
        images = apply_views(frames, identity_views(3, scale=1.0), config)
        assert torch.equal(denormalise(images), frames)

    def test_plain_view_shows_1_25_boxes(self):
        """A stored crop holds 1.5 boxes: the box's border must end up 0.5 / 1.25 from the plain view's centre."""
        matrix = view_matrix(identity_views(1), 150, 100)
        box = torch.tensor([[[25.0, 25.0], [125.0, 125.0]]])
        torch.testing.assert_close(geometry.transform_points(matrix, box), torch.tensor([[[10.0, 10.0], [90.0, 90.0]]]))

    @given(st.integers(0, 2**31 - 1), st.sampled_from([64, 96, 160]), st.sampled_from([32, 64, 128]))
    @settings(max_examples=25, deadline=None)
    def test_matrix_composition(self, seed, crop_size, size):
        """Pixel matrix = to central coordinates, the documented map, back to pixels; and its inverse returns."""
        views = sample_views(ViewSettings(), 4, generator_for(seed))
        views = Views(*(field.double() if field.is_floating_point() else field for field in views))
        matrix = view_matrix(views, crop_size, size)
        points = torch.rand(4, 5, 2, dtype=torch.float64) * crop_size
        central = points / crop_size - 0.5
        cos, sin = torch.cos(views.angle)[:, None], torch.sin(views.angle)[:, None]
        turned = torch.stack(
            [cos * central[..., 0] + sin * central[..., 1], -sin * central[..., 0] + cos * central[..., 1]], -1
        )
        expected = (views.scale[:, None, None] * turned + views.translation[:, None] + 0.5) * size
        torch.testing.assert_close(geometry.transform_points(matrix, points), expected)
        torch.testing.assert_close(geometry.transform_points(geometry.invert_affine(matrix), expected), points)

    def test_camera_of_a_view_projects_where_the_image_shows(self):
        camera = torch.tensor([[180.0, 0, 80], [0, 175, 82], [0, 0, 1]], dtype=torch.float64).expand(5, 3, 3)
        joints = torch.randn(5, 21, 3, dtype=torch.float64) * 0.05 + torch.tensor([0, 0, 0.5])
        views = sample_views(ViewSettings(), 5, generator_for(3))
        matrix = view_matrix(views, 160, 128).double()
        in_view = geometry.transform_points(matrix, geometry.project(joints, camera))
        torch.testing.assert_close(geometry.project(joints, geometry.transform_camera(matrix, camera)), in_view)

    def test_border(self):
        """Beyond the crop a view shows its mirror image, or black."""
        frames = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
        away = identity_views(1, scale=1.0)._replace(translation=torch.tensor([[0.5, 0.0]]))
        mirrored = denormalise(apply_views(frames, away, ViewSettings(size=32)))
        assert (mirrored == 200).all()
        black = denormalise(apply_views(frames, away, ViewSettings(size=32, padding="zeros")))
        assert (black[..., :16] == 0).all()
        assert (black[..., 16:] == 200).all()

    def test_large_crops_are_averaged(self):
        """A fine chequerboard becomes grey in a small view, not a pattern of its own."""
        board = ((torch.arange(160)[:, None] + torch.arange(160)) % 2 * 255).to(torch.uint8).expand(1, 3, 160, 160)
        small = denormalise(apply_views(board, identity_views(1, scale=1.0), ViewSettings(size=64)))
        assert small.float().std() < 3


class TestColour:
    frames = random_frames(6, 40)
    config = ViewSettings(size=40)

    def render(self, **changes):
        views = identity_views(6, scale=1.0)._replace(**changes)
        return colours(apply_views(self.frames, views, self.config))

    @property
    def original(self):
        return self.frames.float() / 255

    @pytest.mark.parametrize("factor", [0.5, 1.0, 1.4])
    @pytest.mark.parametrize(
        ("name", "function"),
        [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
    )
    def test_torchvision_agrees(self, name, function, factor):
        found = self.render(**{name: torch.full((6,), factor)})
        torch.testing.assert_close(found, function(self.original, factor), atol=2e-3, rtol=0)

    def test_grayscale_is_torchvisions(self):
        found = self.render(saturation=torch.zeros(6))
        torch.testing.assert_close(found, tv.rgb_to_grayscale(self.original, 3), atol=2e-3, rtol=0)

    def test_normalisation_is_torchvisions(self):
        found = apply_views(self.frames, identity_views(6, scale=1.0), self.config)
        torch.testing.assert_close(
            found.contiguous(), tv.normalize(self.original, list(IMAGE_MEAN), list(IMAGE_STD)), atol=1e-5, rtol=0
        )

    def test_order_does_not_matter(self):
        """One matrix equals torchvision's three steps in any order, where nothing is cut off in between."""
        dim = (self.frames * 0.5 + 40).to(torch.uint8)
        views = identity_views(6, scale=1.0)._replace(
            brightness=torch.full((6,), 0.9), contrast=torch.full((6,), 0.8), saturation=torch.full((6,), 0.6)
        )
        found = colours(apply_views(dim, views, self.config))
        steps = [(tv.adjust_brightness, 0.9), (tv.adjust_contrast, 0.8), (tv.adjust_saturation, 0.6)]
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
            expected = dim.float() / 255
            for k in order:
                function, factor = steps[k]
                expected = function(expected, factor)
            torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)

    def test_hue_turns_red_to_green_to_blue_and_keeps_greys_and_luminance(self):
        red = torch.tensor([[0.6, 0.2, 0.2]])
        one = torch.ones(1)
        for turn, brightest in ((0.0, 0), (1 / 3, 1), (2 / 3, 2), (-1 / 3, 2)):
            matrix, shift = image_ops.colour_matrix(one, one, one, one * turn, one * 0, red)
            turned = (matrix @ red[..., None])[..., 0] + shift
            assert turned.argmax() == brightest
            luma = torch.tensor(image_ops.LUMA)
            torch.testing.assert_close(turned @ luma, red @ luma)
            torch.testing.assert_close(matrix @ torch.ones(3, 1), torch.ones(1, 3, 1))
            expected = tv.adjust_hue(red[..., None, None], (turn + 0.5) % 1 - 0.5)[..., 0, 0]
            assert turned.argmax() == expected.argmax()

    def test_no_change_is_exact(self):
        torch.testing.assert_close(self.render(), self.original, atol=1e-6, rtol=0)

    def test_values_stay_within_an_images_range(self):
        wild = ViewSettings(
            size=40, brightness=(0, 3), contrast=(0, 3), saturation=(0, 3), hue=0.5, noise_probability=1
        )
        images = colours(apply_views(self.frames, sample_views(wild, 6, generator_for(0)), wild))
        assert images.min() > -1e-6
        assert images.max() < 1 + 1e-6
        assert images.std() > 0.1

    def test_each_image_has_its_own_colour(self):
        same = self.frames[:1].expand(6, -1, -1, -1)
        images = apply_views(same, sample_views(self.config, 6, generator_for(0)), self.config)
        means = images.mean((2, 3))
        assert (means[1:] - means[:-1]).abs().amax(1).min() > 1e-3


class TestFilters:
    frames = random_frames(4, 48)
    only = torch.tensor([False, True, False, True])

    def pair(self, config, **changes):
        plain = identity_views(4, scale=1.0)
        return [colours(apply_views(self.frames, views, config)) for views in (plain, plain._replace(**changes))]

    def check_only_some_changed(self, before, after):
        assert torch.equal(before[~self.only], after[~self.only])
        assert ((before - after)[self.only].abs().amax((1, 2, 3)) > 0.01).all()

    def test_blur_is_torchvisions_away_from_the_border(self):
        config = ViewSettings(size=48, blur_probability=0.5)
        before, after = self.pair(config, blur_sigma=torch.tensor([0, 1.0, 0, 2.0]))
        self.check_only_some_changed(before, after)
        expected = tv.gaussian_blur(before[3], [21, 21], [2.0, 2.0])
        torch.testing.assert_close(after[3, :, 12:-12, 12:-12], expected[:, 12:-12, 12:-12], atol=1e-4, rtol=0)

    def test_sobel_shows_edges(self):
        config = ViewSettings(size=48, sobel_probability=0.5)
        self.check_only_some_changed(*self.pair(config, sobel=self.only))
        step = torch.zeros(1, 3, 8, 8)
        step[..., 4:] = 50.0
        edges = image_ops.sobel(step, 255.0)
        assert torch.equal(edges[0, 0, 3], torch.tensor([0, 0, 0, 200.0, 200, 0, 0, 0]))

    def test_cut_out_paints_a_rectangle(self):
        config = ViewSettings(size=48, cutout_probability=0.5)
        cutout = torch.zeros(4, 5)
        cutout[self.only] = torch.tensor([0.5, 0.25, 0.5, 0.25, 0.3])
        before, after = self.pair(config, cutout=cutout)
        self.check_only_some_changed(before, after)
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[6:18, 12:36] = True
        torch.testing.assert_close(after[1][:, inside], torch.full((3, 288), 0.3))
        assert torch.equal(after[1][:, ~inside], before[1][:, ~inside])

    def test_noise_has_its_strength(self):
        config = ViewSettings(size=48, noise_probability=0.5)
        middle = torch.full((4, 3, 48, 48), 128, dtype=torch.uint8)
        views = identity_views(4, scale=1.0)._replace(noise_std=self.only * 0.1)
        noisy = colours(apply_views(middle, views, config))
        std = noisy.std((1, 2, 3))
        torch.testing.assert_close(std, self.only * 0.1, atol=3e-3, rtol=0)
        assert torch.equal(noisy, colours(apply_views(middle, views, config)))

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("grayscale", "saturation"),
            ("sobel", "sobel"),
            ("cutout", "cutout"),
            ("blur", "blur_sigma"),
            ("noise", "noise_std"),
        ],
    )
    def test_probabilities(self, name, field):
        config = ViewSettings.model_validate({f"{name}_probability": 0.3})
        drawn = getattr(sample_views(config, 4000, generator_for(0)), field)
        drawn = drawn[:, 2] if name == "cutout" else drawn
        on = drawn == 0 if name == "grayscale" else drawn > 0
        assert on.float().mean() == pytest.approx(0.3, abs=0.03)
        others = [f for f in Views._fields if f != field]
        default = sample_views(ViewSettings(), 4000, generator_for(0))
        drawn_views = sample_views(config, 4000, generator_for(0))
        assert all(torch.equal(getattr(default, f), getattr(drawn_views, f)) for f in others)


class TestSampling:
    def test_peclr_ranges(self):
        views = sample_views(ViewSettings(), 20_000, generator_for(0))
        degrees = torch.rad2deg(views.angle)
        assert degrees.abs().max() == pytest.approx(45, abs=0.1)
        assert degrees.mean() == pytest.approx(0, abs=0.6)
        assert views.translation.abs().amax(0).tolist() == pytest.approx([7 / 147] * 2, abs=1e-4)
        margin = 1.5 / views.scale
        assert (margin.min().item(), margin.max().item()) == pytest.approx((0.9, 1.5), abs=1e-3)
        assert margin.mean() == pytest.approx(1.2, abs=0.01)
        assert not views.sobel.any()
        assert not views.blur_sigma.any()

    def test_views_of_the_invariant_baseline_have_no_rotation_and_no_translation(self):
        views = sample_views(ViewSettings(size=64, rotation_deg=0, translation=0), 100, generator_for(0))
        assert not views.angle.any()
        assert not views.translation.any()
        assert views.scale.std() > 0.1
        assert views.hue.std() > 0.1

    def test_deterministic_by_seed_epoch_step_and_worker(self):
        draw = lambda *key: sample_views(ViewSettings(), 8, generator_for(*key)).angle  # noqa: E731
        keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
        drawn = [draw(*key) for key in keys]
        assert all(torch.equal(draw(*key), angle) for key, angle in zip(keys, drawn, strict=True))
        assert len({tuple(angle.tolist()) for angle in drawn}) == len(keys)

    def test_generator_is_the_same_in_every_process(self):
        assert torch.rand(1, generator=generator_for(1, 2, 3, 4)).item() == pytest.approx(0.9533944725990295)

    def test_helpers(self):
        first, second = (sample_views(ViewSettings(), 3, generator_for(seed)) for seed in range(2))
        both = cat_views(first, second)
        assert torch.equal(both.translation[3:], second.translation)
        mixed = exchange_colour(geometry_of=first, colour_of=second)
        assert torch.equal(mixed.angle, first.angle)
        assert torch.equal(mixed.scale, first.scale)
        assert torch.equal(mixed.hue, second.hue)

    @pytest.mark.parametrize(
        "changes",
        [
            {"scale": (2.0, 1.0)},
            {"scale": (0.0, 1.0)},
            {"brightness": (-0.1, 1.0)},
            {"rotation_deg": 200},
            {"blur_probability": 1.5},
            {"zoom": 1},
        ],
    )
    def test_impossible_settings_are_refused(self, changes):
        with pytest.raises(ValidationError):
            ViewSettings.model_validate(changes)


class TestApply:
    def test_several_views_of_each_frame_in_one_call(self):
        frames = random_frames(20, 48)
        config = ViewSettings(size=32, blur_probability=0.5, cutout_probability=0.5)
        first, second = (sample_views(config, 20, generator_for(0, rank=rank)) for rank in range(2))
        together = apply_views(frames, cat_views(first, second), config)
        torch.testing.assert_close(together[:20], apply_views(frames, first, config))
        torch.testing.assert_close(together[20:], apply_views(frames, second, config))

    def test_batching_makes_no_difference(self):
        """Rendering goes in small parts on a CPU; every image must come out as it does alone."""
        frames = random_frames(19, 160)
        config = ViewSettings()
        views = sample_views(config, 19, generator_for(5))
        together = apply_views(frames, views, config)
        for i in (0, 7, 8, 18):
            alone = apply_views(frames[i : i + 1], Views(*(field[i : i + 1] for field in views)), config)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)

    def test_format(self):
        frames = random_frames(4, 48).contiguous(memory_format=torch.channels_last)
        config = ViewSettings(size=32)
        views = sample_views(config, 4, generator_for(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = apply_views(frames, views, config)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images, apply_views(frames.contiguous(), views, config))

    def test_no_frames(self):
        config = ViewSettings(size=32)
        images = apply_views(torch.zeros(0, 3, 48, 48, dtype=torch.uint8), sample_views(config, 0), config)
        assert images.shape == (0, 3, 32, 32)

    def test_bad_input_is_refused(self):
        views, config = identity_views(2), ViewSettings()
        with pytest.raises(ValueError, match="must be uint8"):
            apply_views(torch.zeros(2, 3, 48, 48), views, config)
        with pytest.raises(ValueError, match="must be uint8"):
            apply_views(torch.zeros(2, 3, 48, 40, dtype=torch.uint8), views, config)
        with pytest.raises(ValueError, match="do not divide evenly"):
            apply_views(torch.zeros(3, 3, 48, 48, dtype=torch.uint8), views, config)


class TestCompiled:
    """The CPU's kernel against torch's grid_sample and matrix product."""

    def check(self, frames, views, config):
        found = apply_views(frames, views, config)
        expected = apply_views(frames, views, config.model_copy(update={"compiled": False}))
        assert found.is_contiguous(memory_format=torch.channels_last)
        difference = (colours(found) - colours(expected)).abs() * 255
        # Positions are float32 in both: differences of some 1e-5 crop pixels (more the further they lie outside), times
        # steps of up to 255 between neighbours, times the colours' gain.
        assert difference.max() < 0.25
        assert difference.mean() < 0.005

    @given(
        st.integers(0, 2**31 - 1),
        st.sampled_from([(160, 128), (128, 128), (96, 64), (160, 64), (200, 33), (33, 48), (96, 8)]),
        st.sampled_from(["reflection", "zeros"]),
        st.sampled_from([0.0, 45.0, 180.0]),
        st.sampled_from([(1.0, 1.667), (0.3, 1.0), (3.0, 9.0)]),
        st.sampled_from([(1.0, 1.0), (0.2, 2.5)]),
        st.sampled_from([1, 3]),
    )
    @settings(max_examples=60, deadline=None)
    def test_equals_torch(self, seed, sizes, padding, rotation, scale, contrast, num_views):
        """Noise frames, views far beyond the border, crops that are averaged first, several views of a frame."""
        crop_size, size = sizes
        config = ViewSettings(
            size=size, padding=padding, rotation_deg=rotation, translation=0.5, scale=scale, contrast=contrast, hue=0.5
        )
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (3, 3, crop_size, crop_size), generator=generator, dtype=torch.uint8)
        self.check(frames, sample_views(config, 3 * num_views, generator_for(seed)), config)

    @pytest.mark.parametrize("option", ["grayscale", "sobel", "cutout", "blur", "noise"])
    def test_options(self, option):
        config = ViewSettings.model_validate({"size": 48, f"{option}_probability": 0.5, "contrast": (0.5, 1.5)})
        self.check(random_frames(12, 80), sample_views(config, 24, generator_for(3)), config)

    def test_threads_make_no_difference(self):
        frames, config = random_frames(7, 96), ViewSettings(size=64)
        views = sample_views(config, 14, generator_for(1))
        before = torch.get_num_threads()
        images = []
        try:
            for number in (1, 3):
                torch.set_num_threads(number)
                images.append(apply_views(frames, views, config))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(*images)

    def test_crop_of_any_layout(self):
        config = ViewSettings(size=32)
        views = sample_views(config, 4, generator_for(0))
        frames = random_frames(4, 64)
        expected = apply_views(frames, views, config)
        assert torch.equal(expected, apply_views(frames.contiguous(memory_format=torch.channels_last), views, config))
        larger = torch.zeros(4, 3, 70, 80, dtype=torch.uint8)
        larger[:, :, 3:67, 5:69] = frames
        assert torch.equal(expected, apply_views(larger[:, :, 3:67, 5:69], views, config))

    def test_views_that_are_not_finite_are_refused(self):
        frames, config = random_frames(1, 32), ViewSettings(size=32)
        for changes in ({"angle": torch.tensor([math.nan])}, {"scale": torch.zeros(1)}):
            with pytest.raises(ValueError, match="finite"):
                apply_views(frames, identity_views(1)._replace(**changes), config)


def test_denormalise_returns_colours():
    values = torch.tensor([0.0, 0.5, 1.0])
    images = (values[:, None, None, None] - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[
        :, None, None
    ]
    assert denormalise(images)[:, :, 0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    assert np.asarray(denormalise(images)).dtype == np.uint8
