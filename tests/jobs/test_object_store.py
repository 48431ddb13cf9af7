import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import psutil
import pyarrow.fs as pafs
import pytest

from jobs import object_store
from jobs.object_store import ObjectStore
from pipeline import storage
from pipeline.errors import StorageError

LOCAL: Any = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": object_store.REGION}


def keys(bucket: str = "equihand") -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_content_of_every_kind_survives_a_restart(tmp_path: Path) -> None:
    big = bytes(range(256)) * (6 << 12)  # 6 MiB, comes in parts
    with ObjectStore(tmp_path) as store:
        storage.write_bytes(f"{store.uri}/a/b/small.txt", b"small")
        storage.write_bytes(f"{store.uri}/empty", b"")
        s3: Any = boto3.client("s3")
        s3.put_object(
            Bucket="equihand", Key="a/b", Body=b"also a prefix", ContentType="text/plain", Metadata={"k": "v"}
        )
        s3.put_object(Bucket="equihand", Key="odd key/ü & %41?#+~", Body=b"odd")
        config = boto3.s3.transfer.TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
        (tmp_path / "big.bin").write_bytes(big)
        s3.upload_file(str(tmp_path / "big.bin"), "equihand", "big.bin", Config=config)
        filesystem, path = pafs.FileSystem.from_uri(f"{store.uri}/folder/inner")
        filesystem.create_dir(path)
        s3.create_bucket(Bucket="another")
        s3.put_object(Bucket="another", Key="x", Body=b"y")
        before = keys()
        assert "folder/inner/" in before  # the marker that pyarrow leaves for an empty folder
        assert s3.head_object(Bucket="equihand", Key="big.bin")["ETag"].strip('"').endswith("-2")

    with ObjectStore(tmp_path) as store:
        assert keys() == before
        assert keys("another") == ["x"]
        assert storage.read_bytes(f"{store.uri}/big.bin") == big
        assert storage.read_bytes(f"{store.uri}/empty") == b""
        filesystem, path = pafs.FileSystem.from_uri(f"{store.uri}/folder/inner")
        assert filesystem.get_file_info(path).type == pafs.FileType.Directory
        answer = boto3.client("s3").get_object(Bucket="equihand", Key="a/b")
        assert (answer["Body"].read(), answer["ContentType"], answer["Metadata"]) == (
            b"also a prefix",
            "text/plain",
            {"k": "v"},
        )
        saved = store.save()
        assert saved["objects"] == len(before) + 1
        assert saved["written"] == 0  # the object in parts too: it is known under its new etag


def test_saving_is_incremental_and_follows_deletion(tmp_path: Path) -> None:
    with ObjectStore(tmp_path) as store:
        for name in ("one", "two", "three"):
            storage.write_bytes(f"{store.uri}/{name}", name.encode())
        assert store.save()["written"] == 3
        storage.write_bytes(f"{store.uri}/two", b"changed")
        storage.write_bytes(f"{store.uri}/four", b"one")  # content that is already there
        storage.delete(f"{store.uri}/three")
        assert store.save() == {"objects": 3, "bytes": 13, "written": 1, "written_bytes": 7}
        assert len(list((tmp_path / "blobs").iterdir())) == 2
    with ObjectStore(tmp_path) as store:
        assert keys() == ["four", "one", "two"]
        assert storage.read_bytes(f"{store.uri}/two") == b"changed"


