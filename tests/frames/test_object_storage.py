"""Ingest and stream against object storage on a bad day: the same rows, and no more requests than there must be."""

import random
import threading
import time

import pytest

from pipeline import storage
from pipeline.errors import DataError, MissingError, StorageError
from pipeline.frames import plan
from pipeline.frames.epoch_plan import StreamPlan, plan_epoch
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.read_items import ItemReader
from pipeline.frames.shards import _kept_open
from tests.faulty_s3 import FAULTS, FaultyS3
from tests.frames.clips import write_clip
from tests.frames.inline_ray import PLACES, map_inline


@pytest.fixture
def proxy(s3_endpoint, s3, monkeypatch):
    """The faultless proxy; all that goes to S3 goes through it."""
    monkeypatch.setattr(storage, "_backoff_s", lambda attempt: 0.01)
    with FaultyS3(s3_endpoint).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.uri)
        _kept_open.cache_clear()
        yield running
    _kept_open.cache_clear()


@pytest.fixture
def clips(s3, tmp_path) -> str:
    for i in range(4):
        write_clip(tmp_path / "clips", f"clip_{i}", num_frames=12)
    storage.copy_from_local(tmp_path / "clips", f"{s3}/clips")
    return f"{s3}/clips"


def settings_for(uri: str) -> IngestSettings:
    source = {"kind": "labelled_video", "uri": uri, "name": "c"}
    return IngestSettings.model_validate(
        {"source": source, "image_size": 48, "rows_per_shard": 24, "row_group_size": 8}
    )


def epoch_of(uri: str) -> dict[str, bytes]:
    """{frame id: pixels} of an epoch, read as the stream's tasks read it."""
    return epoch_of_set(FrameSet.open(uri))


def epoch_of_set(frames: FrameSet) -> dict[str, bytes]:
    """The same of a set that is open."""
    plan = StreamPlan(split="train", batch_size=8, columns=("frame_id",))
    reader = ItemReader(48, plan)
    found: dict[str, bytes] = {}
    for item in plan_epoch([frames], [frames.rows_in("train")], plan, 0):
        block = reader.read(item)
        assert not any(block["problem"])
        found |= {name: pixels.tobytes() for name, pixels in zip(block["frame_id"], block["frames"], strict=True)}
    return found


