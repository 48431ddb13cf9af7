"""What is wrong with rows and shards in mid-training, and what reading costs."""

import http.server
import io
import re
import threading
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import DataError, StorageError
from pipeline.frames import shards, windows
from pipeline.frames.epoch_plan import Item, RowRange, StreamPlan, plan_epoch
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.read_items import ItemReader, bad_frame
from tests.tiny_sets import write_tiny_set


@pytest.fixture
def in_process(monkeypatch):
    """Run work items here instead of in Ray Data's tasks."""
    monkeypatch.setattr(windows, "read_items", lambda items, reader: ((item, reader.read(item)) for item in items))


@pytest.fixture
def frames(tmp_path):
    """2000 rows in 32 shards, items of 512 rows."""
    return str(tmp_path), write_tiny_set(str(tmp_path), splits={"train": 2000}, image_size=16)


def rewritten(uri, shard, change):
    """A shard with some of its table changed, in the same row groups."""
    path = f"{uri}/{shard.path}"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=shard.row_groups[0])


def with_column(table, name, values):
    field = pa.field(name, table.schema.field(name).type)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def first_item(uri, manifest, **options):
    """The first work item of a set, and a plan's reader."""
    plan = StreamPlan(split="train", batch_size=16, **options)
    items = plan_epoch([FrameSet(uri, manifest)], [manifest.num_rows], plan, 0)
    return items[0], ItemReader(manifest.image_size, plan)


def read_all(uri, start=(0, 0), **options):
    stream = FrameSet.open(uri).stream(StreamPlan(split="train", batch_size=50, **options))
    stream.load_state_dict({"epoch": start[0], "step": start[1]})
    batches = list(stream)
    return batches, [problem for batch in batches for problem in batch.problems]


@pytest.mark.usefixtures("in_process")
def test_rows_with_missing_fields_are_named_and_replaced(frames):
    uri, manifest = frames
    shard = manifest.shards[2]

    def change(table):
        jpegs, joints = table["jpeg"].to_pylist(), table["joints_3d"].to_pylist()
        jpegs[5], jpegs[6] = None, b""
        joints[7], joints[8], joints[9] = None, [1.0, 2.0], [float("nan")] * 63
        table = with_column(with_column(table, "jpeg", jpegs), "joints_3d", joints)
        for row, name in ((10, "clip_id"), (11, "hand"), (12, "confidence")):  # the last one may be missing
            values = table[name].to_pylist()
            table = with_column(table, name, [*values[:row], None, *values[row + 1 :]])
        return table

    rewritten(uri, shard, change)
    options = {"columns": ("frame_id", "joints_3d", "hand", "confidence"), "epochs": 2}
    batches, problems = read_all(uri, **options)
    assert Counter(bad.reason for bad in problems) == {
        "no JPEG": 2,
        "JPEG does not decode": 2,
        "no joints_3d": 2,
        "joints_3d has 2 numbers": 2,
        "joints_3d is not finite": 2,
        "no clip_id": 2,
        "no hand": 2,
    }
    assert {bad.shard for bad in problems} == {f"{uri}/{shard.path}"}
    first = 2 * 64 + 5
    names = [f"tiny/train-{row // 4:05d}/{row % 4:06d}" for row in range(first, first + 7)]
    assert sorted({bad.frame for bad in problems}) == names
    counts = Counter(name for batch in batches[:40] for name in batch.columns["frame_id"])
    assert sum(counts.values()) == 2000
    assert not set(names) & set(counts)
    assert all(max(Counter(batch.columns["frame_id"]).values()) == 1 for batch in batches)  # none twice in a batch
    assert all(bool(batch.columns["joints_3d"].isfinite().all()) for batch in batches)
    again, _ = read_all(uri, **options)
    assert [batch.columns["frame_id"] for batch in batches] == [batch.columns["frame_id"] for batch in again]
    rest, _ = read_all(uri, (0, 13), **options)
    assert [batch.columns["frame_id"] for batch in batches[13:]] == [batch.columns["frame_id"] for batch in rest]


