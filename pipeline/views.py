"""Random views of hand crops: drawn as numbers, then applied with one bilinear sampling and one colour matrix.

A view is a similarity transform of the crop plus colour. In coordinates centred on the image, its side being the unit,

    p_view = scale * R(angle) * p_crop + translation,

R turning counter-clockwise on screen (x right, y down). The same numbers warp the images, go to the objective, which
undoes them on the projections, and carry cameras and joints along (`view_matrix`).

Where the default ranges come from (facts of the published code, "box" = the square round the hand):
- rotation: uniform in +-45 degrees.
- scale: the published crop has a margin of 0.9 to 1.5 times the hand's half extent, drawn uniformly. Stored crops here
  are 1.5 boxes wide (`CROP_MARGIN`), so a margin m covers m / 1.5 of the stored crop and scale = 1.5 / m: 1 to 1.667,
  with 1 / scale uniform. (Published margins count from the mean of the joints to the furthest one, about 1.15 times
  half the box on typical hands, so theirs show slightly more round the hand.)
- translation: published 0 to 14 source pixels right or down, of a crop of typically 147 pixels (FreiHAND). The same
  spread about zero is +-7/147 = +-0.048 of the side.
- colour: HSV value * (0.5 to 1) + 5 to 20 of 255, saturation * (0.01 to 1); the published hue change (times 0.01 to 1,
  on images with red and blue exchanged) turns skin by 0 to about 0.6 of a circle, here +-0.3.
Views whose corners reach beyond the crop show its mirror image there: black corners would tell the network the angle.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from pipeline import geometry, image_ops
from pipeline.config import Settings

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's RGB values (0-1), with which published encoders were trained."""

CROP_MARGIN = 1.5
"""Side of a stored crop in hand boxes."""

VIEW_MARGIN = 1.25
"""Side of the plain view in hand boxes: the fixed margin that the published code uses where it does not draw one."""

Range = tuple[float, float]


MAX_VIEW_SIZE = 4096
"""Side of a view, pixels."""


