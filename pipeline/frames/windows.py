"""Runs work items through Ray Data, in order.

Ray Data reads in windows of some hundred megabytes, each an execution of its own that runs to its end while the windows
before it are consumed: an execution that has to wait for its consumer keeps polling in this process, and took a third of
the training's time on two cores. Two windows are read at a time: at the beginning and the end of one, when its readers wait
for storage or for each other, the other one has work for the cores. Windows know nothing of epochs, so an epoch's end costs
nothing. The very first item is read by this process, before Ray Data starts.
"""

import pickle
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, cycle, islice
from typing import Any

from pipeline.frames.epoch_plan import ITEM_ROWS, Item
from pipeline.frames.read_items import Block, ItemReader

_END_S = 10.0


def read_items(items: Iterator[Item], reader: ItemReader) -> Iterator[tuple[Item, Block]]:
    """Each item with its rows. Blocks of Ray Data's are read-only, in shared memory: two windows that are being read or
    wait, and one that is being consumed."""
    first = next(items, None)
    if first is None:
        return
    plan = reader.plan
    shares = _shares(plan.num_readers if plan.num_readers or plan.reader_cpus else 2)
    window_rows = max(1, plan.window_mb * 2**20 // (reader.image_size**2 * 3))
    windows = zip(_windows(items, window_rows), cycle(shares))
    ahead = ThreadPoolExecutor(len(shares), thread_name_prefix="stream")
    reading: deque[tuple[list[Item], Future[list[Any]]]] = deque()

    def read_ahead() -> None:
        for window, share in islice(windows, len(shares) - len(reading)):
            reading.append((window, ahead.submit(_read_window, window, reader, share)))

    try:
        block = reader.read(first)
        read_ahead()
        yield first, block
        while reading:
            window, future = reading.popleft()
            references = future.result()
            read_ahead()
            yield from zip(window, _unpacked(references, reader), strict=True)
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)
        wait([future for _, future in reading], _END_S)  # the Ray session may be about to end


def _shares(num_readers: int | None) -> list[int | None]:
    """The readers of each of the windows that are read at a time."""
    if num_readers is None:
        return [None, None]
    return [num_readers] if num_readers == 1 else [num_readers // 2, num_readers - num_readers // 2]


def _windows(items: Iterator[Item], window_rows: int) -> Iterator[list[Item]]:
    """Items put together to windows; the first ones are small, so that they are there soon."""
    limit = ITEM_ROWS
    window: list[Item] = []
    for item in chain(items, [None]):
        if window and (item is None or sum(each.num_wanted for each in window) + item.num_wanted > limit):
            yield window
            window, limit = [], min(4 * limit, window_rows)
        if item is not None:
            window.append(item)


def _read_window(items: list[Item], reader: ItemReader, num_readers: int | None) -> list[Any]:
    """One Ray Data execution, run to its end: references to one block for each item, in order.

    A window fits the object store, so nothing ever waits for the consumer.
    """
    import ray

    if not ray.is_initialized():  # the session has ended, and Ray Data would start another one
        return []
    dataset = ray.data.from_items(
        [{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
    ).map_batches(
        reader, batch_size=None, batch_format="numpy", concurrency=num_readers, num_cpus=reader.plan.reader_cpus
    )
    dataset.context.execution_options.preserve_order = True
    return dataset.materialize().to_arrow_refs()


def _unpacked(references: list[Any], reader: ItemReader) -> Iterator[Block]:
    import ray

    while references:
        # The reference goes with the block, so the store can free what has been consumed.
        yield reader.unpack(ray.get(references.pop(0)))
