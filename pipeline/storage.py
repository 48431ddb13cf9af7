"""Every path is a URI: a local path, `file://...` or `s3://bucket/key`.

Data moves through pyarrow file systems. Credentials, region and endpoint come from the environment the way the AWS SDK
reads them (AWS_*, AWS_ENDPOINT_URL); they are never part of a URI or a setting.
"""

import errno
import json
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import (
    BadUriError,
    CredentialsError,
    DamagedError,
    FullError,
    MissingError,
    RefusedError,
    StorageError,
    one_line,
)
from pipeline.local_files import File
from pipeline.local_files import walk as walk_local
from pipeline.text_files import parse_json

ATTEMPTS = 8
"""Of a request to object storage."""
MAX_JSON_BYTES = 500_000_000
"""Of a JSON file that is read as a whole; the largest are published meshes. As Python's objects it takes several times as much."""
_PATIENCE = 4
_COPY_THREADS = 16
_LEAST_FREE = 1 << 20  # bytes of a disk; below that nothing of ours fits
_SCHEME_WITHOUT_SLASHES = re.compile(r"(file|s3[an]?|gs|https?|hdfs|abfss?):(?!//)", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_UNKNOWN_TO_ARROW = re.compile(r"Unable to parse ExceptionName: (\w+)")
_ABOUT_ONE_OBJECT = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "ACCESS_DENIED")
"""S3's words for an object that is not there (the second where its answer comes without a text), or may not be read."""
_CREDENTIALS = ("invalidaccesskeyid", "signaturedoesnotmatch", "invalidtoken", "expiredtoken", "invalidclienttokenid")
P = ParamSpec("P")
T = TypeVar("T")

DISK_TROUBLE = {
    errno.ENOSPC: "no space left on the disk; free some, or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EIO: "the disk gives an input/output error",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ESTALE: "the network file system has lost the file (stale handle); is it still mounted?",
}
"""What is wrong with the machine, by errno, and what to do."""
_PATH_TROUBLE = {
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "there is a file where a folder is needed",
    errno.EISDIR: "a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ELOOP: "the path goes round in circles (symbolic links)",
}


def _with_fresh_credentials(function: Callable[P, T]) -> Callable[P, T]:
    """The function, begun anew a few times where the credentials were refused: whoever keeps them fresh may be a moment late,
    or in the middle of writing their file, which reads as having none (a plain "no permission")."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(1, _PATIENCE):
            version = credentials_version()
            try:
                return function(*args, **kwargs)
            except (CredentialsError, RefusedError) as error:
                if isinstance(error, RefusedError) and credentials_version() == version:
                    raise
                forget_connections()
                time.sleep(_backoff_s(attempt))
        return function(*args, **kwargs)

    return wrapped


def is_local(uri: str) -> bool:
    """True for plain paths and file:// URIs."""
    return "://" not in uri or uri.startswith("file://")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system that serves a URI, and the path inside it. Raises StorageError for a bad URI."""
    if is_local(uri):
        return pafs.LocalFileSystem(), local_path(uri)
    scheme, bucket = urlsplit(uri)[:2]
    if scheme != "s3":
        raise BadUriError(f"{one_line(uri)}: unknown scheme '{scheme}://'; use a local path, file:// or s3://")
    if not bucket:
        raise BadUriError(f"{uri}: no bucket named; write s3://bucket/key")
    return _s3(_s3_endpoint(), credentials_version()), uri[len("s3://") :].rstrip("/")


def local_path(uri: str) -> str:
    """The absolute path of a local URI."""
    if not is_local(uri):
        raise BadUriError(f"{uri}: a local path is needed here")
    if found := _SCHEME_WITHOUT_SLASHES.match(uri):
        raise BadUriError(f"{uri}: '//' is missing after '{found[0]}'; write {found[0]}//...")
    if os.name != "nt" and _WINDOWS_PATH.match(uri):
        raise BadUriError(f"{uri}: a path of Windows, which this machine does not have; under WSL write /mnt/c/...")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def absolute(uri: str) -> str:
    """The URI made independent of the working directory (jobs and Ray workers run elsewhere)."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path components appended."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