class ViewSettings(Settings):
    """Ranges from which views are drawn; the defaults are those of PeCLR's paper."""

    size: int = Field(default=128, ge=8, le=MAX_VIEW_SIZE)
    """Side of a view in pixels. Crops at least twice as large are first averaged down by a whole factor, against
    aliasing."""

    rotation_deg: float = Field(default=45.0, ge=0, le=180)
    """Largest rotation in degrees. Rotations are drawn uniformly from minus to plus this."""

    translation: float = Field(default=7 / 147, ge=0, le=0.5)
    """Largest shift of the content in x and in y, as a fraction of the view's side. Shifts are drawn uniformly from
    minus to plus this."""

    scale: Range = (1.0, CROP_MARGIN / 0.9)
    """Smallest and largest magnification of the crop; 1 shows all of it. 1 / magnification is drawn uniformly."""

    padding: Literal["reflection", "zeros"] = "reflection"
    """What a view shows beyond the crop's border: its mirror image, or black as in the published code."""

    brightness: Range = (0.5, 1.0)
    """Smallest and largest brightness: a factor on the colour values."""

    contrast: Range = (1.0, 1.0)
    """Smallest and largest contrast: a factor on the difference from the view's mean luminance."""

    saturation: Range = (0.01, 1.0)
    """Smallest and largest factor on the saturation; 0 is grey."""

    hue: float = Field(default=0.3, ge=0, le=0.5)
    """Largest change of hue in either direction, as a part of the colour circle."""

    offset: Range = (5 / 255, 20 / 255)
    """Smallest and largest number that is added to the colour values (0-1) after brightness and contrast."""

    grayscale_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of views that lose their colour."""

    sobel_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of views that are reduced to their edges (Sobel filter)."""

    cutout_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of views in which a grey rectangle hides a part."""

    cutout_side: float = Field(default=0.16, ge=0, le=1)
    """Largest side of the grey rectangle, as a fraction of the view's side. Its centre lies in the middle half of the
    view."""

    blur_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of views that are blurred."""

    blur_sigma: Range = (0.1, 2.0)
    """Smallest and largest standard deviation of the Gaussian blur, in pixels of the view."""

    noise_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of views that get noise."""

    noise_std: float = Field(default=25 / 255, ge=0)
    """Standard deviation of the Gaussian noise, in colour values (0-1)."""

    compiled: bool = True
    """Whether CPUs make the views with a kernel that is compiled on first use. false uses torch, which is slower and
    gives the same images to within rounding. GPUs always use torch."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "ViewSettings":
        for name in ("scale", "brightness", "contrast", "saturation", "offset", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be given as [smallest, largest], not [{low}, {high}]")
            if low < 0 or (low == 0 and name in ("scale", "blur_sigma")):
                raise ValueError(f"{name} must be positive, not [{low}, {high}]")
        return self


class Views(NamedTuple):
    """The numbers of N views, float32 tensors unless said otherwise."""

    angle: Tensor
    """(N,) radians, positive = content turned counter-clockwise on screen."""
    translation: Tensor
    """(N, 2) shift of the content, fractions of the view's side, x right, y down."""
    scale: Tensor
    """(N,) magnification of the crop."""
    brightness: Tensor
    """(N,) factor."""
    contrast: Tensor
    """(N,) factor."""
    saturation: Tensor
    """(N,) factor, 0 = grey."""
    hue: Tensor
    """(N,) turns of the colour circle."""
    offset: Tensor
    """(N,) added to colour values (0-1)."""
    sobel: Tensor
    """(N,) bool, edges instead of colours."""
    cutout: Tensor
    """(N, 5) grey rectangle: centre x, y, width, height (fractions of the side), grey level (0-1); width 0 = none."""
    blur_sigma: Tensor
    """(N,) pixels, 0 = none."""
    noise_std: Tensor
    """(N,) in colour values (0-1), 0 = none."""
    noise_seed: Tensor
    """(N,) int64; noise is drawn for several images at once, seeded by the first of them."""


_NUM_GEOMETRY = 3  # the first fields are geometry, the others colour

# On a CPU a few images at a time stay in the cache from warp to normalisation: 1.7 times as fast as the whole batch at
# once (measured, 64 crops of 160 px, views of 128 px).
_CPU_PIXELS_AT_ONCE = 2**17


def generator_for(
    seed: int, epoch: int = 0, step: int = 0, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose numbers depend on these four only, so that a resumed run draws the views it would have drawn.

    With the default device the views are also the same on every kind of machine: `sample_views` draws where the
    generator lives.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{step}/{rank}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def sample_views(
    settings: ViewSettings,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Views:
    """Draws the numbers of `batch_size` views; tensors on `device` (default: CPU, or the generator's device)."""
    drawn_on = generator.device if generator is not None else torch.device("cpu")
    # One draw of a fixed layout: switching one augmentation on or off leaves the others as they were, and one transfer
    # carries all.
    uniform = torch.rand((batch_size, 21), generator=generator, device=drawn_on).to(device or drawn_on)
    column = iter(uniform.unbind(-1))

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(column)

    def chosen(probability: float) -> Tensor:
        return next(column) < probability

    turn = torch.pi * settings.rotation_deg / 180
    shift = settings.translation
    smallest, largest = settings.scale
    angle = between(-turn, turn)
    translation = torch.stack([between(-shift, shift), between(-shift, shift)], -1)
    scale = 1 / between(1 / largest, 1 / smallest)
    brightness = between(*settings.brightness)
    contrast = between(*settings.contrast)
    saturation = between(*settings.saturation)
    hue = between(-settings.hue, settings.hue)
    offset = between(*settings.offset)
    saturation = saturation * ~chosen(settings.grayscale_probability)
    sobel = chosen(settings.sobel_probability)
    cut = chosen(settings.cutout_probability)
    side = settings.cutout_side
    rectangle = [between(0.25, 0.75), between(0.25, 0.75), between(0, side) * cut, between(0, side), between(0, 1)]
    blur = chosen(settings.blur_probability)
    blur_sigma = between(*settings.blur_sigma) * blur
    noise_std = chosen(settings.noise_probability) * settings.noise_std
    noise_seed = (next(column) * 2**24).long()
    return Views(
        angle,
        translation,
        scale,
        brightness,
        contrast,
        saturation,
        hue,
        offset,
        sobel,
        torch.stack(rectangle, -1),
        blur_sigma,
        noise_std.float(),
        noise_seed,
    )


def identity_views(
    batch_size: int, device: torch.device | str | None = None, scale: float = CROP_MARGIN / VIEW_MARGIN
) -> Views:
    """Plain views for evaluation: upright, centred, colours unchanged.

    scale: magnification of the crop. The default, 1.2, shows 1.25 hand boxes of a crop that holds 1.5; 1 shows all of
    it.
    """
    zero = torch.zeros(batch_size, device=device)
    one = torch.ones(batch_size, device=device)
    return Views(
        angle=zero,
        translation=torch.zeros(batch_size, 2, device=device),
        scale=torch.full((batch_size,), scale, device=device),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=zero,
        offset=zero,
        sobel=zero.bool(),
        cutout=torch.zeros(batch_size, 5, device=device),
        blur_sigma=zero,
        noise_std=zero,
        noise_seed=zero.long(),
    )


def cat_views(*views: Views) -> Views:
    """The views one after the other, as one batch."""
    return Views(*(torch.cat(fields) for fields in zip(*views, strict=True)))


def exchange_colour(geometry_of: Views, colour_of: Views) -> Views:
    """Views with the transforms of one batch and the colours of another: pairs that differ in only one of the two."""
    return Views(*geometry_of[:_NUM_GEOMETRY], *colour_of[_NUM_GEOMETRY:])


def view_matrix(views: Views, crop_size: int, view_size: int) -> Tensor:
    """Affine maps (N, 2, 3) from pixels of the crop to pixels of the view.

    Joints in the view are `geometry.transform_points(matrix, joints_2d)`, its camera is
    `geometry.transform_camera(matrix, camera)`.
    """
    central = geometry.similarity_matrix(views.angle, views.translation, views.scale)
    into = _pixels_to_central(crop_size, central)
    out_of = geometry.invert_affine(_pixels_to_central(view_size, central))
    return geometry.compose(out_of, geometry.compose(central, into))


def apply_views(frames: Tensor, views: Views, settings: ViewSettings) -> Tensor:
    """Renders views: (N, 3, size, size) float32, normalised with ImageNet's mean and standard deviation, channels_last.

    frames: uint8 (B, 3, S, S), RGB. views: N = k * B of them; row j * B + i is view j of frame i, so two views of every
    frame are `cat_views(first, second)` in one call. Raises ValueError for other types and shapes.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[2] != frames.shape[3]:
        raise ValueError(f"frames must be uint8 (B, 3, S, S), not {frames.dtype} {tuple(frames.shape)}")
    num_frames, num_views = len(frames), len(views.angle)
    if num_views % max(num_frames, 1):
        raise ValueError(f"{num_views} views do not divide evenly among {num_frames} frames")
    compiled = settings.compiled and frames.device.type == "cpu"
    if compiled and not _has_filters(settings):
        return _render_compiled(frames, views, settings)
    result = _empty(num_views, settings.size, frames.device)
    num_at_once = max(_CPU_PIXELS_AT_ONCE // settings.size**2, 1) if frames.device.type == "cpu" else num_frames
    with torch.autocast(frames.device.type, enabled=False):
        for start in range(0, num_frames, max(num_at_once, 1)):
            stop = min(start + num_at_once, num_frames)
            crops = frames[start:stop] if compiled else _shrink(frames[start:stop], settings.size)
            for first in range(0, num_views, num_frames):
                part = slice(first + start, first + stop)
                group = Views(*(field[part] for field in views))
                images = _render_compiled(crops, group, settings, False) if compiled else _warp(crops, group, settings)
                result[part] = _recolour(_filter(images, group, settings), group, settings)
    return result


def _empty(num: int, size: int, device: torch.device) -> Tensor:
    return torch.empty((num, 3, size, size), device=device, memory_format=torch.channels_last)


def denormalise(images: Tensor) -> Tensor:
    """Pictures for people, uint8 (N, 3, H, W), from normalised views (N, 3, H, W)."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _pixels_to_central(size: int, like: Tensor) -> Tensor:
    """The affine map (2, 3) from pixels to coordinates centred on the image with its side as the unit."""
    return like.new_tensor([[1 / size, 0, -0.5], [0, 1 / size, -0.5]])


def _shrink(frames: Tensor, size: int) -> Tensor:
    """Float crops, values 0-255, averaged down while they are at least twice the view's size.

    A bilinear sample reads 2 x 2 pixels, so it skips some where a view shrinks the crop by more than 2. Averaging by a
    whole factor leaves between one and two crop pixels for each view pixel at scale 1. Coordinates in units of the side
    do not change.
    """
    factor = _shrink_factor(frames.shape[-1], size)
    crops = frames.contiguous().float()
    return F.avg_pool2d(crops, factor) if factor > 1 else crops


def _shrink_factor(crop_size: int, size: int) -> int:
    factor = max(crop_size // size, 1)
    while crop_size % factor:
        factor -= 1
    return factor


def _warp(crops: Tensor, views: Views, settings: ViewSettings) -> Tensor:
    inverse = geometry.invert_affine(geometry.similarity_matrix(views.angle, 2 * views.translation, views.scale))
    # Where each view pixel lies in the crop, in grid_sample's coordinates: -1 and 1 are the borders of the image.
    axis = (torch.arange(settings.size, device=crops.device) * 2 + 1) / settings.size - 1
    along_x = inverse[:, :, :1] * axis
    along_y = inverse[:, :, 1:2] * axis + inverse[:, :, 2:]
    grid = crops.new_empty((len(crops), settings.size, settings.size, 2))
    for k in range(2):
        torch.add(along_y[:, k, :, None], along_x[:, k, None, :], out=grid[..., k])
    return F.grid_sample(crops, grid, mode="bilinear", padding_mode=settings.padding, align_corners=False)


def _filter(images: Tensor, views: Views, settings: ViewSettings) -> Tensor:
    """Edges, rectangles and blur, on values 0-255. The settings decide what is looked for: a check of the views would
    stall a GPU."""
    if settings.sobel_probability:
        images = torch.where(views.sobel[:, None, None, None], image_ops.sobel(images, 255.0), images)
    if settings.cutout_probability:
        images = image_ops.cut_out(images, views.cutout, 255.0)
    if settings.blur_probability:
        rows = views.blur_sigma.nonzero()[:, 0]
        images = images.index_copy(0, rows, image_ops.gaussian_blur(images[rows], views.blur_sigma[rows]))
    return images


def _has_filters(settings: ViewSettings) -> bool:
    """Whether something happens to the views between or after warp and colours."""
    return any(
        (
            settings.sobel_probability,
            settings.cutout_probability,
            settings.blur_probability,
            settings.noise_probability,
        )
    )


def _render_compiled(frames: Tensor, views: Views, settings: ViewSettings, coloured: bool = True) -> Tensor:
    """Views on a CPU, warped and coloured by the kernel; `coloured` false leaves them as warped, 0-255."""
    # Not at the top: machines that only use GPUs need no compiler.
    from pipeline import views_cpu

    out = _empty(len(views.angle), settings.size, frames.device)
    with torch.autocast("cpu", enabled=False):
        factor = _shrink_factor(frames.shape[-1], settings.size)
        precise = Views(*(field.double() if field.is_floating_point() else field for field in views))
        to_crop = geometry.invert_affine(view_matrix(precise, frames.shape[-1] // factor, settings.size))
        colours = _colours(views) if coloured else _UNCHANGED
        views_cpu.render(frames, factor, to_crop, settings.padding == "reflection", *colours, out)
    return out


def _colours(views: Views) -> tuple[Tensor, Tensor, Tensor, Sequence[Range]]:
    """What `_recolour` does to pixels of 0-255: matrices, shifts, what each unit of mean luminance adds, limits."""
    changes = (views.brightness, views.contrast, views.saturation, views.hue, views.offset)
    black = views.hue.new_zeros(len(views.hue), 3)
    matrix, shift = image_ops.colour_matrix(*changes, black)
    of_white = image_ops.colour_matrix(*changes, black + 1)[1]
    of_luma = (of_white - shift) / (255 * shift.new_tensor(IMAGE_STD))
    return *_normalised(matrix, shift), of_luma, _LIMITS


_UNCHANGED = (torch.eye(3), torch.zeros(3), torch.zeros(3), [(0.0, 255.0)] * 3)
_LIMITS = [(-mean / std, (1 - mean) / std) for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
"""Normalised values of 0 and 1, for each channel."""


def _normalised(matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """An affine map of colours 0-1 as the map from colours 0-255 to normalised ones."""
    mean, std = matrix.new_tensor(IMAGE_MEAN), matrix.new_tensor(IMAGE_STD)
    return matrix / (255 * std[:, None]), (shift - mean) / std


def _recolour(images: Tensor, views: Views, settings: ViewSettings) -> Tensor:
    """Values 0-255 -> colour changes, cut to what an image can hold, normalised: one matrix product for all of it."""
    matrix, shift = image_ops.colour_matrix(
        views.brightness, views.contrast, views.saturation, views.hue, views.offset, images.mean((2, 3)) / 255
    )
    matrix, shift = _normalised(matrix, shift)
    colours = torch.baddbmm(shift[..., None], matrix, images.flatten(2)).view_as(images)
    _cut(colours)
    if settings.noise_probability:
        generator = torch.Generator(images.device).manual_seed(int(views.noise_seed[0]))
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        colours += noise * (views.noise_std[:, None] / images.new_tensor(IMAGE_STD))[:, :, None, None]
        _cut(colours)
    return colours


def _cut(images: Tensor) -> None:
    """Limits normalised images to colour values of 0-1, in place."""
    for channel, limits in enumerate(_LIMITS):
        images[:, channel].clamp_(*limits)
