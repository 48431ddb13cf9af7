"""The server process of the local object store: moto's S3, with a folder's content in it before anybody can connect.

Started by jobs/object_store.py, which says what lies in the folder:

    python -P object_server.py FOLDER BUCKET PORT

It says "bound" and the port once it has it, and "ready" once it answers. Until then a connection is refused, so nobody sees an
empty store, or a part of one. It ends when its standard input does. The parent holds the only other end of that pipe, so
the server dies with the parent however that ended, kill -9 included, and never stays behind as an orphan on the port.
"""

import json
import mmap
import os
import shutil
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeKey, get_s3_default_key_buffer_size, s3_backends
from moto.s3.responses import S3Response
from moto.server import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


def main() -> None:
    """Bind, load, answer."""
    folder, bucket, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Bound here and not by whoever chose the number, so that nobody can take a free port in between.
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        print("bound", bound.getsockname()[1], flush=True)
        load(folder, bucket)
        read_ranges_from_files()
        app = create_backend_app("s3")
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler, fd=bound.fileno())
    server.socket.listen(128)
    print("ready", flush=True)
    server.serve_forever()


def load(folder: Path, bucket: str) -> None:
    """Put the folder's objects into moto's memory, those above its buffer's size into temporary files."""
    path = folder / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))["buckets"] if path.exists() else {}
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for name in {*index, bucket}:
        backend.create_bucket(name, "us-east-1")
    for name, entries in index.items():
        for key, entry in entries.items():
            blob = folder / "blobs" / entry["blob"]
            small = entry["size"] <= get_s3_default_key_buffer_size()
            stored: Any = backend.put_object(
                name,
                key,
                blob.read_bytes() if small else b"",
                etag=entry["blob"].rpartition("-")[0],
                disable_notification=True,
            )
            if not small:
                stored._value_buffer.rollover()
                with blob.open("rb") as file:
                    shutil.copyfileobj(file, stored._value_buffer, 1 << 20)
                stored.contentsize = entry["size"]
            metadata = {f"x-amz-meta-{name}": value for name, value in entry["metadata"].items()}
            stored.set_metadata({"Content-Type": entry["content_type"], **metadata})


def read_ranges_from_files() -> None:
    """Let moto read a range of an object that lies in a file from that file.

    It reads the whole object for every range of it that is asked for, which made reading shards several times slower than the
    network would. moto has no setting for that, and makes its objects itself, so its methods are replaced.
    """
    asked = threading.local()
    whole: Any = FakeKey.value
    get_object, cut = S3Response.get_object, S3Response._handle_range_header

    def value(key: Any) -> Any:
        if not getattr(asked, "range", False) or not key._value_buffer._rolled or not key.contentsize:
            return whole.fget(key)
        with key.lock:
            key._value_buffer.flush()
            return mmap.mmap(key._value_buffer.fileno(), 0, access=mmap.ACCESS_READ)

    def get(self: Any) -> Any:
        asked.range = "range" in self.headers
        try:
            return get_object(self)
        finally:
            asked.range = False

    def part(self: Any, request: Any, headers: Any, content: Any) -> Any:
        status, headers, content = cut(self, request, headers, content)
        return status, headers, content[:]

    patched: list[tuple[Any, str, Any]] = [
        (FakeKey, "value", property(value, whole.fset)),
        (S3Response, "get_object", get),
        (S3Response, "_handle_range_header", part),
    ]
    for owner, name, replacement in patched:
        setattr(owner, name, replacement)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