@pytest.mark.usefixtures("in_process")
def test_rows_need_labels_of_one_kind(tmp_path):
    """Also where one shard is of an earlier version, without the column of joints in the image."""
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": 256}, image_size=16, in_2d=lambda number: number >= 64)
    rewritten(uri, manifest.shards[0], lambda table: table.drop_columns("joints_2d"))

    def change(table):
        joints = table["joints_2d"].to_pylist()
        joints[3], joints[4], joints[5] = None, [1.0] * 41, [float("inf")] * 42
        return with_column(table, "joints_2d", joints)

    rewritten(uri, manifest.shards[1], change)
    columns = ("joints_3d", "camera", "joints_2d", "frame_id")
    batches, problems = read_all(uri, columns=columns, max_bad_fraction=0.1, drop_last=False)
    assert Counter(bad.reason for bad in problems) == {
        "no joints_3d with a camera, and no joints_2d": 1,
        "joints_2d has 41 numbers": 1,
        "joints_2d is not finite": 1,
    }
    for batch in batches:
        in_3d = batch.columns["joints_3d"].isfinite().all((1, 2)) & batch.columns["camera"].isfinite().all((1, 2))
        assert bool((in_3d ^ batch.columns["joints_2d"].isfinite().all((1, 2))).all())
    with pytest.raises(DataError, match="no joints_3d"):
        read_all(uri, columns=("joints_3d", "camera"))
    with pytest.raises(DataError, match="no joints_2d"):
        read_all(uri, columns=("joints_2d",))


def damaged_text(uri, shard):
    """A byte of a frame id that no text has."""
    path = Path(uri, shard.path)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=16, compression="none", use_dictionary=False, write_statistics=False)
    name = table["frame_id"][20].as_py().encode()
    path.write_bytes(path.read_bytes().replace(name, b"\xff" + name[1:]))


def no_column(uri, shard):
    rewritten(uri, shard, lambda table: table.drop_columns("jpeg"))


def cut_off(uri, shard):
    path = Path(uri, shard.path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(uri, shard):
    path = Path(uri, shard.path)
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:100] + bytes(half - 100) + path.read_bytes()[half:])


def shorter(uri, shard):
    rewritten(uri, shard, lambda table: table.slice(0, 40))


def vanished(uri, shard):
    Path(uri, shard.path).unlink()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("damage", "reason", "rows"),
    [
        (vanished, "has vanished", 64),
        (cut_off, "magic bytes|footer|[Ss]ize", 64),
        (no_column, "has no column jpeg", 64),
        (shorter, "fewer rows than the manifest says", 24),
        (overwritten, "", 32),
        (damaged_text, "UTF8", 16),
    ],
)
def test_a_damaged_shard_costs_its_rows_and_no_more(frames, damage, reason, rows):
    uri, manifest = frames
    damage(uri, manifest.shards[3])
    batches, problems = read_all(uri, max_bad_fraction=0.05, columns=("frame_id",))
    assert len(batches) == 40
    assert {bad.shard for bad in problems} == {f"{uri}/{manifest.shards[3].path}"}
    assert len(problems) <= 64
    assert len(problems) == rows or damage is overwritten
    if reason:
        assert all(re.search(reason, bad.reason) for bad in problems), problems
    assert all(None not in batch.columns["frame_id"] for batch in batches)
    with pytest.raises(DataError, match=rf"above max_bad_fraction=0.005: .* in \S+{manifest.shards[3].path} \("):
        read_all(uri, max_bad_fraction=0.005)


def replaced(uri, shard):
    """By another file of the same name; the old one lives on for whoever has it open."""
    new = Path(uri, "new.parquet")
    new.write_bytes(b"something else")
    new.replace(Path(uri, shard.path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(vanished, "has vanished"), (replaced, "magic bytes|footer|[Ss]ize"), (shorter, "fewer rows")],
)
def test_a_shard_that_is_open_already_is_damaged_for_all_alike(frames, damage, reason):
    uri, manifest = frames
    item, _ = first_item(uri, manifest, shuffle=False)
    _, reader = first_item(uri, manifest, columns=("frame_id",))
    assert not any(reader.read(item)["problem"])  # this process has all of the item's shards open now
    damage(uri, next(shard for shard in manifest.shards if shard.path == item.ranges[0].path))
    found = reader.read(item)
    shards._kept_open.cache_clear()
    fresh = reader.read(item)
    assert found["problem"].tolist() == fresh["problem"].tolist()
    assert found["frame_id"].tolist() == fresh["frame_id"].tolist()
    problems = [text for text in found["problem"] if text]
    assert len(problems) == (24 if damage is shorter else 64)
    assert all(re.search(reason, text) for text in problems)


def test_an_object_that_vanished_is_named_in_one_way(s3):
    uri = f"{s3}/frames"
    manifest = write_tiny_set(uri, splits={"train": 200}, image_size=16)
    item, reader = first_item(uri, manifest)
    assert not any(reader.read(item)["problem"])
    storage.delete(f"{uri}/{manifest.shards[1].path}")
    bad = [bad_frame(text) for text in reader.read(item)["problem"] if text]
    assert Counter((each.shard, each.reason) for each in bad) == {
        (f"{uri}/{manifest.shards[1].path}", "has vanished"): 64
    }


@pytest.mark.usefixtures("in_process")
def test_a_frame_set_without_a_shard_left_stops_the_run(frames):
    uri, manifest = frames
    for shard in manifest.shards:
        vanished(uri, shard)
    with pytest.raises(DataError, match=r"no usable frame among 512 rows, nor in other shards tried .*has vanished"):
        read_all(uri, max_bad_fraction=1)