@_with_fresh_credentials
def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound


@_with_fresh_credentials
def is_file(uri: str) -> bool:
    """Whether the URI names a file (not a folder)."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        return filesystem.get_file_info(path).type == pafs.FileType.File


def list_files(uri: str, suffix: str | tuple[str, ...] = "") -> list[str]:
    """All files below a folder, recursively and sorted, as URIs. A missing folder gives an empty list."""
    return sorted(list_sizes(uri, suffix))


def list_sizes(uri: str, suffix: str | tuple[str, ...] = "") -> dict[str, int]:
    """{URI: bytes} of all files below a folder, recursively."""
    root = absolute(uri).rstrip("/")
    found = {f"{root}/{file.path}": file.size for file in walk(uri) if file.identity is not None}
    return {name: num_bytes for name, num_bytes in found.items() if name.lower().endswith(suffix)}


@_with_fresh_credentials
def walk(uri: str) -> list[File]:
    """All files below a folder, of which several may be names of one (see local_files.py). A missing folder gives an empty list.

    Of object storage every object is a file of its own, with its key as its identity.
    """
    with named_errors(uri):
        filesystem, path = resolve(uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            return list(walk_local(path)) if os.path.lexists(path) else []
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        found = [info for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        return [File(info.path[len(path) + 1 :], info.size, info.path) for info in found]


@_with_fresh_credentials
def list_folders(uri: str) -> list[str]:
    """The folders directly in a folder, sorted, as URIs. A missing folder gives an empty list."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    prefix = "" if is_local(uri) else "s3://"
    return sorted(prefix + info.path for info in found if info.type == pafs.FileType.Directory)


@_with_fresh_credentials
def size(uri: str) -> int:
    """Bytes of one file."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise MissingError(f"{uri}: no such file")
        return info.size


@_with_fresh_credentials
def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """A whole file, in one request. Raises DamagedError where it has more bytes than `limit`."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        with filesystem.open_input_file(path) as file:
            if limit is not None and file.size() > limit:
                raise DamagedError(
                    f"{uri}: {file.size():,} bytes, but no such file has more than {limit:,}; it is not read"
                )
            return read_range(file, uri, 0, file.size())


def read_range(file: pa.NativeFile, uri: str, start: int, num_bytes: int) -> bytes:
    """Part of an open file, in one request where nothing goes wrong. Raises StorageError where there is less than asked for.

    An answer that breaks off in the middle comes as a short read, without an error.
    """
    parts: list[bytes] = []
    missing = num_bytes
    for attempt in range(ATTEMPTS):
        if attempt and missing:
            time.sleep(_backoff_s(attempt))
        while missing:
            part = file.read_at(missing, start + num_bytes - missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
    if missing:
        raise StorageError(f"{uri}: {num_bytes - missing} of {num_bytes} bytes from {start} on could be read")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def with_patience(work: Callable[[], T]) -> T:
    """work(), begun anew a few times where storage fails. For work that may be repeated, because it publishes at its end.

    The S3 client repeats single requests by itself, but a write in several parts cannot always be saved by that.
    Raises StorageError where it fails for good.
    """
    for attempt in range(1, _PATIENCE + 1):
        try:
            return work()
        except (MissingError, RefusedError, FullError):
            raise
        except (StorageError, OSError) as error:
            if attempt == _PATIENCE:
                raise StorageError(one_line(error)) from error
            time.sleep(_backoff_s(attempt))
    raise AssertionError


def _backoff_s(attempt: int) -> float:
    """Seconds to wait before another attempt, longer each time, and not the same for all who failed together."""
    return min(0.2 * 2**attempt, 20.0) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads attempts in time


@_with_fresh_credentials
def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, atomically: a reader sees the old content or the new, never a part of it."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex}.tmp"
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):  # a part of it would take what room there is
                    os.unlink(temporary)
                raise
        else:
            with filesystem.open_output_stream(path, compression=None) as stream:  # an S3 object appears on close
                stream.write(data)


