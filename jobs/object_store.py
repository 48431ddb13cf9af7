"""An S3 object store on loopback for the demo, the tests and rehearsals, whose content survives between runs.

    with ObjectStore("demo/object_store") as store:      # AWS_* of this process now point at it
        write_bytes("s3://equihand/a/b.txt", b"...")
        store.save()                                     # also happens on leaving the block

The server is moto's, a child process that keeps every object in memory. What survives lies in the store's folder:

    blobs/<etag>-<size>     one file for each different content, never changed once written
    index.json              bucket and key -> blob, content type, metadata; replaced in one step, always last

So a save that is cut off at any moment leaves the previous, complete content; keys may be anything that S3 allows
(slashes, directory markers "a/", a key that is also another one's prefix); and a save reads only what is new.

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import boto3
import botocore.config
import botocore.exceptions

from pipeline.errors import StorageError

REGION = "us-east-1"
NUM_THREADS = 4  # the server is one Python process: more requests at once only queue there
START_TIMEOUT_S = 60.0
SPOOL_BYTES = 1 << 20  # objects above this lie in the server's temporary files, not in its memory

# The child ends when its standard input does. The parent holds the only other end of that pipe, so the server dies
# with the parent however that ended, kill -9 included, and never stays behind as an orphan on the port.
# It binds first and reports the port then, so nobody can take a free port between choosing and binding.
# moto reads a whole object for every range of it that is asked for, which made reading shards several times slower than
# the network would: here a range of an object that lies in a file is read from that file.
_SERVER = """
import mmap, os, sys, threading
from moto.s3.models import FakeKey
from moto.s3.responses import S3Response
from moto.server import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
def end_with_parent():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
asked = threading.local()
whole, get_object, cut = FakeKey.value, S3Response.get_object, S3Response._handle_range_header
def value(key):
    if not getattr(asked, "range", False) or not key._value_buffer._rolled or not key.contentsize:
        return whole.fget(key)
    with key.lock:
        key._value_buffer.flush()
        return mmap.mmap(key._value_buffer.fileno(), 0, access=mmap.ACCESS_READ)
def get(self):
    asked.range = "range" in self.headers
    try:
        return get_object(self)
    finally:
        asked.range = False
def part(self, request, headers, content):
    status, headers, content = cut(self, request, headers, content)
    return status, headers, content[:]
FakeKey.value, S3Response.get_object, S3Response._handle_range_header = property(value, whole.fset), get, part
app = create_backend_app("s3")
server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=MotoRequestHandler)
print(server.port, flush=True)
server.serve_forever()
"""

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
        self._saved_etags: dict[tuple[str, str], str] = {}
        self._index: Index = {}
        self._saving = threading.Lock()

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def start(self) -> Self:
        """Start the server, load the folder into it, create the bucket, point AWS_* of this process at it."""
        with contextlib.ExitStack() as stack:  # undoes what has been done when a later step fails
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            stack.enter_context(_only_user(self.folder))
            self._index = _read_index(self.folder)
            endpoint = stack.enter_context(_server(self.log_file, self._port))
            stack.enter_context(_environment(endpoint))
            self._client = _client(endpoint)
            with self._named_errors():
                self._load()
            self._stack = stack.pop_all()
        self.endpoint = endpoint
        return self

    def save(self) -> dict[str, int]:
        """Bring the folder up to the server's content. Returns {"objects", "bytes", "written", "written_bytes"}."""
        with self._saving, self._named_errors():
            index: Index = {}
            etags: dict[tuple[str, str], str] = {}
            written: list[int] = []

            def keep(item: tuple[str, str, str]) -> None:
                bucket, key, etag = item
                entry = self._index.get(bucket, {}).get(key)
                if entry is None or self._saved_etags.get((bucket, key)) != etag:
                    entry = self._fetch(bucket, key, written)
                if entry is not None:
                    index[bucket][key] = entry
                    etags[bucket, key] = etag

            found: list[tuple[str, str, str]] = []
            for bucket in (item["Name"] for item in self._client.list_buckets()["Buckets"]):
                index[bucket] = {}
                for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    found += [(bucket, item["Key"], item["ETag"].strip('"')) for item in page.get("Contents", [])]
            _in_parallel(keep, found)
            if index != self._index:
                saved = json.dumps({"version": 1, "buckets": index}, indent=0, sort_keys=True)
                _write_atomically(self.folder / "index.json", saved.encode())
            self._index, self._saved_etags = index, etags
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

    def _load(self) -> None:
        def put(item: tuple[str, str, dict[str, Any]]) -> None:
            bucket, key, entry = item
            path = self.folder / "blobs" / entry["blob"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                raise StorageError(
                    f"the saved object store in '{self.folder}' is damaged: the content of s3://{bucket}/{key} is "
                    "missing or cut short; delete the folder to start with an empty one"
                )
            with path.open("rb") as body:
                answer = self._client.put_object(
                    Bucket=bucket, Key=key, Body=body, ContentType=entry["content_type"], Metadata=entry["metadata"]
                )
            # An object that came in parts gets a plain etag when it is put back whole: compare with that one later.
            self._saved_etags[bucket, key] = answer["ETag"].strip('"')

        for bucket in {*self._index, self.bucket}:
            self._client.create_bucket(Bucket=bucket)
        _in_parallel(put, [(b, key, entry) for b, entries in self._index.items() for key, entry in entries.items()])

    def _fetch(self, bucket: str, key: str, written: list[int]) -> dict[str, Any] | None:
        """Copy one object's content into a blob and describe it; None when it was deleted since it was listed."""
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            return None
        # Name, size and content come from this one answer: the object may have been overwritten since the listing.
        etag, size = answer["ETag"].strip('"'), answer["ContentLength"]
        blob = f"{etag}-{size}"
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
def _server(log_file: Path, port: int) -> Iterator[str]:
    """The server's endpoint URL while it runs."""
    with log_file.open("wb") as log:
        # A session of its own: the terminal's Ctrl-C is for the parent, which still wants to save.
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)],
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
        bound_port = process.stdout.readline().strip().decode()
        if not bound_port:
            process.wait()
            lines = log_file.read_text(errors="replace").strip().splitlines() or [f"not ready in {START_TIMEOUT_S} s"]
            raise StorageError(f"the local object store did not start: {lines[0]} (see {log_file})")
        too_late.cancel()
        yield f"http://127.0.0.1:{bound_port}"
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
    session = boto3.session.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name=REGION)
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
    return buckets


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