def test_ingest_and_stream_through_faults_end_with_the_same_rows(clips, s3, proxy, monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    monkeypatch.setattr(plan, "MIN_FRAMES_PER_TASK", 20)
    whole = ingest(settings_for(clips), f"{s3}/whole")
    expected = epoch_of(f"{s3}/whole")
    assert len(expected) == whole.num_rows == 48

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    proxy.reset_counts()
    proxy.seed, proxy.rate = seed, 0.1
    manifest = ingest(settings_for(clips), f"{s3}/faulty")
    _kept_open.cache_clear()
    found = epoch_of(f"{s3}/faulty")
    print(dict(proxy.requests), dict(proxy.injected))
    assert manifest.shards == whole.shards
    assert found == expected
    assert sum(proxy.injected.values()) >= 1


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_survived_by_reads_writes_and_lists(s3, proxy, fault):
    data = bytes(range(256)) * 8000
    storage.write_bytes(f"{s3}/there", data)
    proxy.rate, proxy.faults = 1.0, (fault,)
    results = {}

    def gather(name, work):
        results[name] = work()

    calls = {
        "read": lambda: storage.read_bytes(f"{s3}/there") == data,
        "write": lambda: storage.write_bytes(f"{s3}/new", data),
        "list": lambda: storage.list_files(s3)[-1],
        "preflight": lambda: storage.preflight(s3 + "/", write=True),
    }
    threads = [threading.Thread(target=gather, args=call) for call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {"read": True, "write": None, "list": f"{s3}/there", "preflight": None}
    assert proxy.injected[fault] >= 4
    proxy.rate = 0.0
    assert storage.read_bytes(f"{s3}/new") == data


def key_file(folder, key: str):
    """The file from which the AWS SDK takes credentials, as a program that keeps them fresh writes it."""
    path, new = folder / "credentials", folder / "credentials.new"
    new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = of-{key}\n")
    new.replace(path)  # nobody reads half a file
    return path


def test_credentials_that_are_kept_fresh_do_not_expire(clips, s3, proxy, tmp_path, monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    ingest(settings_for(clips), f"{s3}/frames")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(key_file(tmp_path, "FIRST")))
    frames = FrameSet.open(f"{s3}/frames")
    expected = epoch_of_set(frames)
    key_file(tmp_path, "SECOND")
    proxy.expired.add("FIRST")
    _kept_open.cache_clear()  # also where the footer has to be read
    assert epoch_of(f"{s3}/frames") == expected
    key_file(tmp_path, "THIRD")
    proxy.expired.add("SECOND")
    assert epoch_of(f"{s3}/frames") == expected
    storage.write_bytes(f"{s3}/x", b"x")

    # Nobody renews them any more: it is said so, and no row is taken for damaged.
    proxy.expired.add("THIRD")
    for _ in range(2):  # open already, and opened anew
        with pytest.raises(StorageError, match=r"s3://.*\.parquet: .*expired") as refused:
            epoch_of_set(frames)
        assert not isinstance(refused.value, DataError)
        _kept_open.cache_clear()
    with pytest.raises(StorageError, match=r"credentials were refused \(ExpiredToken.*AWS_SESSION_TOKEN"):
        storage.write_bytes(f"{s3}/x", b"x")

    # They come late: what waits goes on.
    late = threading.Timer(0.5, key_file, (tmp_path, "FOURTH"))
    monkeypatch.setattr(storage, "_backoff_s", lambda attempt: 0.8)
    late.start()
    assert epoch_of_set(frames) == expected
    late.join()
    for key, work in {
        "FIFTH": lambda: storage.exists(f"{s3}/x"),
        "SIXTH": lambda: storage.delete(f"{s3}/x"),
        "SEVENTH": lambda: storage.list_files(f"{s3}/frames"),
        "EIGHTH": lambda: storage.copy_tree(f"{s3}/frames", f"{s3}/copy"),
    }.items():
        before = (tmp_path / "credentials").read_text().split()[3]
        proxy.expired.add(before)
        late = threading.Timer(0.5, key_file, (tmp_path, key))
        late.start()
        work()
        late.join()


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_rows_of_storage_that_does_not_answer_are_not_taken_for_damaged(clips, s3, proxy, monkeypatch, fault):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    storage.forget_connections()
    ingest(settings_for(clips), f"{s3}/frames")
    expected = epoch_of(f"{s3}/frames")
    frames = FrameSet.open(f"{s3}/frames")
    proxy.outage = fault
    with pytest.raises(StorageError, match=r"s3://.*\.parquet: ") as away:
        epoch_of_set(frames)
    assert not isinstance(away.value, DataError)
    back = threading.Timer(1.0, setattr, (proxy, "outage", ""))
    back.start()
    monkeypatch.setattr(storage, "_backoff_s", lambda attempt: 0.7)
    assert epoch_of_set(frames) == expected
    back.join()
    storage.forget_connections()


def test_an_epoch_lists_nothing_and_reads_long_stretches(clips, s3, proxy, monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    manifest = ingest(settings_for(clips), f"{s3}/frames")
    _kept_open.cache_clear()
    proxy.reset_counts()
    epoch_of(f"{s3}/frames")
    first = dict(proxy.requests)
    proxy.reset_counts()
    epoch_of(f"{s3}/frames")
    print("first epoch", first, "second", dict(proxy.requests), [shard.row_groups for shard in manifest.shards])
    num_row_groups = sum(len(shard.row_groups) for shard in manifest.shards)
    manifest_gets = 1
    assert "LIST" not in first
    assert proxy.requests["LIST"] == 0
    # Footers are read once, and later epochs ask for one stretch a row group, however many columns it has.
    assert proxy.requests["GET"] <= num_row_groups + manifest_gets
    assert first["GET"] <= num_row_groups + 2 * len(manifest.shards) + manifest_gets
    assert proxy.most_at_once <= 16


def test_a_whole_file_is_one_request(s3, proxy):
    data = bytes(3_000_000)
    storage.write_bytes(f"{s3}/file", data)
    proxy.reset_counts()
    assert storage.read_bytes(f"{s3}/file") == data
    assert proxy.requests == {"HEAD": 1, "GET": 1}


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(storage, "_backoff_s", lambda attempt: 0.0)
    calls = []

    def work(error):
        calls.append(time.monotonic())
        if len(calls) < 3 or error is not OSError:
            raise error("no luck")
        return "done"

    assert storage.with_patience(lambda: work(OSError)) == "done"
    assert len(calls) == 3
    with pytest.raises(StorageError, match="no luck"):
        storage.with_patience(lambda: work(ConnectionError))
    assert len(calls) == 3 + storage._PATIENCE
    with pytest.raises(MissingError):
        storage.with_patience(lambda: work(MissingError))
    assert len(calls) == 4 + storage._PATIENCE
