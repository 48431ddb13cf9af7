"""What may be wrong around a job when it starts, and the one line that it ends with: part of docs/bad-inputs.md."""

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import submit
from jobs.ray_errors import ray_start_error
from jobs.runtime import RaySettings, ray_session
from pipeline import storage
from pipeline.config import Settings, load
from pipeline.errors import EquihandError
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings


@dataclass(frozen=True)
class World:
    """What a case may change: a folder of its own, the environment."""

    folder: Path
    patch: pytest.MonkeyPatch


@dataclass(frozen=True)
class Case:
    """One thing that is wrong. start: what a job does then, at its start."""

    what: str
    says: str
    """Part of the line."""
    code: int
    """The exit code: 2 where a setting is wrong, 1 where what it names is."""
    start: Callable[[World], Any]

    def met(self, world: World) -> str:
        """The one line with which it ends."""
        with pytest.raises(EquihandError) as raised:
            self.start(world)
        line = str(raised.value)
        assert self.says in line
        assert raised.value.exit_code == self.code
        assert "\n" not in line
        assert len(line) < 600
        return line


class Job(Settings):
    """As the jobs' settings are."""

    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()


def track(world: World, uri: str, *arguments: str) -> None:
    job = load(Job, [f"--tracking.uri={uri}", *arguments])
    with tracked(job.tracking, str(world.folder / "run"), "run", "pretrain", job) as tracking:
        tracking.opened()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def web_server(status: int, body: str) -> Iterator[int]:
    """A server that gives everybody the same answer; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def track_web(world: World, status: int, body: str, scheme: str = "http") -> None:
    world.patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with web_server(status, body) as port:
        track(world, f"{scheme}://127.0.0.1:{port}")


def through_a_silent_proxy(world: World) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        world.patch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        world.patch.delenv(name, raising=False)


def track_through_proxy(world: World) -> None:
    through_a_silent_proxy(world)
    track(world, "http://mlflow.example:5000")


def s3_through_proxy(world: World) -> None:
    through_a_silent_proxy(world)
    s3(world, "http://store.example:9000")


def databricks(world: World) -> None:
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        world.patch.delenv(name, raising=False)
    track(world, "databricks")


def deleted_experiment(world: World) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{world.folder}/mlflow.db"
    track(world, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    track(world, uri)


def text_file(world: World) -> Path:
    path = world.folder / "notes.txt"
    path.write_text("not a database, not a folder\n" * 100)
    return path


def s3(world: World, endpoint: str, uri: str = "s3://bucket/x") -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        world.patch.setenv(name, "testing")
    world.patch.setenv("AWS_REGION", "us-east-1")
    world.patch.setenv("AWS_ENDPOINT_URL", endpoint)
    storage.preflight(uri, write=True)


def s3_refuses(world: World, status: int, code: str) -> None:
    with web_server(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>") as port:
        s3(world, f"http://127.0.0.1:{port}")


def no_credentials(world: World) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        world.patch.delenv(name, raising=False)
    world.patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    world.patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    world.patch.setenv("AWS_CONFIG_FILE", "/nowhere")
    storage.preflight("s3://bucket/x")


def full_disk(world: World) -> None:
    world.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    storage.preflight(str(world.folder / "out"), write=True)


def read_only(world: World) -> None:
    world.patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    storage.preflight(str(world.folder / "out"), write=True)


def disk_full_later(world: World) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.patch.setattr(os, "fsync", full)
    storage.write_bytes(str(world.folder / "out" / "manifest.json"), b"{}")


def ray_at(world: World, address: str) -> None:
    world.patch.setattr("ray.is_initialized", lambda: False)  # another test's session
    with ray_session(load(Job, [f"--ray.address={address}"]).ray):
        pass


def ray_at_web_server(world: World) -> None:
    with web_server(200, "dashboard") as port:
        ray_at(world, f"127.0.0.1:{port}")


def ray_address_of_submit(world: World) -> None:
    world.patch.setattr("ray.is_initialized", lambda: False)
    world.patch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with ray_session(RaySettings()):
        pass


def long_socket_path(world: World) -> None:
    from ray._private.utils import validate_socket_filepath

    path = f"/home/{'somebody' * 12}/ray/session_2026-01-31_12-00-00_000000_1/sockets/plasma_store"
    said_by_ray("local", lambda: validate_socket_filepath(path))


def other_version(world: World) -> None:
    from ray._private.utils import check_version_info

    said_by_ray(
        "10.0.0.1:6379", lambda: check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "this one")
    )


def late_ray(world: World) -> None:
    def start() -> None:
        raise Exception(
            "The current node timed out during startup. This could happen because some of the raylet failed"
        )

    said_by_ray("local", start)


def said_by_ray(address: str, start: Callable[[], None]) -> None:
    """As ray_session does it."""
    try:
        start()
    except Exception as error:
        raise ray_start_error(address, error) from error


CASES = [
    Case(
        "tracking.uri ./mlruns (a plain folder)",
        "a folder, in which MLflow no longer keeps runs",
        2,
        lambda w: track(w, "./mlruns"),
    ),
    Case(
        "tracking.uri C:\\mlruns", "a folder, in which MLflow no longer keeps runs", 2, lambda w: track(w, "C:\\mlruns")
    ),
    Case("tracking.uri localhost:5000", "write http://localhost:5000", 2, lambda w: track(w, "localhost:5000")),
    Case("tracking.uri http://", "names no host", 2, lambda w: track(w, "http://")),
    Case(
        "tracking.uri sqlite:mlflow.db, sqlite:///",
        "names no file; write sqlite:///FILE",
        2,
        lambda w: track(w, "sqlite:mlflow.db"),
    ),
    Case("tracking.uri of an unknown scheme", "unknown kind of tracking URI", 2, lambda w: track(w, "foo://bar")),
    Case("tracking.uri databricks without credentials", "set DATABRICKS_HOST and DATABRICKS_TOKEN", 1, databricks),
    Case(
        "tracking.uri of a database whose driver is not installed",
        "the package 'MySQLdb' is missing",
        1,
        lambda w: track(w, "mysql://me@127.0.0.1:1/db"),
    ),
    Case(
        "password in tracking.uri",
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        2,
        lambda w: track(w, "http://me:secret@mlflow.example:5000"),
    ),
    Case(
        "key in an s3:// URI",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        2,
        lambda w: track(w, "sqlite:///mlflow.db", "--tracking.artifacts=s3://AKIA:secret@bucket/x"),
    ),
    Case(
        "signature in a URI (presigned)",
        "holds a password, a key or a signature",
        2,
        lambda w: track(w, "sqlite:///mlflow.db", "--tracking.artifacts=s3://b/x?X-Amz-Signature=secret"),
    ),
    Case(
        "tracking server's port is wrong",
        "nobody answers; is the server up",
        1,
        lambda w: track(w, f"http://127.0.0.1:{closed_port()}"),
    ),
    Case(
        "tracking server's name is wrong",
        "there is no host of this name",
        1,
        lambda w: track(w, "http://no-host.invalid:5000"),
    ),
    Case(
        "tracking server's port is another web server's",
        "not as an MLflow server does",
        1,
        lambda w: track_web(w, 404, "<html>no</html>"),
    ),
    Case("tracking server wants credentials", "set MLFLOW_TRACKING_USERNAME", 1, lambda w: track_web(w, 401, "no")),
    Case(
        "tracking server speaks http, the URI says https",
        "no secure connection",
        1,
        lambda w: track_web(w, 200, "", "https"),
    ),
    Case(
        "tracking server behind a proxy that does not answer",
        "add the server's host to NO_PROXY",
        1,
        track_through_proxy,
    ),
    Case(
        "SQLite file below a file",
        "is a file, not a folder",
        1,
        lambda w: track(w, f"sqlite:///{text_file(w)}/mlflow.db"),
    ),
    Case("SQLite file is no database", "file is not a database", 1, lambda w: track(w, f"sqlite:///{text_file(w)}")),
    Case(
        "experiment that was deleted in MLflow", "mlflow experiments restore --experiment-id 1", 1, deleted_experiment
    ),
    Case(
        "artifacts of the experiment cannot be written",
        "give a new tracking.experiment",
        1,
        lambda w: track(w, f"sqlite:///{w.folder}/mlflow.db", f"--tracking.artifacts={text_file(w)}/below"),
    ),
    Case("URI of an unknown scheme (gs://)", "unknown scheme 'gs://'", 2, lambda w: storage.preflight("gs://bucket/x")),
    Case("s3:/bucket, file:/x", "'//' is missing", 2, lambda w: storage.preflight("s3:/bucket/x", write=True)),
    Case("C:\\data on Linux", "a path of Windows", 2, lambda w: storage.preflight("C:\\data", write=True)),
    Case("no AWS credentials", "set AWS_ACCESS_KEY_ID", 1, no_credentials),
    Case(
        "bucket that does not exist", "bucket 'bucket' does not exist", 1, lambda w: s3_refuses(w, 404, "NoSuchBucket")
    ),
    Case(
        "credentials that are refused",
        "the credentials were refused",
        1,
        lambda w: s3_refuses(w, 403, "InvalidAccessKeyId"),
    ),
    Case(
        "bucket that may not be written",
        "no permission to write to bucket 'bucket'",
        1,
        lambda w: s3_refuses(w, 403, "AccessDenied"),
    ),
    Case("bucket of another region", "set AWS_REGION", 1, lambda w: s3_refuses(w, 301, "PermanentRedirect")),
    Case(
        "AWS_ENDPOINT_URL without http://", "write http:// or https:// before it", 1, lambda w: s3(w, "127.0.0.1:9000")
    ),
    Case(
        "AWS_ENDPOINT_URL where nobody answers",
        "no answer from http://127.0.0.1",
        1,
        lambda w: s3(w, f"http://127.0.0.1:{closed_port()}"),
    ),
    Case("object store behind a proxy that does not answer", "add the host to NO_PROXY", 1, s3_through_proxy),
    Case(
        "output path below a file",
        "is a file, not a folder",
        1,
        lambda w: storage.preflight(f"{text_file(w)}/out", write=True),
    ),
    Case("output on a read-only file system", "the file system is read-only", 1, read_only),
    Case("disk full, at the start", "no space left on the disk", 1, full_disk),
    Case("disk full, later", "no space left on the disk", 1, disk_full_later),
    Case(
        "ray.address where nobody listens",
        "Connection refused; is the cluster up",
        1,
        lambda w: ray_at(w, f"127.0.0.1:{closed_port()}"),
    ),
    Case("ray.address without a port", "is an invalid address; write HOST:PORT", 2, lambda w: ray_at(w, "head")),
    Case("ray.address of the job server or dashboard", "a web server answers there, not Ray", 2, ray_at_web_server),
    Case("RAY_ADDRESS http://HOST:8265", "a job itself needs HOST:6379", 2, ray_address_of_submit),
    Case("TMPDIR too long for Ray's sockets", "set RAY_TMPDIR to a short path", 1, long_socket_path),
    Case("cluster with another version of Ray or Python", "use the cluster's versions here", 1, other_version),
    Case("Ray that does not start in time", "is the machine very busy, or short of memory", 1, late_ray),
    Case(
        "submit --address ray://HOST:10001",
        "is not that of a job server",
        2,
        lambda w: submit.job_server("ray://head:10001"),
    ),
    Case(
        "submit --address HOST:6379",
        "that is the port of the cluster itself",
        1,
        lambda w: submit.connect(submit.job_server("127.0.0.1:6379")),
    ),
]


def markdown() -> list[str]:
    """Its part of docs/bad-inputs.md."""
    return [
        "## At the start",
        "",
        "If something around a job is wrong, the job ends with one line. The exit code is 2 if a setting is wrong, and 1 if the",
        "thing that it names is. Where there is more to know, the line names a log file with the details (`EQUIHAND_DEBUG=1` shows",
        "them in the terminal). `tests/test_start_errors.py` tries each case.",
        "",
        "| what is wrong | exit code | part of the line |",
        "| --- | --- | --- |",
        *(f"| {case.what} | {case.code} | {case.says} |" for case in CASES),
    ]
