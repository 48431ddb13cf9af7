from pathlib import Path

import pytest
from PIL import Image

from jobs import rendering_sheets
from jobs.rendering_sheets import SHEETS, RenderingSheetsJob, run
from pipeline.config import flatten
from pipeline.frames.synthetic.clip import ClipSettings

ROOT = Path(__file__).resolve().parents[2]


def test_a_sheet_for_each_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering_sheets, "SHEETS", {name: SHEETS[name] for name in ("plain", "jpeg")})
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (80, 80), (0, 0, 255)).save(photographs / "blue.png")
    out = tmp_path / "out"
    result = run(RenderingSheetsJob(out=str(out), photographs=str(photographs), image_size=32))
    assert result["num_sheets"] == 4
    pictures = {path.stem: Image.open(path).convert("RGB") for path in out.iterdir()}
    assert set(pictures) == {"plain", "jpeg", "photographs", "labels"}
    assert {picture.size for picture in pictures.values()} == {(8 * 32, 32)}
    assert len({picture.tobytes() for picture in pictures.values()}) == 4


@pytest.mark.parametrize("name", [*SHEETS, "photographs", "labels"])
def test_the_page_shows_every_sheet(name):
    assert f"(images/rendering/{name}.png)" in (ROOT / "docs" / "rendering.md").read_text()
    assert Image.open(ROOT / "docs" / "images" / "rendering" / f"{name}.png").size == (768, 96)


def test_the_page_names_every_setting():
    page = (ROOT / "docs" / "rendering.md").read_text()
    for name in flatten(ClipSettings()):
        assert f"`{name}`" in page
