"""An S3 object store on loopback for the demo, the tests and rehearsals, whose content survives between runs.

    with ObjectStore("demo/object_store") as store:      # AWS_* of this process now point at it
        write_bytes("s3://equihand/a/b.txt", b"...")
        store.save()                                     # also happens on leaving the block

The server is moto's, a child process that keeps every object in memory. What survives lies in the store's folder:

    blobs/<etag>-<size>     one file for each different content, never changed once written
    index.json              bucket and key -> blob, content type, metadata; replaced in one step, always last

So a save that is cut off at any moment leaves the previous, complete content; keys may be anything that S3 allows
(slashes, directory markers "a/", a key that is also another one's prefix); and a save reads only what is new. The server
(jobs/object_server.py) answers only once all of it is loaded.

Run as a program it serves a folder until Ctrl-C: `python -m jobs.object_store --folder DIR --port 9000`.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import boto3
import botocore.config
import botocore.exceptions

from pipeline.errors import StorageError
from pipeline.storage import preflight

REGION = "us-east-1"
NUM_THREADS = 4  # the server is one Python process: more requests at once only queue there
START_TIMEOUT_S = 300.0  # it imports much, and the machine may be busy
SPOOL_BYTES = 1 << 20  # objects above this lie in the server's temporary files, not in its memory

_SERVER = Path(__file__).with_name("object_server.py")

# Variables that would make an S3 client of this process talk to somewhere else, or as somebody else.
_CLEARED = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)

T = TypeVar("T")
Index = dict[str, dict[str, dict[str, Any]]]  # bucket -> key -> {"blob", "size", "content_type", "metadata"}


class ObjectStore:
    """The server, its folder, and this process's AWS_* variables while it runs. Use it as a context manager.

    folder: where the content lies between runs; created when missing. One process at a time.
    bucket: created when missing. Other buckets made while the server runs are kept too.
    port: 0 takes a free one.
    Raises StorageError when the folder is in use or damaged, or the server does not start.
    """

    def __init__(self, folder: str | Path, bucket: str = "equihand", port: int = 0) -> None:
        self.folder = Path(folder)
        self.bucket = bucket
        self.endpoint = ""
        self.log_file = self.folder / "server.log"
        self._port = port
        self._stack = contextlib.ExitStack()
        self._index: Index = {}
        self._saving = threading.Lock()

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def start(self) -> Self:
        """Start the server with the folder's content and the bucket in it, point AWS_* of this process at it."""
        with contextlib.ExitStack() as stack:  # undoes what has been done when a later step fails
            preflight(str(self.folder), write=True)
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            stack.enter_context(_only_user(self.folder))
            self._index = _read_index(self.folder)
            endpoint = stack.enter_context(_server(self.folder, self.bucket, self.log_file, self._port))
            stack.enter_context(_environment(endpoint))
            self._client = _client(endpoint)
            self._stack = stack.pop_all()
        self.endpoint = endpoint
        return self

    def save(self) -> dict[str, int]:
        """Bring the folder up to the server's content. Returns {"objects", "bytes", "written", "written_bytes"}."""
        with self._saving, self._named_errors():
            index: Index = {}
            written: list[int] = []

            def keep(item: tuple[str, str, str]) -> None:
                bucket, key, blob = item
                entry = self._index.get(bucket, {}).get(key)
                if entry is None or entry["blob"] != blob:
                    entry = self._fetch(bucket, key, written)
                if entry is not None:
                    index[bucket][key] = entry

            found: list[tuple[str, str, str]] = []
            for bucket in (item["Name"] for item in self._client.list_buckets()["Buckets"]):
                index[bucket] = {}
                for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    found += [(bucket, item["Key"], _blob(item, "Size")) for item in page.get("Contents", [])]
            _in_parallel(keep, found)
            if index != self._index:
                saved = json.dumps({"version": 1, "buckets": index}, indent=0, sort_keys=True)
                _write_atomically(self.folder / "index.json", saved.encode())
            self._index = index
            self._remove_unused_blobs()
            sizes = [entry["size"] for entries in index.values() for entry in entries.values()]
            return {"objects": len(sizes), "bytes": sum(sizes), "written": len(written), "written_bytes": sum(written)}

    def stop(self, save: bool = True) -> None:
        """Save, stop the server, restore the AWS_* variables. Does nothing when it is not running."""
        running, self.endpoint = self.endpoint, ""
        stack, self._stack = self._stack, contextlib.ExitStack()
        with stack:  # ends the server even when saving fails
            if running and save:
                self.save()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise StorageError(
                f"the local object store does not answer as it should: {error} (see {self.log_file})"
            ) from error

    def _fetch(self, bucket: str, key: str, written: list[int]) -> dict[str, Any] | None:
        """Copy one object's content into a blob and describe it; None when it was deleted since it was listed."""
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            return None
        # Name, size and content come from this one answer: the object may have been overwritten since the listing.
        blob, size = _blob(answer, "ContentLength"), answer["ContentLength"]
        path = self.folder / "blobs" / blob
        if not path.exists():
            _write_atomically(path, answer["Body"].iter_chunks(1 << 20))
            written.append(size)
        return {
            "blob": blob,
            "size": size,
            "content_type": answer.get("ContentType", "binary/octet-stream"),
            "metadata": answer.get("Metadata", {}),
        }

    def _remove_unused_blobs(self) -> None:
        used = {entry["blob"] for entries in self._index.values() for entry in entries.values()}
        for path in (self.folder / "blobs").iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_user(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"the object store in '{folder}' is in use by another process; wait for it or choose another folder"
            ) from None
        yield


