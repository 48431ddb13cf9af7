import http.server
import io
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, RefusedError, StorageError
from pipeline.frames.plan import IngestSettings, make_plan
from pipeline.frames.rejects import Rejects
from pipeline.frames.rows import unit_groups
from pipeline.storage import copy_to_local, read_bytes
from tests.conftest import ROOT
from tests.frames.bad_inputs import (
    IMAGE_CASES,
    NAME_CASES,
    VIDEO_CASES,
    Case,
    Images,
    Videos,
    encoded,
    markdown,
    refused,
)

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")

SMALL = {"image_size": 64, "group_size": 2}


def read(values: dict[str, Any], change: Callable[[], None] | None = None) -> tuple[list[dict[str, Any]], Rejects]:
    """(rows, rejects) as ingest makes them, in this process. change: what happens between listing and reading."""
    settings = IngestSettings.model_validate({"source": {**values, "name": "s"}, **SMALL})
    source = settings.source.reader()
    source.list_files()
    plan = make_plan(settings, source)
    if change is not None:
        change()
    rejects = Rejects()
    rejects.merge(plan.rejects)
    rows = []
    for task in plan.tasks:
        for unit, split in task.units:
            rows += [row for group in unit_groups(source, "s", unit, split, settings, rejects) for row in group]
    assert len({row["frame_id"] for row in rows}) == len(rows)
    return rows, rejects


def pixels(row: dict[str, Any]) -> np.ndarray:
    image = Image.open(io.BytesIO(row["jpeg"]))
    assert image.mode == "RGB"
    return np.asarray(image, dtype=float)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[type, dict[str, bytes]]:
    """{frame id: JPEG} of the sets without anything bad."""
    result: dict[type, dict[str, bytes]] = {}
    for kind in (Images, Videos):
        thing: Images | Videos = kind(tmp_path_factory.mktemp(kind.__name__))
        rows, rejects = read(thing.source())
        assert not rejects.counts
        result[kind] = {row["frame_id"]: row["jpeg"] for row in rows}
        assert len(rows) == 3
    return result


def check(thing: Images | Videos, case: Case, good: dict[str, bytes]) -> None:
    change = None if case.change is None else partial(case.change, thing)
    if case.stops:
        with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
            read(thing.source(), change)
        assert case.stops in str(caught.value)
        return
    rows, rejects = read(thing.source(), change)
    found = {row["frame_id"]: row["jpeg"] for row in rows}
    assert {name: found.get(name) for name in good} == good  # the rest of the set is as it was
    others = [row for row in rows if row["frame_id"] not in good]
    if case.left_out.keys() & {"broken_video_tail", "damaged_frame"}:  # how far it reaches depends on the encoder
        assert rejects.counts.keys() == case.left_out.keys()
        assert sum(rejects.counts.values()) + len(others) == sum(case.left_out.values())
        assert len(others) >= case.num_kept
    else:
        assert rejects.counts == case.left_out
        assert len(others) == case.num_kept
    if case.looks is not None:
        assert case.looks(pixels(others[0]), pixels({"jpeg": good["s/good/000000"]}))


@pytest.mark.parametrize("case", [*IMAGE_CASES, *NAME_CASES], ids=lambda case: case.what)
def test_images(case, tmp_path, good):
    images = Images(tmp_path)
    case.make(images)
    check(images, case, good[Images])


@pytest.mark.parametrize("case", VIDEO_CASES, ids=lambda case: case.what)
def test_videos(case, tmp_path, good):
    videos = Videos(tmp_path)
    case.make(videos)
    check(videos, case, good[Videos])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="equihand-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "name", "left_out"),
    [
        (Images, "images/odd/00000.jpg", {"refused_image": 1}),
        (Videos, "videos/odd.mp4", {"refused_file": 1}),
        (Videos, "videos/odd.labels.json", {"refused_file": 1}),
    ],
)
def test_refused_files_are_counted(kind, name, left_out, open_folder, good):
    thing = kind(open_folder)
    if isinstance(thing, Images):
        thing.add(encoded(thing.picture))
    else:
        thing.add()
    source = thing.source()
    with refused(open_folder / name):
        rows, rejects = read(source)
    assert rejects.counts == left_out
    assert {row["frame_id"]: row["jpeg"] for row in rows} == good[kind]


class Refuses(http.server.BaseHTTPRequestHandler):
    """An S3 server that answers every request with 403."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_refused_object_is_told_from_storage_that_does_not_answer(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(RefusedError, match=r"^s3://bucket/a\.jpg: no permission$"):
            read_bytes("s3://bucket/a.jpg")
        with pytest.raises(RefusedError):
            copy_to_local("s3://bucket/a.mp4", tmp_path / "a.mp4")
    finally:
        server.shutdown()
        server.server_close()


def test_storage_that_does_not_answer_stops_the_reading(monkeypatch, tmp_path):
    def silent(uri: str) -> bytes:
        raise StorageError(f"{uri}: no answer")

    images = Images(tmp_path)
    source = images.source()
    monkeypatch.setattr("pipeline.frames.image_file.read_bytes", silent)
    with pytest.raises(StorageError, match="no answer"):
        read(source)


def test_the_page_shows_this_table():
    assert (ROOT / "docs" / "bad-inputs.md").read_text(encoding="utf-8") == markdown(), (
        "python -m tests.frames.bad_inputs > docs/bad-inputs.md"
    )


def test_the_table_is_long_enough():
    names = [case.what for case in [*IMAGE_CASES, *NAME_CASES, *VIDEO_CASES]]
    assert len(set(names)) == len(names) >= 25
