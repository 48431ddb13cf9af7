"""The tasks of an ingest in this process instead of Ray's."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.errors import DataError
from pipeline.frames.ray_tasks import run_item

PLACES = ("pipeline.frames.ingest.run_in_ray", "pipeline.frames.detect_stage.run_in_ray")


def run_inline(
    work: Callable[..., Any],
    arguments: dict[str, Any],
    items: Iterable[Any],
    num_workers: int | None,
    lasting: bool = False,
) -> Iterator[Any]:
    """In place of ray_tasks.run_in_ray."""
    for item in items:
        value = json.loads(run_item(work, json.dumps(item), arguments))
        if "error" in value:
            raise DataError(value["error"])
        yield value
