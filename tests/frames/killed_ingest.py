"""Ingests that kill their own process, as by kill -9, at the n-th event; an event is just before or after a write.

    python killed_ingest.py SETTINGS.json OUTPUT:N [OUTPUT:N ...]

One ingest after the other, each in a process of its own, forked from this one, which has the libraries loaded; N = 0 never
kills. Prints a line for each: its exit code (-9 where it was killed) and, where it was not, how many events there were.
Tasks run in the process instead of Ray's, so that every moment can be hit exactly.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.frames import buckets, detect_stage, ingest, manifest, plan
from tests.frames.inline_ray import map_inline


def main() -> None:
    settings = plan.IngestSettings.model_validate_json(Path(sys.argv[1]).read_text())
    plan.MIN_FRAMES_PER_TASK = 30
    for argument in sys.argv[2:]:
        output, _, kill_at = argument.rpartition(":")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.write(writer, str(run(settings, output, int(kill_at))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            num_events = pipe.read()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), num_events, flush=True)


def run(settings: plan.IngestSettings, output: str, kill_at: int) -> int:
    """Gives the number of events."""
    events = 0

    def count() -> None:
        nonlocal events
        events += 1
        if events == kill_at:
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
    ingest.ray_map = detect_stage.ray_map = map_inline
    ingest.ingest(settings, output)
    return events


if __name__ == "__main__":
    main()