@contextlib.contextmanager
def _server(folder: Path, bucket: str, log_file: Path, port: int) -> Iterator[str]:
    """The server's endpoint URL while it runs."""
    with log_file.open("wb") as log:
        # A session of its own: the terminal's Ctrl-C is for the parent, which still wants to save.
        # -P: beside the file lies one that is called as one of Python's own modules.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_SERVER), str(folder), bucket, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(SPOOL_BYTES)},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    too_late = threading.Timer(START_TIMEOUT_S, process.kill)
    too_late.start()
    try:
        bound = process.stdout.readline().split()
        too_late.cancel()  # loading takes as long as it takes
        if not bound or not process.stdout.readline():
            process.wait()
            lines = log_file.read_text(errors="replace").strip().splitlines() or [f"not ready in {START_TIMEOUT_S} s"]
            raise StorageError(f"the local object store did not start: {lines[-1]} (port {port}, see {log_file})")
        yield f"http://127.0.0.1:{bound[1].decode()}"
    finally:
        too_late.cancel()
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _client(endpoint: str) -> Any:
    session = boto3.session.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name=REGION)  # noqa: S106 - of the store on loopback; no secret
    config = botocore.config.Config(
        max_pool_connections=NUM_THREADS,
        proxies={},
        s3={"addressing_style": "path"},
        # Checksums guard the way to a distant store; here they only cost time.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


@contextlib.contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    """AWS_* of this process (and of what it starts) point at the local server; restored afterwards."""
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])),
    }
    before = {name: os.environ.get(name) for name in (*values, *_CLEARED)}
    for name in _CLEARED:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _in_parallel(function: Callable[[T], None], items: list[T]) -> None:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            for _ in pool.map(function, items):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _read_index(folder: Path) -> Index:
    path = folder / "index.json"
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["version"] != 1:
            raise ValueError
        buckets: Index = saved["buckets"]
    except (ValueError, KeyError, TypeError):
        raise StorageError(
            f"'{path}' is not an index of a saved object store; delete '{folder}' to start anew"
        ) from None
    for bucket, entries in buckets.items():
        for key, entry in entries.items():
            blob = folder / "blobs" / entry["blob"]
            if not blob.is_file() or blob.stat().st_size != entry["size"]:
                raise StorageError(
                    f"the saved object store in '{folder}' is damaged: the content of s3://{bucket}/{key} is "
                    "missing or cut short; delete the folder to start with an empty one"
                )
    return buckets


def _blob(described: Mapping[str, Any], size: str) -> str:
    """The name of the file that an object's content has, from what the server says of it."""
    etag = described["ETag"].strip('"')
    return f"{etag}-{described[size]}"


def _write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    temporary = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
    stream: IO[bytes]
    with temporary.open("wb") as stream:
        stream.writelines([data] if isinstance(data, bytes) else data)
    temporary.replace(path)


def main() -> int:
    """Serve a folder until Ctrl-C or SIGTERM; the content is saved then and every 30 seconds."""
    parser = argparse.ArgumentParser(prog="python -m jobs.object_store", description="A local S3 object store.")
    parser.add_argument("--folder", required=True, help="where the content lies between runs")
    parser.add_argument("--bucket", default="equihand", help="bucket to create (default: equihand)")
    parser.add_argument("--port", type=int, default=0, help="port on loopback (default: a free one)")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with ObjectStore(arguments.folder, arguments.bucket, arguments.port) as store:
            for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
                print(f"export {name}={os.environ[name]}", flush=True)
            while not ended.wait(timeout=30):
                store.save()
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
