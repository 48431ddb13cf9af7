"""The tasks of an ingest in this process instead of Ray's."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PLACES = ("pipeline.frames.ingest.ray_map", "pipeline.frames.detect_stage.ray_map")


def map_inline(work: Callable[..., Any], items: Iterable[Any], **options: Any) -> Iterator[Any]:
    """In place of ray_map; as there, work has copies of the items, and results are copies too."""
    for item in items:
        yield pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(item)))))