def test_a_save_cut_off_leaves_the_previous_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path).start()
    try:
        storage.write_bytes(f"{store.uri}/kept", b"first")
        store.save()
        storage.write_bytes(f"{store.uri}/kept", b"second")
        storage.write_bytes(f"{store.uri}/new", b"new")

        def interrupted(path: Path, data: Any) -> None:
            if path.name == "index.json":
                raise KeyboardInterrupt
            write(path, data)

        write = object_store._write_atomically
        with monkeypatch.context() as patch:
            patch.setattr(object_store, "_write_atomically", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.save()
    finally:
        store.stop(save=False)
    with ObjectStore(tmp_path) as again:
        assert keys() == ["kept"]
        assert storage.read_bytes(f"{again.uri}/kept") == b"first"
        again.save()
        assert len(list((tmp_path / "blobs").iterdir())) == 1  # what the cut-off save left is cleared


def test_environment_is_ours_while_it_runs_and_restored_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with ObjectStore(tmp_path) as store:
        assert os.environ["AWS_ENDPOINT_URL"] == store.endpoint
        assert os.environ["AWS_ACCESS_KEY_ID"] == "local"
        assert "AWS_PROFILE" not in os.environ
        assert "AWS_ENDPOINT_URL_S3" not in os.environ
        assert keys() == []
        endpoint = store.endpoint
    assert os.environ["AWS_PROFILE"] == "mine"
    assert os.environ["AWS_ACCESS_KEY_ID"] == "real"
    assert os.environ["AWS_ENDPOINT_URL_S3"] == "https://elsewhere"
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert not answers(endpoint)


def test_folder_in_use_damaged_folder_and_taken_port_get_one_line(tmp_path: Path) -> None:
    with ObjectStore(tmp_path) as store:
        storage.write_bytes(f"{store.uri}/x", b"content")
        with pytest.raises(StorageError, match="in use by another process"):
            ObjectStore(tmp_path).start()
        port = int(store.endpoint.rpartition(":")[2])
        with pytest.raises(StorageError, match="did not start"):
            ObjectStore(tmp_path / "other", port=port).start()
    blob = next((tmp_path / "blobs").iterdir())
    blob.write_bytes(b"cut")
    with pytest.raises(StorageError, match=r"damaged.*s3://equihand/x"):
        ObjectStore(tmp_path).start()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(StorageError, match="not an index"):
        ObjectStore(tmp_path).start()


def test_nothing_is_answered_before_everything_is_loaded(tmp_path: Path, free_port: int) -> None:
    """A client that asks from the start on sees no empty store and no part of one; the server does not grow by big files."""
    big, num_small = 64 << 20, 3000
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    entries: dict[str, dict[str, Any]] = {}
    for number in range(num_small):
        content = b"%06d" % number
        name = f"{hashlib.md5(content).hexdigest()}-{len(content)}"
        (blobs / name).write_bytes(content)
        entries[f"small/{number:06d}"] = {"blob": name, "size": len(content), "content_type": "a/b", "metadata": {}}
    for letter in "ab":
        name = f"{letter * 32}-{big}"
        with (blobs / name).open("wb") as file:
            file.truncate(big)
        entries[f"big/{letter}"] = {"blob": name, "size": big, "content_type": "a/b", "metadata": {}}
    (tmp_path / "index.json").write_text(json.dumps({"version": 1, "buckets": {"equihand": entries}}))
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.object_store", "--folder", str(tmp_path), "--port", str(free_port)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        endpoint = f"http://127.0.0.1:{free_port}"
        refused = 0
        while not connects(free_port):
            refused += 1
            assert process.poll() is None
            time.sleep(0.02)
        client: Any = boto3.client("s3", **LOCAL, endpoint_url=endpoint)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="equihand")
        assert {item["Key"] for page in pages for item in page["Contents"]} == set(entries)
        assert refused > 0
        assert client.get_object(Bucket="equihand", Key="big/b", Range=f"bytes={big - 3}-")["Body"].read() == b"\0\0\0"
        (server,) = psutil.Process(process.pid).children()
        status = Path(f"/proc/{server.pid}/status").read_text().split()
        assert int(status[status.index("VmHWM:") + 1]) < (big >> 10) + 200_000  # kB; moto itself has about 130,000
        (listening,) = [item.laddr.ip for item in server.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
        assert listening == "127.0.0.1"
    finally:
        process.kill()
        process.wait()


PARENT = """
import sys, time
from jobs.object_store import ObjectStore
from pipeline.storage import write_bytes
with ObjectStore(sys.argv[1]) as store:
    write_bytes(store.uri + "/saved", b"1")
    store.save()
    write_bytes(store.uri + "/after", b"2")
    print(store.endpoint, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "kept"), [(signal.SIGKILL, {"saved"}), (signal.SIGINT, {"saved", "after"})])
def test_server_ends_with_its_parent(tmp_path: Path, number: int, kept: set[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    endpoint = parent.stdout.readline().strip()
    assert answers(endpoint)
    # To the whole group, as a terminal's Ctrl-C goes: the server must not get it before its content is saved.
    os.killpg(parent.pid, number)
    parent.wait(20)
    parent.stdout.close()
    assert wait_until(lambda: not answers(endpoint))
    index = json.loads((tmp_path / "index.json").read_text())
    assert set(index["buckets"]["equihand"]) == kept
