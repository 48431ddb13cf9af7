"""FreiHAND, version 2 (Zimmermann et al. 2019), as published; layout and units from its authors' utils/fh_utils.py.

    <uri>/training_{K,xyz,scale}.json      32,560 labels: K (3, 3), xyz (21, 3) metres, the length of a bone in metres
    <uri>/training/rgb/00000000.jpg        130,240 images, 224 x 224: label i is that of images i, i + 32,560, ...
    <uri>/evaluation_{K,xyz,scale}.json    3,960 labels; xyz was published after the challenge
    <uri>/evaluation/rgb/00000000.jpg      3,960 images

Image i + v * 32,560 shows label i before background v: gs (green screen), hom, sample, auto. (A smaller set may count by its
own number of labels, or keep the names of the images of which it is a part.) A unit is a label, with all its backgrounds,
so that no pose is in two splits. All hands are right hands, joints are in FreiHAND order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from pydantic import field_validator

from pipeline.config import Settings
from pipeline.errors import DataError, SettingsError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.published import continuous_camera, labelled_hand, read_array, read_stills
from pipeline.storage import exists, join, size

Version = Literal["gs", "hom", "sample", "auto"]
VERSIONS: tuple[str, ...] = get_args(Version)
IMAGE_SIZE = (224, 224)
_PUBLISHED_LABELS = 32_560
_SCALE_BONE = (9, 10)
_MAX_SCALE_ERROR = 0.01


class FreiHandSection(Settings):
    """source.freihand."""

    versions: tuple[Version, ...] | None = None
    """Which backgrounds of the training images to take: green screen, harmonised, coloured with and without sample
    points. none takes all that exist."""

    @field_validator("versions")
    @classmethod
    def _some(cls, value: tuple[Version, ...] | None) -> tuple[Version, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one version, each once")
        return value


class FreiHandSettings(SourceSettings):
    """FreiHAND v2 as published."""

    kind: Literal["freihand"] = "freihand"
    part: Literal["training", "evaluation"] | None = None
    """Part of the data set. None takes training."""
    freihand: FreiHandSection = FreiHandSection()

    def reader(self) -> "FreiHand":
        """See the file's docstring."""
        return FreiHand(self)


class Labels(NamedTuple):
    """Of all images of a part. What is no number is NaN, and costs its hand only."""

    cameras: np.ndarray
    """(N, 3, 3), as published."""
    joints: np.ndarray
    """(N, 21, 3) metres, camera frame."""


class FreiHand:
    """See the file's docstring."""

    def __init__(self, settings: FreiHandSettings) -> None:
        """Raises SettingsError where versions of the evaluation images are asked for: there is one."""
        self.settings = settings
        self.part = settings.part or "training"
        self.images_uri = join(settings.uri, self.part, "rgb")
        if self.part == "evaluation" and settings.freihand.versions is not None:
            raise SettingsError(
                "setting 'source.freihand.versions': FreiHAND's evaluation images have one version only"
            )

    def list_files(self) -> dict[str, int]:
        """The images and the label files."""
        return file_sizes(self.images_uri, (".jpg",)) | {uri: size(uri) for uri in self._label_uris()}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a label. Raises DataError where labels and images do not belong together."""
        labels = self._labels()
        self._check_scale(labels.joints)
        num_labels = len(labels.joints)
        images = file_sizes(self.images_uri, (".jpg",))
        num_images = len(images)
        if not num_images or num_images % num_labels or num_images // num_labels > len(VERSIONS):
            raise DataError(
                f"{self.images_uri}: {num_images} images for the {num_labels} labels of {self._uri('xyz')}; 1 to "
                f"{len(VERSIONS)} whole sets of backgrounds are expected, so a part of the download is missing or too much"
            )
        there = VERSIONS[: num_images // num_labels]
        wanted = self.settings.freihand.versions or there
        if missing := [version for version in wanted if version not in there]:
            raise DataError(
                f"{self.images_uri}: has no images of version {missing[0]} (source.freihand.versions), only {', '.join(there)}"
            )
        stride = _version_stride(images, num_labels)
        offsets = sorted(VERSIONS.index(version) * stride for version in wanted)
        entries = [{"images": offsets}]
        return [
            Unit(f"{self.part}/{label:08d}", self.images_uri, len(offsets), [{"label": label, **entries[0]}])
            for label in range(num_labels)
        ]

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Labels come from the JSON files, which each worker process reads once."""
        labels = self._labels()
        (entry,) = unit.entries or [{}]
        label = entry["label"]
        frames, files = [], {}
        for number in (label + offset for offset in entry["images"]):
            camera = continuous_camera(labels.cameras[label])
            name = f"{unit.name}/{number:06d}"
            if not np.isfinite(camera).all():
                rejects.add("bad_camera", name)
                continue
            hand = labelled_hand(0, "right", labels.joints[label], camera, name, rejects)
            if hand is not None:
                frames.append(FrameHands(number, None, [hand]))
                files[number] = (join(unit.uri, f"{number:08d}.jpg"), IMAGE_SIZE)
        yield OpenUnit(frames, lambda indexes: read_stills(files, indexes, unit.name, rejects))

    def _uri(self, what: str) -> str:
        return join(self.settings.uri, f"{self.part}_{what}.json")

    def _label_uris(self) -> list[str]:
        uris = [self._uri("K"), self._uri("xyz")]
        for uri in uris:
            if not exists(uri):
                where = "FreiHAND_pub_v2_eval.zip" if self.part == "evaluation" else "FreiHAND_pub_v2.zip"
                raise DataError(f"{uri}: not there; it is part of {where}")
        return uris

    def _labels(self) -> Labels:
        return read_labels(*((uri, size(uri)) for uri in self._label_uris()))

    def _check_scale(self, joints: np.ndarray) -> None:
        """Where the scales are there they tell whether the joints are metres, and in FreiHAND's order."""
        uri = self._uri("scale")
        if not exists(uri):
            return
        scales = read_array(uri, ())
        if len(scales) != len(joints):
            raise DataError(f"{uri}: {len(scales)} scales, but {len(joints)} labels in {self._uri('xyz')}")
        start, end = _SCALE_BONE
        lengths = np.linalg.norm(joints[:, end] - joints[:, start], axis=-1)
        if not np.nanmedian(np.abs(lengths / scales - 1)) < _MAX_SCALE_ERROR:
            raise DataError(f"{uri}: not the lengths (metres) of bone {start}-{end} of {self._uri('xyz')}")


def _version_stride(images: Iterable[str], num_labels: int) -> int:
    """By how much the numbers of a label's images differ from one background to the next."""
    stems = (uri.rpartition("/")[2].rpartition(".")[0] for uri in images)
    is_cut = num_labels < _PUBLISHED_LABELS and any(
        stem.isdecimal() and int(stem) >= _PUBLISHED_LABELS for stem in stems
    )
    return _PUBLISHED_LABELS if is_cut else num_labels


@lru_cache(maxsize=1)
def read_labels(cameras: tuple[str, int], joints: tuple[str, int]) -> Labels:
    """The labels of a part. Each file as (URI, bytes): a changed file is read again. Raises DataError for another layout."""
    labels = Labels(read_array(cameras[0], (3, 3)), read_array(joints[0], (21, 3)))
    if len(labels.cameras) != len(labels.joints):
        raise DataError(f"{cameras[0]}: {len(labels.cameras)} cameras, but {len(labels.joints)} labels in {joints[0]}")
    return labels
