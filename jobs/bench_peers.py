"""Other libraries making two views a frame from a JPEG, the way their users do: one sample at a time, in a DataLoader.

All do the paper's augmentation (rotation, shift, scale; brightness, saturation, hue) with the ranges of `ViewSettings`,
except lightly, whose own SimCLR recipe is taken as it is. Each is given its fast form: bytes until the batch is put
together, one resampling, decoding straight to RGB, look-up tables instead of float images.
"""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.views import IMAGE_MEAN, IMAGE_STD, ViewSettings

Sample = Callable[[bytes], tuple[Tensor, Tensor]]
"""JPEG -> two views (3, n, n), or (n, n, 3) bytes."""


def torchvision(settings: ViewSettings, crop_size: int) -> Sample:
    """torchvision's v2 transforms on tensors of bytes."""
    from torchvision.io import decode_jpeg
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.RandomAffine(
                degrees=settings.rotation_deg,
                translate=(settings.translation, settings.translation),
                scale=_scale(settings, crop_size),
                interpolation=InterpolationMode.BILINEAR,
            ),
            v2.CenterCrop(settings.size),
            v2.ColorJitter(brightness=settings.brightness, saturation=settings.saturation, hue=settings.hue),
        ]
    )

    def sample(jpeg: bytes) -> tuple[Tensor, Tensor]:
        image = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))
        return transform(image), transform(image)

    return sample


def opencv(settings: ViewSettings, crop_size: int) -> Sample:
    """OpenCV's functions, one warp to the view's size and one turn through HSV, as the published code does it."""
    import cv2

    cv2.setNumThreads(1)
    values = np.arange(256, dtype=np.float32)

    def view(image: Any) -> Tensor:
        size, side = settings.size, image.shape[0]
        angle = random.uniform(-settings.rotation_deg, settings.rotation_deg)
        scale = random.uniform(*settings.scale) * size / side
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle, scale)
        shift = settings.translation * size
        matrix[:, 2] += size / 2 - side / 2 + np.array([random.uniform(-shift, shift), random.uniform(-shift, shift)])
        image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hue = (values + 180 * random.uniform(-settings.hue, settings.hue)) % 180
        saturation = values * random.uniform(*settings.saturation)
        value = values * random.uniform(*settings.brightness) + 255 * random.uniform(*settings.offset)
        table = np.stack([hue, saturation, value], -1).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(cv2.cvtColor(cv2.LUT(image, table[None]), cv2.COLOR_HSV2RGB))

    def sample(jpeg: bytes) -> tuple[Tensor, Tensor]:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        return view(image), view(image)

    return sample


def albumentations(settings: ViewSettings, crop_size: int) -> Sample:
    """albumentations' Affine and ColorJitter."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    transform = A.Compose(
        [
            A.Affine(
                rotate=(-settings.rotation_deg, settings.rotation_deg),
                translate_percent=(-settings.translation, settings.translation),
                scale=_scale(settings, crop_size),
                border_mode=cv2.BORDER_REFLECT,
                p=1,
            ),
            A.CenterCrop(settings.size, settings.size),
            A.ColorJitter(
                brightness=settings.brightness,
                contrast=settings.contrast,
                saturation=settings.saturation,
                hue=(-settings.hue, settings.hue),
                p=1,
            ),
        ]
    )

    def sample(jpeg: bytes) -> tuple[Tensor, Tensor]:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        return torch.from_numpy(transform(image=image)["image"]), torch.from_numpy(transform(image=image)["image"])

    return sample


def lightly(settings: ViewSettings, crop_size: int) -> Sample:
    """lightly's SimCLRTransform, which takes PIL images and gives normalised tensors."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    transform = SimCLRTransform(input_size=settings.size)

    def sample(jpeg: bytes) -> tuple[Tensor, Tensor]:
        views: Any = transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        return views[0], views[1]

    return sample


def _scale(settings: ViewSettings, crop_size: int) -> tuple[float, float]:
    """For warps that keep the crop's size: the view is its middle, so no second resampling is needed."""
    smallest, largest = (scale * settings.size / crop_size for scale in settings.scale)
    return smallest, largest


PEERS: dict[str, tuple[Callable[[ViewSettings, int], Sample], str]] = {
    "torchvision v2": (torchvision, "torchvision"),
    "OpenCV": (opencv, "opencv-contrib-python"),
    "albumentations": (albumentations, "albumentations"),
    "lightly SimCLR": (lightly, "lightly"),
}
"""How to make each, and the package whose version counts."""


class _Frames(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, sample: Sample, jpegs: Sequence[bytes]) -> None:
        self.sample, self.jpegs = sample, jpegs

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sample(self.jpegs[index])


def loader(
    sample: Sample, jpegs: Sequence[bytes], batch_size: int, normalised: bool, processes: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the JPEGs in a DataLoader: batches of both views.

    normalised: views are float32 tensors (B, 3, n, n) with ImageNet's mean and deviation, made from the whole batch's
    bytes at once; otherwise bytes stay as the library gives them. processes: of the DataLoader's own; 0 works in this one.
    """
    mean, std = 255 * torch.tensor(IMAGE_MEAN), 255 * torch.tensor(IMAGE_STD)

    def finish(view: Tensor) -> Tensor:
        if not normalised:
            return view
        if view.dtype != torch.uint8:  # already normalised
            return view
        last = view if view.shape[-1] == 3 else view.movedim(1, -1)
        return last.float().sub_(mean).div_(std).movedim(-1, 1)

    frames = _Frames(sample, jpegs)
    for first, second in torch.utils.data.DataLoader(
        frames, batch_size, num_workers=processes, drop_last=processes > 0
    ):
        yield finish(first), finish(second)


def release(package: str) -> str:
    """Version of an installed package, or "" where there is none. Raises nothing."""
    try:
        return version(package)
    except ImportError:
        return ""
