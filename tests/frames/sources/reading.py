"""A source read the way ingest reads it, without Ray."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import create_model

from pipeline.frames.plan import IngestSettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.rows import unit_groups
from pipeline.frames.sources import SourceSettings, Unit


def read(settings: SourceSettings, **crops):
    """(rows by frame id, rejects, units) of a whole source. Units travel as JSON and are opened by another source object, as
    in a worker."""
    driver, worker = settings.reader(), settings.reader()
    kind = create_model("OfItsKind", __base__=IngestSettings, source=type(settings))  # one that was added too
    ingest = kind(source=settings, **{"image_size": 256, "jpeg_quality": 95, **crops})
    assert driver.list_files()
    rejects = Rejects()
    units = driver.list_units(rejects)
    rows = defaultdict(list)
    for unit in units:
        sent = Unit(**json.loads(json.dumps(asdict(unit))))
        for group in unit_groups(worker, "s", sent, "train", ingest, rejects):
            for row in group:
                rows[row["frame_id"]].append(row)
    assert all(len(same) == 1 for same in rows.values())
    return {name: same[0] for name, same in sorted(rows.items())}, rejects, units


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Rewrite a file of labels."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
