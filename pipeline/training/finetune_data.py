"""The frames of a fine-tuning: one worker's share of the training labels, and what is validated on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import (
    LabelledFrames,
    LabelSelection,
    PoseBatch,
    decoded_megabytes,
    load_labelled,
    memory_epoch,
    stream_forever,
)
from pipeline.training.finetune_recipe import FinetuneSettings, batch_and_steps


@dataclass(frozen=True)
class FinetuneData:
    """One worker's data."""

    batches: Callable[[int], Iterator[PoseBatch]]
    """Epoch -> its `steps_per_epoch` batches."""
    steps_per_epoch: int
    batch_size: int
    """Frames per step; less than the setting where there are fewer labels."""
    validation: LabelledFrames
    mean_bone_length: dict[str, float]
    constant: Constant | None
    constant_2d: np.ndarray | None
    frame_set_digest: str


def in_memory(settings: FinetuneSettings, frame_set: FrameSet, selection: LabelSelection) -> bool:
    """Whether the chosen frames stay below the memory limit once decoded."""
    return decoded_megabytes(selection.num_frames, frame_set.manifest.image_size) <= settings.memory_limit_mb


def load_validation(settings: FinetuneSettings, frame_set: FrameSet) -> LabelledFrames:
    """The frames to validate on."""
    return load_labelled(frame_set, settings.validation_split, limit=settings.max_validation_frames)


def memory_data(
    settings: FinetuneSettings,
    train: LabelledFrames,
    validation: LabelledFrames,
    selection: LabelSelection,
    frame_set_digest: str = "",
    rank: int = 0,
    world_size: int = 1,
) -> FinetuneData:
    """The data of one worker whose frames are in memory. train, validation: its share of them; selection: of all workers."""
    batch_size, steps = batch_and_steps(settings, selection.num_frames, world_size)
    return FinetuneData(
        batches=lambda epoch: memory_epoch(train, batch_size, steps, settings.seed, epoch, rank),
        steps_per_epoch=steps,
        batch_size=batch_size,
        validation=validation,
        mean_bone_length=selection.mean_bone_length,
        constant=selection.constant,
        constant_2d=selection.constant_2d,
        frame_set_digest=frame_set_digest,
    )


@dataclass(frozen=True)
class SharedFrames:
    """Frames that several trainings of one process each read, once for each node."""

    frame_set: FrameSet
    selection: LabelSelection
    train: LabelledFrames | None
    """None where they are too many to be held in memory: each training streams them."""
    validation: LabelledFrames

    @classmethod
    def load(
        cls, settings: FinetuneSettings, frame_set: FrameSet, selection: LabelSelection, num_workers: int = 1
    ) -> "SharedFrames":
        """num_workers: of each training; several read their own shares."""
        is_held = num_workers == 1 and in_memory(settings, frame_set, selection)
        train = load_labelled(frame_set, settings.split, clips=selection.clips) if is_held else None
        return cls(frame_set, selection, train, load_validation(settings, frame_set))

    def of(self, selection: LabelSelection) -> "SharedFrames":
        """With a part of the labels."""
        train = None if self.train is None else self.train.of_clips(selection.clips)
        return replace(self, selection=selection, train=train)

    def data(self, settings: FinetuneSettings) -> FinetuneData:
        """Of one training."""
        if self.train is None:  # its readers have no CPU of their own: the trainings may hold all
            return worker_data(settings, self.frame_set, self.selection, 0, 1, reader_cpus=0)
        digest = self.frame_set.manifest.digest
        return memory_data(settings, self.train, self.validation, self.selection, digest)


def worker_data(
    settings: FinetuneSettings,
    frame_set: FrameSet,
    selection: LabelSelection,
    rank: int,
    world_size: int,
    reader_cpus: float = 1,
) -> FinetuneData:
    """The data of one worker, from memory where the chosen frames fit, else streamed (needs a running Ray). reader_cpus: logical CPUs
    that each task which reads frames reserves."""
    validation = load_validation(settings, frame_set).share(rank, world_size)
    digest = frame_set.manifest.digest
    if in_memory(settings, frame_set, selection):
        train = load_labelled(frame_set, settings.split, clips=selection.clips).share(rank, world_size)
        return memory_data(settings, train, validation, selection, digest, rank, world_size)
    batch_size, steps = batch_and_steps(settings, selection.num_frames, world_size)
    stream: Iterator[PoseBatch] | None = None
    plan = StreamPlan(
        split=settings.split,
        batch_size=batch_size,
        epochs=settings.epochs,
        rank=rank,
        world_size=world_size,
        seed=settings.seed,
        clips=selection.clips,
        reader_cpus=reader_cpus,
    )

    def batches(epoch: int) -> Iterator[PoseBatch]:
        nonlocal stream
        if stream is None:  # one stream from the first epoch asked for, which a resumed run decides
            stream = stream_forever(frame_set, plan, epoch)
        return islice(stream, steps)

    return FinetuneData(
        batches=batches,
        steps_per_epoch=steps,
        batch_size=batch_size,
        validation=validation,
        mean_bone_length=selection.mean_bone_length,
        constant=selection.constant,
        constant_2d=selection.constant_2d,
        frame_set_digest=digest,
    )
