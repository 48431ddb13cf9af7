"""The source that docs/sources.md shows how to add."""

from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import pytest
from pydantic import Field

from jobs.ingest import IngestJob
from pipeline.config import load
from pipeline.errors import DataError, SettingsError
from pipeline.frames.sources import AnySource, SourceSettings
from tests.frames.sources.coco_set import CAMERA, box_of, joints_of, write_coco
from tests.frames.sources.dots import check_dots
from tests.frames.sources.reading import read

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sources.md"
FILES = [f"clip_{c}/{i}.jpg" for c in "ab" for i in range(2)]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Any:
    """The job with the page's source among the others, as when its file is imported with theirs."""
    (code,) = (block.split("```")[0] for block in PAGE.read_text().split("```python\n")[1:])
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(lines) <= 40
    folder = tmp_path_factory.mktemp("added")
    (folder / "hand_table.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import_module("hand_table")
    kinds: Any = Annotated[reduce(or_, SourceSettings.__subclasses__()), Field(discriminator="kind")]
    return type("WithHandTable", (IngestJob,), {"__annotations__": {"source": kinds}, "__module__": __name__})


def write_table(root: Path, extra: str = "") -> list[str]:
    """Arguments of the job."""
    images, _ = write_coco(root, FILES)
    lines = ["file;hand;x0;y0;x1;y1"]
    for number, file in enumerate(FILES):
        for side in ("right", "left"):
            x, y, width, height = box_of(side, number)
            lines.append(f"{file};{side};{x};{y};{x + width};{y + height}")
    (images / "hands.csv").write_text("\n".join(lines) + "\n" + extra)
    kind = ["--source.kind", "hand_table", "--source.delimiter", ";", "--image_size", "256"]
    return [*kind, "--source.uri", str(images), "--output", "unused"]


def test_hands_land_in_their_crops(tmp_path, job):
    arguments = write_table(tmp_path, f"{FILES[0]};right;1;2;three;4\nclip_a/9.jpg;left;1;2;30;40\n")
    rows, rejects, _ = read(load(job, arguments).source)
    assert rejects.counts == {"bad_box": 1, "missing_image": 1}
    assert list(rows) == [f"s/clip_{c}#{t}/{i:06d}" for c in "ab" for t in (0, 1) for i in range(2)]
    for name, row in rows.items():
        number = 2 * ("clip_b" in name) + row["frame_index"]
        points = np.array(list(joints_of(row["hand"], number).values())) @ CAMERA.T
        pixels = np.column_stack([points[:, :2] / points[:, 2:] + 0.5, np.ones(21)])
        check_dots({**row, "joints_3d": pixels, "camera": [*np.ravel(row["crop"]), 0, 0, 1]}, radius=5.0)


def test_a_bad_table_is_one_line(tmp_path, job):
    with pytest.raises(DataError, match=r"hands\.csv: line 10 does not name a file"):
        read(load(job, write_table(tmp_path, "clip_a/1.jpg;both;1;2;3;4\n")).source)


def test_it_is_known_to_the_command_line(tmp_path, job, capsys):
    with pytest.raises(SystemExit):
        load(job, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "hand_table: Images and a table of hands" in text
    assert "--source.delimiter ,|; [hand_table] Between the columns. (default: ,)" in text
    with pytest.raises(SettingsError, match=r"^setting 'source\.boxes' = 'b\.json': has no meaning for hand_table$"):
        load(job, [*write_table(tmp_path), "--source.boxes", "b.json"])


def test_the_page_names_every_kind():
    text = PAGE.read_text()
    union, _ = get_args(AnySource)
    for member in get_args(union):
        assert f"| `{member.model_fields['kind'].default}` |" in text