def read_json(uri: str, limit: int = MAX_JSON_BYTES) -> Any:
    """A JSON file. Raises DamagedError, a StorageError that says why, where it is not valid JSON, or has more bytes than `limit`."""
    try:
        return parse_json(read_bytes(uri, limit))
    except ValueError as error:
        raise DamagedError(f"{uri}: not valid JSON ({error})") from None


def write_json(uri: str, value: Any) -> None:
    """Write JSON, atomically."""
    write_bytes(uri, json.dumps(value, indent=1, allow_nan=False).encode())


@_with_fresh_credentials
def delete(uri: str) -> None:
    """Remove a file or a whole folder; a missing one is fine."""
    with named_errors(uri):
        filesystem, path = resolve(uri)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def copy_to_local(uri: str, local: str | Path) -> None:
    """Copy a file, or a folder with all below it, to a local path."""
    _copy(uri, str(local))


def copy_from_local(local: str | Path, uri: str) -> None:
    """Copy a local file, or a folder with all below it, to a URI."""
    _copy(str(local), uri)


def copy_tree(source: str, target: str) -> None:
    """Copy a file, or a folder with all below it, between any two URIs."""
    _copy(source, target)


@contextmanager
def as_local_file(uri: str) -> Iterator[str]:
    """A local path to the file: itself where it is local, else a temporary copy (for libraries that want a path).

    Raises MissingError or RefusedError where there is nothing to be read.
    """
    if is_local(uri):
        with named_errors(uri), open(local_path(uri), "rb"):
            pass  # a missing or refused file is said here, and not by the library in its words
        yield local_path(uri)
        return
    folder = tempfile.mkdtemp(prefix="equihand-")
    try:
        target = os.path.join(folder, os.path.basename(uri))
        copy_to_local(uri, target)
        yield target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def as_local_folder(uri: str) -> Iterator[str]:
    """The same of a folder with all below it. Raises MissingError where it is not there."""
    if not exists(uri):
        raise MissingError(f"{uri}: no such folder")
    if is_local(uri):
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="equihand-") as folder:
        copy_to_local(uri, folder)
        yield folder


def preflight(*uris: str, write: bool = False) -> None:
    """Check that each URI can be reached (and written) before any long work; about ten seconds at most.

    Raises StorageError with one clear line: missing bucket, no permission, wrong endpoint, bad credentials, missing
    local folder.
    """
    for uri in uris:
        resolve(uri)
        if is_local(uri):
            with named_errors(uri):
                _preflight_local(uri, write)
        else:
            _preflight_s3(uri, write)


def _preflight_local(uri: str, write: bool) -> None:
    path = Path(local_path(uri))
    if not write:
        if not path.exists():
            raise StorageError(f"{uri}: no such file or folder")
        if not os.access(path, os.R_OK):
            raise StorageError(f"{uri}: no permission to read")
        return
    parent = next(p for p in (path, *path.parents) if p.exists())
    if not parent.is_dir():
        raise StorageError(f"{uri}: '{parent}' is a file, not a folder")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "read-only")
    if not os.access(parent, os.W_OK):
        raise StorageError(f"{uri}: no permission to write to '{parent}'")
    if shutil.disk_usage(parent).free < _LEAST_FREE:
        raise OSError(errno.ENOSPC, "full")


