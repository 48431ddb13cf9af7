"""Runs work items through Ray Data, in order.

Ray Data reads in windows of some hundred megabytes, each an execution of its own that runs to its end while the window
before it is consumed: an execution that has to wait for its consumer keeps polling in this process, and took a third of
the training's time on two cores. Windows know nothing of epochs, so an epoch's end costs nothing. The very first item is
read by this process, before Ray Data starts.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

from pipeline.frames.epoch_plan import ITEM_ROWS, Item
from pipeline.frames.read_items import Block, ItemReader, item_as_json


def read_items(
    items: Iterator[Item], reader: ItemReader, num_readers: int | None, window_bytes: int
) -> Iterator[tuple[Item, Block]]:
    """Each item with its rows. Blocks of Ray Data's are read-only, in shared memory."""
    first = next(items, None)
    if first is None:
        return
    windows = _windows(items, max(1, window_bytes // (reader.image_size**2 * 3)))
    ahead = ThreadPoolExecutor(1, thread_name_prefix="stream")

    def start() -> tuple[list[Item], Future[list[Any]]] | None:
        window = next(windows, None)
        return None if window is None else (window, ahead.submit(_read_window, window, reader, num_readers))

    try:
        block = reader.read(first)
        reading = start()
        yield first, block
        while reading is not None:
            window, future = reading
            references = future.result()
            reading = start()
            yield from zip(window, _unpacked(references, reader), strict=True)
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)


def _windows(items: Iterator[Item], window_rows: int) -> Iterator[list[Item]]:
    """Items put together to windows; the first ones are small, so that they are there soon."""
    limit = ITEM_ROWS
    window: list[Item] = []
    for item in chain(items, [None]):
        if window and (item is None or sum(each.num_rows for each in window) + item.num_rows > limit):
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
        [{"item": item_as_json(item)} for item in items], override_num_blocks=len(items)
    ).map_batches(reader, batch_size=None, batch_format="numpy", concurrency=num_readers)
    dataset.context.execution_options.preserve_order = True
    return dataset.materialize().to_arrow_refs()


def _unpacked(references: list[Any], reader: ItemReader) -> Iterator[Block]:
    import ray

    while references:
        # The reference goes with the block, so the store can free what has been consumed.
        yield reader.unpack(ray.get(references.pop(0)))
