"""The source that docs/sources.md shows how to add."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.frames.sources import SourceSettings
from pipeline.frames.sources.image_folder import ImageFolderSettings
from tests.frames.sources import reading
from tests.frames.sources.coco_set import CAMERA, box_of, joints_of, write_coco
from tests.frames.sources.dots import check_dots

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sources.md"
FILES = [f"clip_{c}/{i}.jpg" for c in "ab" for i in range(2)]


@pytest.fixture
def added(monkeypatch) -> None:
    """The page's source, in place of image_folder's."""
    (code,) = (block.split("```")[0] for block in PAGE.read_text().split("```python\n")[1:])
    namespace: dict = {"__name__": "hand_table"}
    exec(compile(code, str(PAGE), "exec"), namespace)
    monkeypatch.setattr(reading, "open_source", namespace["HandTable"])


def write_table(root: Path, extra: str = "") -> SourceSettings:
    images, _ = write_coco(root, FILES)
    lines = ["file,hand,x0,y0,x1,y1"]
    for number, file in enumerate(FILES):
        for side in ("right", "left"):
            x, y, width, height = box_of(side, number)
            lines.append(f"{file},{side},{x},{y},{x + width},{y + height}")
    (images / "hands.csv").write_text("\n".join(lines) + "\n" + extra)
    return ImageFolderSettings(uri=str(images))


def test_hands_land_in_their_crops(tmp_path, added):
    rows, rejects, _ = reading.read(
        write_table(tmp_path, f"{FILES[0]},right,1,2,three,4\nclip_a/9.jpg,left,1,2,30,40\n")
    )
    assert rejects.counts == {"bad_box": 1, "missing_image": 1}
    assert list(rows) == [f"s/clip_{c}#{t}/{i:06d}" for c in "ab" for t in (0, 1) for i in range(2)]
    for name, row in rows.items():
        number = 2 * ("clip_b" in name) + row["frame_index"]
        points = np.array(list(joints_of(row["hand"], number).values())) @ CAMERA.T
        pixels = np.column_stack([points[:, :2] / points[:, 2:] + 0.5, np.ones(21)])
        check_dots({**row, "joints_3d": pixels, "camera": [*np.ravel(row["crop"]), 0, 0, 1]}, radius=5.0)


def test_a_bad_table_is_one_line(tmp_path, added):
    with pytest.raises(DataError, match=r"hands\.csv: line 10 does not name a file"):
        reading.read(write_table(tmp_path, "clip_a/1.jpg,both,1,2,3,4\n"))


def test_the_page_names_every_kind():
    text = PAGE.read_text()
    for kind in get_args(SourceSettings.model_fields["kind"].annotation):
        assert f"| `{kind}` |" in text
