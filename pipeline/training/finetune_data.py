"""The frames of a fine-tuning: one worker's share of the training labels, and what is validated on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    batch_size, steps = batch_and_steps(settings, selection.num_frames, world_size)
    if in_memory(settings, frame_set, selection):
        train = load_labelled(frame_set, settings.split, clips=selection.clips)
        share = train.share(rank, world_size)

        def batches(epoch: int) -> Iterator[PoseBatch]:
            return memory_epoch(share, batch_size, steps, settings.seed, epoch, rank)
    else:
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

    validation = load_validation(settings, frame_set).share(rank, world_size)
    return FinetuneData(
        batches=batches,
        steps_per_epoch=steps,
        batch_size=batch_size,
        validation=validation,
        mean_bone_length=selection.mean_bone_length,
        constant=selection.constant,
        constant_2d=selection.constant_2d,
        frame_set_digest=frame_set.manifest.digest,
    )
