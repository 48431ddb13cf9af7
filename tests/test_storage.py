import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3.util.connection

from pipeline import storage
from pipeline.errors import StorageError


@pytest.fixture(params=["local", "file", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/root"
    return ("file://" if request.param == "file" else "") + str(tmp_path / "root")


def test_files_on_every_kind_of_storage(root, tmp_path):
    a, b = storage.join(root, "a.json"), storage.join(root, "deep", "er", "b.bin")
    assert not storage.exists(a)
    storage.write_json(a, {"x": [1, 2]})
    storage.write_bytes(b, b"\x00\xff")
    storage.write_bytes(b, b"again")
    assert storage.read_json(a) == {"x": [1, 2]}
    assert storage.read_bytes(b) == b"again"
    assert storage.size(b) == 5
    names = [uri.rsplit("/", 1)[1] for uri in storage.list_files(root)]
    assert names == ["a.json", "b.bin"]
    assert [storage.read_bytes(uri) for uri in storage.list_files(root, ".bin")] == [b"again"]

    storage.copy_to_local(root, tmp_path / "copy")
    assert (tmp_path / "copy/deep/er/b.bin").read_bytes() == b"again"
    storage.copy_from_local(tmp_path / "copy", storage.join(root, "second"))
    assert storage.read_bytes(storage.join(root, "second/deep/er/b.bin")) == b"again"
    with storage.as_local_file(b) as path:
        assert os.path.basename(path) == "b.bin"
        assert Path(path).read_bytes() == b"again"

    storage.delete(storage.join(root, "second"))
    assert not storage.exists(storage.join(root, "second/a.json"))
    storage.delete(storage.join(root, "never-there"))
    storage.preflight(root)
    storage.preflight(storage.join(root, "new"), write=True)


def test_errors_name_the_uri(root):
    for action in (storage.read_bytes, storage.size, storage.preflight):
        with pytest.raises(StorageError, match="nothing-here"):
            action(storage.join(root, "nothing-here"))
    storage.write_bytes(storage.join(root, "bad.json"), b"{")
    with pytest.raises(StorageError, match=r"bad\.json: not valid JSON"):
        storage.read_json(storage.join(root, "bad.json"))


def test_a_local_write_is_whole_or_absent(tmp_path, monkeypatch):
    target = str(tmp_path / "value")
    storage.write_bytes(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        storage.write_bytes(target, b"new")
    assert storage.read_bytes(target) == b"old"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3:///x"])
def test_uris_that_cannot_be_served(uri):
    with pytest.raises(StorageError, match=uri.split(":")[0]):
        storage.resolve(uri)


def test_preflight_names_a_missing_bucket(s3):
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        storage.preflight("s3://no-such-bucket/x", write=True)
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        storage.preflight("s3://no-such-bucket/x")


def test_preflight_does_not_take_a_longer_name_for_the_one_asked_for(s3):
    for name in (
        "frames-old/manifest.json",
        "frames.json",
        "model.pth",
        "model.pth.old",
        "runs!/a",
        "runs/a",
        "deep/er/a",
    ):
        storage.write_bytes(f"{s3}/{name}", b"x")
    for missing in ("frames", "frames-ol", "model", "deep/e"):
        with pytest.raises(StorageError, match=f"{s3}/{missing}: nothing there"):
            storage.preflight(f"{s3}/{missing}")
    for there in ("frames-old", "frames-old/", "frames.json", "model.pth", "runs", "deep", "deep/er", ""):
        storage.preflight(f"{s3}/{there}")


def test_preflight_tries_little_when_nobody_answers(s3, monkeypatch):
    tries = []

    def connect(address, timeout, **kwargs):
        tries.append(timeout)
        return create_connection(address, timeout, **kwargs)

    create_connection = urllib3.util.connection.create_connection
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as error:
            storage.preflight("s3://bucket/x", write=True)
        assert "\n" not in str(error.value)
    assert tries == [3, 3, 3]


def test_preflight_names_missing_credentials(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        storage.preflight("s3://bucket/x")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "no permission to write to bucket 'bucket'"),
        (403, "InvalidAccessKeyId", "credentials were refused"),
        (403, "SignatureDoesNotMatch", "credentials were refused"),
        (301, "PermanentRedirect", "AWS_REGION"),
        (503, "SlowDown", "SlowDown"),
    ],
)
def test_preflight_names_what_the_server_refuses(s3, monkeypatch, status, code, words):
    requests = []

    class Refuse(BaseHTTPRequestHandler):
        def do_PUT(self):
            requests.append(self.path)
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match=words) as error:
            storage.preflight("s3://bucket/x", write=True)
        assert "\n" not in str(error.value)
        assert len(requests) == (3 if status == 503 else 1)
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "When reading information for key 'x' in bucket 'b': AWS Error NO_SUCH_BUCKET during HeadObject operation: no",
            "bucket 'b' does not exist",
        ),
        (
            "AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: no",
            r"credentials were refused \(INVALID_ACCESS",
        ),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", "AWS_REGION"),
        (
            "AWS Error NETWORK_CONNECTION during ListObjectsV2 operation: curlCode: 7, Couldn't connect",
            "no answer from",
        ),
        (
            "AWS Error UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: ExpiredToken Message",
            r"credentials were refused \(ExpiredToken",
        ),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", "AWS_SESSION_TOKEN"),
        ("AWS Error SLOW_DOWN during PutObject operation: Please reduce\n your rate", "SLOW_DOWN during PutObject"),
    ],
)
def test_what_pyarrow_says_of_s3_gets_a_remedy(text, words):
    with pytest.raises(StorageError, match=words) as error, storage.named_errors("s3://b/x"):
        raise OSError(text)
    assert str(error.value).startswith("s3://b/x: ")
    assert "\n" not in str(error.value)
    assert str(error.value.__cause__) == text  # for the log


@pytest.mark.parametrize("name", ["a b", "Hände", "手", "100%", "it's #1?", "clip:1"])
def test_odd_names_of_folders_are_taken_as_they_are(tmp_path, name):
    storage.preflight(str(tmp_path / name), write=True)
    storage.write_bytes(str(tmp_path / name / "x"), b"1")
    assert storage.list_files(str(tmp_path / name)) == [str(tmp_path / name / "x")]
    assert storage.read_bytes(f"file://{tmp_path}/{name}/x") == b"1"


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    storage.write_bytes("~/data/x", b"1")
    assert (tmp_path / "data/x").read_bytes() == b"1"


def test_preflight_of_local_paths(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="not a folder"):
        storage.preflight(str(tmp_path / "file" / "below"), write=True)
    with pytest.raises(StorageError, match="no such file or folder"):
        storage.preflight(str(tmp_path / "absent"))


def test_a_name_that_is_not_utf8_is_said(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(StorageError, match=r"caf\\xe9\.jpg' is not UTF-8; rename"):
        storage.list_files(str(tmp_path))