@pytest.mark.usefixtures("in_process")
def test_all_of_a_worker_s_first_item_may_be_gone(tmp_path):
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": 2048}, rows_per_shard=512, row_group_size=512, image_size=16)
    item, _ = first_item(uri, manifest)
    vanished(uri, next(shard for shard in manifest.shards if shard.path == item.ranges[0].path))
    batches, problems = read_all(uri, max_bad_fraction=0.25, columns=("frame_id",))
    assert len(batches) == 40
    assert len(problems) == 512
    assert problems[0].frame.endswith("of row group 0")
    assert all(None not in batch.columns["frame_id"] for batch in batches)


@pytest.mark.usefixtures("in_process")
def test_an_object_store_that_keeps_failing_stops_the_run(frames, monkeypatch):
    """Every answer is 503, also after the retries: nothing is known of the rows, so none counts as damaged."""
    _, manifest = frames

    requests = []

    class Failing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = storage.pafs.S3FileSystem(
        access_key="a",
        secret_key="b",
        region="us-east-1",
        endpoint_override=f"http://127.0.0.1:{server.server_port}",
        retry_strategy=storage.pafs.AwsStandardS3RetryStrategy(max_attempts=2),
    )
    monkeypatch.setattr(storage, "_s3", lru_cache(lambda endpoint, credentials: store))
    monkeypatch.setattr(storage, "_backoff_s", lambda attempt: 0.01)
    with pytest.raises(StorageError, match=r"^s3://bucket/frames/.*503"):
        list(FrameSet("s3://bucket/frames", manifest).stream(StreamPlan(split="train", batch_size=50)))
    assert len(requests) < 200  # those of one item, a few times each; all of them would be thousands
    server.shutdown()


class Counting(io.RawIOBase):
    """A file that notes every read as (offset, bytes)."""

    def __init__(self, path, reads):
        self.file, self.reads = io.BytesIO(Path(path).read_bytes()), reads

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *where):
        return self.file.seek(*where)

    def tell(self):
        return self.file.tell()

    def read(self, size=-1):
        start = self.file.tell()
        data = self.file.read(size)
        self.reads.append((start, len(data)))
        return data


def test_only_the_columns_asked_for_are_read_in_few_reads(tmp_path, monkeypatch):
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": 512}, rows_per_shard=512, row_group_size=128, image_size=96)
    item, _ = first_item(uri, manifest, shuffle=False)
    metadata = pq.ParquetFile(f"{uri}/{manifest.shards[0].path}").metadata
    sizes: Counter[str] = Counter()
    for group in range(4):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    reads: list[tuple[int, int]] = []

    class Files:
        def open_input_file(self, path):
            return pa.PythonFile(Counting(path, reads), mode="r")

    monkeypatch.setattr(shards, "resolve", lambda name: (Files(), name))
    needed = sizes["frame_id"] + sizes["clip_id"] + sizes["jpeg"]
    found = {}
    for columns in ((), ("joints_3d",)):
        shards._kept_open.cache_clear()
        shards.open_for_long(f"{uri}/{manifest.shards[0].path}")  # the footer is read once
        reads.clear()
        first_item(uri, manifest, columns=columns)[1].read(item)
        found[columns] = sum(size for _, size in reads)
        assert len(reads) <= 8  # of four row groups
    shards._kept_open.cache_clear()
    assert needed <= found[()] < 1.03 * needed  # small neighbours of a column come along
    assert found["joints_3d",] >= found[()] + sizes["joints_3d"]
    assert found["joints_3d",] < 1.03 * (needed + sizes["joints_3d"])


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_goes_on_without_a_shard_and_ends_without_any(frames, monkeypatch):
    uri, manifest = frames
    vanished(uri, manifest.shards[3])
    batches, problems = read_all(uri, max_bad_fraction=0.05, columns=("frame_id",))
    assert len(problems) == 64
    with monkeypatch.context() as patch:
        patch.setattr(windows, "read_items", lambda items, reader: ((item, reader.read(item)) for item in items))
        here, same = read_all(uri, max_bad_fraction=0.05, columns=("frame_id",))
    assert problems == same
    assert [batch.columns for batch in batches] == [batch.columns for batch in here]

    good, reader = first_item(uri, manifest, num_readers=1, window_mb=1)
    gone = Item(0, 1, 0, 0, uri, 4, (RowRange("shards/gone.parquet", 0, 0, 16),))
    read = windows.read_items(iter([good, gone]), reader)
    assert next(read)[0] == good
    with pytest.raises(DataError, match=r"no usable frame among 16 rows, nor in other shards tried .*has vanished"):
        next(read)
