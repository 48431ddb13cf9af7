"""An ingest that kills its own process, as by kill -9, when it writes to storage for the n-th time.

    python killed_ingest.py SETTINGS.json OUTPUT N

Tasks run in this process instead of Ray's, so that every moment can be hit exactly.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.frames import buckets, ingest, manifest, plan


def main() -> None:
    settings = plan.IngestSettings.model_validate_json(Path(sys.argv[1]).read_text())
    remaining = int(sys.argv[3])

    def count() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count()
            result = function(*arguments, **options)
            count()
            return result

        return call

    ingest.write_json = counted(ingest.write_json)
    ingest.delete = counted(ingest.delete)
    manifest.write_bytes = counted(manifest.write_bytes)
    buckets.PartWriter.add = counted(buckets.PartWriter.add)  # type: ignore[method-assign]
    pa.ipc.new_stream = counted(pa.ipc.new_stream)
    storage.write_bytes = counted(storage.write_bytes)
    ingest._run_in_ray = run_inline
    ingest.ingest(settings, sys.argv[2])


def run_inline(
    work: Callable[..., Any], arguments: dict[str, Any], items: list[Any], num_workers: int | None
) -> Iterator[Any]:
    """In place of ingest._run_in_ray."""
    for item in items:
        yield json.loads(ingest._run_item(work, json.dumps(item), arguments))


if __name__ == "__main__":
    main()
