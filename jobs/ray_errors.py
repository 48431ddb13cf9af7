"""What Ray's errors mean, and what to do."""

import os
import urllib.request

from pipeline.errors import EquihandError, causes, one_line

# By a part of Ray's own words; the first that fits.
_REMEDIES = [
    (
        "AF_UNIX",
        "set RAY_TMPDIR to a short path, such as /tmp: the paths of Ray's sockets begin with RAY_TMPDIR or TMPDIR",
    ),
    (
        "Version mismatch",
        "use the cluster's versions here, or send the job with jobs.submit, which runs it on the cluster",
    ),
    (
        "Could not find any running Ray",
        "start a cluster (make cluster), or leave the address out for a Ray of the job's own",
    ),
    ("Found multiple active Ray", "name one of them: ray.address HOST:PORT"),
    ("token", "the cluster asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"),
    ("object store", "another ray.object_store_mb, or a larger /dev/shm (docker run --shm-size)"),
    ("No space left", "free some space, or set RAY_TMPDIR to a folder on another disk"),
    ("Permission denied", "set RAY_TMPDIR to a folder that you may write"),
    ("Read-only file system", "set RAY_TMPDIR to a folder that you may write"),
]
_LOST = {
    "OutOfMemoryError": "memory ran out on a node: use fewer or smaller workers, or a smaller batch",
    "OutOfDiskError": "the disk is full to which Ray moves objects: free some space, or set RAY_TMPDIR to another disk",
    "ObjectStoreFullError": "Ray's object store is full: a larger ray.object_store_mb, or smaller windows",
    "WorkerCrashedError": "a worker was lost, most often because memory ran out",
    "ActorDiedError": "a worker was lost, most often because memory ran out",
    "NodeDiedError": "a node of the cluster was lost",
    "LocalRayletDiedError": "Ray on this machine has ended, most often because memory ran out",
    "RuntimeEnvSetupError": "the cluster's nodes could not prepare the job's environment",
}


def ray_start_error(address: str, error: Exception) -> EquihandError:
    """One line for what ray.init raised."""
    texts = [one_line(cause) for cause in causes(error)]
    remedy = next(
        (remedy for part, remedy in _REMEDIES if any(part.lower() in text.lower() for text in texts)), _default(address)
    )
    what = "Ray does not start" if address == "local" else f"Ray at '{address}' cannot be reached"
    return EquihandError(f"{what}: {texts[-1]}; {remedy}")


def lost_in_ray(error: BaseException) -> str | None:
    """One line for what happened to a running Ray; None where that is not what the error is about."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "ray.exceptions"]
    meaning = next((_LOST[kind] for kind in kinds if kind in _LOST), None)
    return None if meaning is None else f"{meaning} ({one_line(error, 200)}); the same command goes on"


def _default(address: str) -> str:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own default, for a message
    if address == "local":
        hint = f"is the machine very busy, or short of memory? Try again; Ray's own logs lie in {folder}/ray/session_latest/logs"
    else:
        hint = "is the cluster up, and is this its address?"
    return hint + proxy_hint(address.removeprefix("ray://").rpartition(":")[0] or "127.0.0.1")


def proxy_hint(host: str) -> str:
    """What to do where the environment sends connections to a host through a proxy; nothing where it does not."""
    proxies = urllib.request.getproxies()
    if not proxies.keys() & {"http", "https", "grpc", "all"} or urllib.request.proxy_bypass(host):
        return ""
    return f"; a proxy is set in the environment: add {host} to NO_PROXY"