def _preflight_s3(uri: str, write: bool) -> None:
    """One or two small requests, with short timeouts and few retries, so that a mistake shows in seconds."""
    import boto3
    from botocore import exceptions
    from botocore.config import Config

    bucket, key = urlsplit(uri).netloc, urlsplit(uri).path.strip("/")
    endpoint = _s3_endpoint()
    at = _at_endpoint()
    started = time.monotonic()
    try:
        client = boto3.session.Session().client(  # a new session: the default one keeps old credentials
            "s3",
            endpoint_url=endpoint,
            config=Config(connect_timeout=3, read_timeout=4, retries={"total_max_attempts": 3, "mode": "standard"}),
        )
        if write:
            probe = f"{key}/.write-check-{uuid.uuid4().hex}".lstrip("/")
            client.put_object(Bucket=bucket, Key=probe, Body=b"")
            client.delete_object(Bucket=bucket, Key=probe)
        else:
            # The object itself comes before all longer names; those below it may come after others that begin alike.
            for prefix in (key, f"{key}/"):
                listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
                if listed and (not key or listed[0]["Key"] == key or listed[0]["Key"].startswith(f"{key}/")):
                    break
            else:
                raise StorageError(f"{uri}: nothing there (bucket '{bucket}' exists{at})")
    except exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        reason = _s3_reason(code, status, bucket, "write to" if write else "read")
        reason = reason or f"{code or status}: {error.response.get('Error', {}).get('Message', 'request failed')}{at}"
        raise StorageError(f"{uri}: {reason}") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise StorageError(
            f"{uri}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except exceptions.ProxyConnectionError as error:
        raise StorageError(
            f"{uri}: the proxy of HTTP_PROXY or HTTPS_PROXY does not answer{at}; correct it, or add the host to NO_PROXY"
        ) from error
    except (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError) as error:
        raise StorageError(f"{uri}: {_no_answer(f' within {time.monotonic() - started:.0f} s')}") from error
    except (exceptions.BotoCoreError, exceptions.HTTPClientError, ValueError) as error:
        raise StorageError(f"{uri}: {one_line(error)}{at}") from error


def _s3_reason(code: str, status: int | None, bucket: str, action: str) -> str | None:
    """What an error of S3 means and what to do, by its code as the server writes it (NoSuchKey) or as pyarrow does (NO_SUCH_KEY)."""
    said, code, at = code, code.replace("_", "").lower(), _at_endpoint()
    if code in ("nosuchbucket", "404", "notfound"):
        return f"bucket '{bucket}' does not exist{at}; create it or correct the URI"
    if code in _CREDENTIALS:
        return (
            f"the credentials were refused ({said}){at}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN"
        )
    if code in ("accessdenied", "403", "allaccessdisabled") or status == 403:
        return f"no permission to {action} bucket '{bucket}'{at} ({said})"
    if code in ("permanentredirect", "authorizationheadermalformed", "301") or status == 301:
        return f"bucket '{bucket}' is in another region; set AWS_REGION to the bucket's region"
    if code in ("requesttimetooskewed", "requestexpired"):
        return "this machine's clock is wrong; set it"
    if code == "unknown" and status == 400:  # the answer to HEAD has no text
        return (
            f"refused without a reason (HTTP status 400){at}, as credentials are that have expired; check AWS_SESSION_TOKEN and "
            "AWS_REGION"
        )
    if code == "networkconnection":
        return _no_answer()
    return None


def _no_answer(within: str = "") -> str:
    target = _s3_endpoint() or "the AWS S3 endpoint"
    return f"no answer from {target}{within}; check AWS_ENDPOINT_URL, AWS_REGION and the network"


def _at_endpoint() -> str:
    endpoint = _s3_endpoint()
    return f" at endpoint {endpoint}" if endpoint else ""


def _s3_endpoint() -> str | None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name):
            if not endpoint.lower().startswith(("http://", "https://")):
                raise StorageError(f"{name} = '{endpoint}': write http:// or https:// before it")
            return endpoint
    return None


def credentials_version() -> tuple[object, ...]:
    """Changes when the AWS credentials of this process may have: its environment, or the files that it names, which others
    keep fresh. A file system, or a file that is open, goes on with those that it was opened with."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    ]
    return (*map(os.environ.get, names), *map(_version, files))


def _version(path: str) -> tuple[int, ...]:
    try:
        info = os.stat(os.path.expanduser(path))
    except OSError:
        return ()
    return info.st_ino, info.st_mtime_ns, info.st_size


def is_away(error: Exception) -> bool:
    """Whether an error of pyarrow's tells nothing about a file: its storage does not answer, or refuses whoever asks."""
    said = _AWS_ERROR.search(str(error))
    return isinstance(error, OSError) and said is not None and said[1] not in _ABOUT_ONE_OBJECT


def forget_connections() -> None:
    """Connect anew at the next request, with credentials that are looked up anew."""
    _s3.cache_clear()


@lru_cache(maxsize=8)
def _s3(endpoint: str | None, credentials: tuple[object, ...]) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),  # with backoff, on 5xx, timeouts, resets
        allow_delayed_open=True,  # a small file is one request instead of a multipart upload's three
    )


@_with_fresh_credentials
def _copy(source: str, target: str) -> None:
    with named_errors(f"{source} -> {target}"):
        (source_fs, source_path), (target_fs, target_path) = resolve(source), resolve(target)
        info = source_fs.get_file_info(source_path)
        if info.type == pafs.FileType.NotFound:
            raise MissingError(f"{source}: no such file or folder")
        if info.type == pafs.FileType.File:
            pairs = [(source_path, target_path)]
        else:
            selector = pafs.FileSelector(source_path, recursive=True)
            names = [f.path for f in source_fs.get_file_info(selector) if f.type == pafs.FileType.File]
            pairs = [(name, target_path + name[len(source_path) :]) for name in names]
        if isinstance(target_fs, pafs.LocalFileSystem):
            for folder in {os.path.dirname(path) for _, path in pairs}:
                os.makedirs(folder, exist_ok=True)
        with ThreadPoolExecutor(_COPY_THREADS) as pool:
            copies = [
                pool.submit(pafs.copy_files, a, b, source_filesystem=source_fs, destination_filesystem=target_fs)
                for a, b in pairs
            ]
            for copy in copies:
                copy.result()


@contextmanager
def named_errors(uri: str) -> Iterator[None]:
    """Turn the file systems' errors into StorageErrors that name the URI."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"{uri}: no such file or folder") from None
    except PermissionError:
        raise RefusedError(f"{uri}: no permission") from None
    except UnicodeDecodeError as error:  # pyarrow knows no other names
        name = error.object.decode(errors="backslashreplace")
        raise StorageError(f"{uri}: the name of '{name}' is not UTF-8; rename that file") from None
    except pa.ArrowInvalid as error:  # a key with an empty part, as in a//b
        raise StorageError(f"{uri}: {one_line(error)}; copy it to another key") from None
    except OSError as error:
        if "ACCESS_DENIED" in str(error):  # of one S3 object; pyarrow has no class for it
            raise RefusedError(f"{uri}: no permission") from None
        raise _kind(error)(f"{uri}: {_reason(error, uri)}") from error


def _kind(error: OSError) -> type[StorageError]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError
    code, status = _aws_code(error)
    is_unknown = code == "UNKNOWN" and status == 400
    return CredentialsError if is_unknown or code.replace("_", "").lower() in _CREDENTIALS else StorageError


def _aws_code(error: OSError) -> tuple[str, int]:
    """S3's own word for it, and the HTTP status; "" and 0 where it is not S3's error."""
    said = _AWS_ERROR.search(str(error))
    if said is None:
        return "", 0
    code = _UNKNOWN_TO_ARROW.search(str(error)) or said
    return code[1], int(said[2] or 0)


def _reason(error: OSError, uri: str) -> str:
    if error.errno in (known := DISK_TROUBLE | _PATH_TROUBLE):
        return known[error.errno]
    code, status = _aws_code(error)
    if not code:
        return one_line(error)
    bucket = re.search(r"s3://([^/\s]+)", uri)
    reason = _s3_reason(code, status, bucket[1] if bucket else "", "use")
    return reason or one_line(error)
