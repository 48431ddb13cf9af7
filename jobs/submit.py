"""Run a job on a Ray cluster: pack the code, submit it, follow its log.

    python -m jobs.submit [--address http://HOST:8265] [--run-id ID] [--detach] JOB [--setting value ...]
    python -m jobs.submit --attach ID      follow a job's log again
    python -m jobs.submit --stop ID        end a job
    python -m jobs.submit --list           the cluster's jobs
    python -m jobs.submit --kuberay --image REGISTRY/equihand:TAG JOB ... | kubectl apply -f -

The settings are checked here, before anything is sent; they travel as one file, submitted/settings.yaml. The submission's id is the run's id: submitting a run that is
still going attaches to it; one that has ended is submitted as a further attempt of the same run, so training goes on
from its last checkpoint. Ctrl-C detaches; the job goes on. The exit code is the job's (0 done, 1 failed, 2 bad settings).

Credentials are never sent along: a job's arguments and environment are readable by everybody who sees the cluster's
dashboard. The cluster's nodes have their own (see docs/cluster.md).
"""

import argparse
import asyncio
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from jobs import kuberay
from jobs.main import JOBS
from jobs.packing import pack
from jobs.ray_errors import proxy_hint
from jobs.ray_token import headers, token_path
from jobs.runtime import EXIT_INTERRUPTED, Job
from pipeline.config import flatten, flatten_values, uris_in
from pipeline.errors import EquihandError, SettingsError, one_line
from pipeline.masking import holds_secret
from pipeline.models.shipped import shipped_models
from pipeline.provenance import GIT_VARIABLE, git
from pipeline.ray_cluster import in_words
from pipeline.storage import is_local
from pipeline.text_files import parse_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_PORT = 8265
DEFAULT_ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"
CONNECT_TIMEOUT_S = 8.0
# A stopped job writes a checkpoint, closes its MLflow run and ends its workers. By default Ray would wait 3 s for that.
STOP_GENTLY = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "300"}
FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
OLDEST_PYTHON = (3, 11)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_SETTINGS_FILE = "submitted/settings.yaml"
_ONLY_HERE = ("demo", "sync")  # of the table of jobs
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Submission(NamedTuple):
    """A job ready to be sent."""

    job: str
    run_id: str
    settings: str
    """What was given, as a YAML file."""
    worker: dict[str, float]
    """What one worker needs of a node, {"CPU": ..., "GPU": ...}; empty where the job has none."""

    @property
    def command(self) -> list[str]:
        """What runs on the cluster, in the folder of the package."""
        return ["python", "-m", f"jobs.{self.job}", f"--config={_SETTINGS_FILE}"]


def prepare(job: str, arguments: Sequence[str], run_id: str | None = None) -> Submission:
    """Check a job's arguments and fix the run's id.

    Raises SettingsError: bad settings, a password in one of them, or a path that the cluster's nodes cannot see.
    """
    definition = job_called(job)
    arguments = list(arguments)
    settings = definition.load(arguments)
    run_id_setting = next((name for name in flatten(settings) if name.rpartition(".")[2] == "run_id"), None)
    if run_id_setting is not None:
        run_id = run_id or flatten(settings)[run_id_setting]
    run_id = run_id or f"{job}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not _RUN_ID.fullmatch(run_id):
        raise SettingsError(f"run id '{run_id}': use letters, digits, '.', '_' and '-' only")
    if "tracking" in type(settings).model_fields and not _is_given("tracking.uri", arguments):
        # A file beside the job would be lost with its node. What there is to be recorded lies in the run's storage then.
        arguments.append(f"--tracking.uri={os.environ.get('MLFLOW_TRACKING_URI') or 'none'}")
    if run_id_setting is not None:
        arguments.append(f"--{run_id_setting}={run_id}")
    settings = definition.load(arguments)
    for name, value in flatten(settings).items():
        if holds_secret(str(value)):
            raise SettingsError(
                f"setting '{name}' holds a password, which everybody who sees the cluster's dashboard could read; "
                "give it to the cluster's nodes instead (docs/cluster.md, Credentials)"
            )
    for name, value in uris_in(settings):
        path = value.removeprefix("sqlite:///").removeprefix("file://")
        if not is_local(path) or not path or path.startswith(("/", "~")) or path in shipped_models():
            continue
        raise SettingsError(
            f"setting '{name}' = '{value}' is a path below this folder, which the cluster's nodes do not see; "
            "use s3://, or an absolute path on storage that all nodes share"
        )
    given = settings.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=120)
    return Submission(job, run_id, text, needs_of(settings))


def _is_given(name: str, arguments: Sequence[str]) -> bool:
    """Whether a setting stands in the arguments, or in their --config file. (What was read has all settings of a group.)"""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    config = parser.parse_known_args([*arguments])[0].config
    values = parse_yaml(config.read_bytes()) if config else {}
    in_file = name in flatten_values(values or {})
    return in_file or any(argument.partition("=")[0] == f"--{name}" for argument in arguments)


def needs_of(settings: Any) -> dict[str, float]:
    """What one worker, trial or model of a job needs of a node, as far as its settings say."""
    workers = getattr(settings, "workers", None)
    if workers is not None:
        return {"CPU": workers.cpus_per_worker, "GPU": float(bool(workers.use_gpu))}
    if hasattr(settings, "cpus_per_trial"):
        return {"CPU": float(settings.cpus_per_trial), "GPU": float(settings.gpus_per_trial or 0)}
    if hasattr(settings, "num_actors"):
        return {"CPU": 1.0, "GPU": float(bool(settings.use_gpu))}
    return {}


def job_called(name: str) -> Job[Any]:
    """A job that can be submitted. Raises SettingsError for an unknown one."""
    known = [job for job in sorted(JOBS) if job not in _ONLY_HERE]
    if name not in known:
        raise SettingsError(f"unknown job '{name}'; there are: {', '.join(known)}")
    job: Job[Any] = importlib.import_module(f"jobs.{name}").JOB
    return job


def forwarded_environment(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the caller that the job gets too: where the object store is, never who may use it."""
    remote = urlsplit(address).hostname not in _LOOPBACK
    values = {name: environment[name] for name in FORWARDED if environment.get(name)}
    return {
        name: value
        for name, value in values.items()
        # An endpoint on this machine's loopback means nothing to a cluster elsewhere.
        if not holds_secret(value) and not (remote and urlsplit(value).hostname in _LOOPBACK)
    }


def attempts_of(client: "JobSubmissionClient", run_id: str) -> dict[int, "JobDetails"]:
    """The submissions of one run that this cluster knows, by the number of the attempt, in order."""
    pattern = re.compile(re.escape(run_id) + r"(?:-attempt(\d+))?")
    found = [(pattern.fullmatch(item.submission_id or ""), item) for item in client.list_jobs()]
    attempts = {int(match[1] or 1): item for match, item in found if match}
    return dict(sorted(attempts.items()))


def submit(client: "JobSubmissionClient", address: str, submission: Submission) -> str:
    """Submit a job, or find the attempt of the same run that is still going; returns the submission's id."""
    run_id = submission.run_id
    attempts = attempts_of(client, run_id)
    latest = max(attempts, default=0)
    if latest and attempts[latest].status not in ENDED:
        print(f"run {run_id} is going already: attaching to it; its settings stay as they were", flush=True)
        return str(attempts[latest].submission_id)
    # Ray refuses an id that it has seen, also that of a job that has ended.
    submission_id = f"{run_id}-attempt{latest + 1}" if latest else run_id
    with tempfile.TemporaryDirectory() as folder:
        package, settings = Path(folder, "equihand.zip"), Path(folder, "settings.yaml")
        settings.write_text(submission.settings, encoding="utf-8")
        size = pack(ROOT, package, {_SETTINGS_FILE: settings})
        client.submit_job(
            entrypoint=shlex.join(submission.command),
            submission_id=submission_id,
            runtime_env={
                "working_dir": str(package),
                "env_vars": {**STOP_GENTLY, **_code_version(), **forwarded_environment(address, os.environ)},
            },
            metadata={"job": submission.job, "run_id": run_id},
        )
    print(f"submitted {submission_id} ({size / 1e3:.0f} kB of code) to {address}", flush=True)
    return submission_id


def _code_version() -> dict[str, str]:
    """What the job's record says of its code, which has no repository where it runs."""
    code = git()
    return {GIT_VARIABLE: f"{code.commit}{'-dirty' if code.is_dirty else ''}"} if code.commit else {}


def follow(client: "JobSubmissionClient", submission_id: str) -> int:
    """Print a job's log until it ends, over broken connections too; returns the job's exit code."""
    printed = failures = 0

    async def tail() -> None:
        nonlocal printed, failures
        position = 0
        async for text in client.tail_job_logs(submission_id):
            # A new connection sends the log from its beginning.
            print(text[max(0, printed - position) :], end="", flush=True)
            position += len(text)
            printed = max(printed, position)
            failures = 0

    while True:
        try:
            asyncio.run(tail())
            details = client.get_job_info(submission_id)
            if details.status in ENDED:
                break
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures == 5:
                raise EquihandError(f"the connection to the cluster is lost: {_first_line(error)}") from None
        time.sleep(min(2**failures, 10))
    if details.status == "SUCCEEDED":
        print(f"{submission_id}: done")
        return 0
    reason = _first_line(details.message or "").partition(", last available logs")[0]  # the log has been printed
    print(f"{submission_id}: {details.status.lower()}: {reason}", file=sys.stderr)
    return details.driver_exit_code if details.driver_exit_code and details.driver_exit_code > 0 else 1


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster's job server. Raises EquihandError within ten seconds when there is none."""
    import ray
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray lets these two win over the address that it is given.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    sent: dict[str, str] = {}
    try:
        version, wanted = _version(address, sent)
        if wanted:  # the token goes only to clusters that ask for one
            sent = headers()
            version, wanted = _version(address, sent)
    except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:
        own_port = urlsplit(address).port in (6379, 10001)
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise EquihandError(
            f"no Ray job server answers at {address} ({_first_line(reason)}); "
            + ("that is the port of the cluster itself, its job server has 8265 by default; " if own_port else "")
            + "start a local cluster with `make cluster`, or give the address of yours with --address"
            + proxy_hint(urlsplit(address).hostname or "")
        ) from error
    if wanted:
        raise EquihandError(
            f"the cluster at {address} {'refuses your token' if sent else 'asks for a token'}; "
            f"set RAY_AUTH_TOKEN to the cluster's token, or keep it in {token_path()}"
        )
    if version != ray.__version__:
        print(f"note: the cluster runs Ray {version}, this machine {ray.__version__}", file=sys.stderr)
    python = _asked(address, "/api/v0/cluster_metadata", sent).get("data", {}).get("pythonVersion", "")
    if python and tuple(map(int, re.findall(r"\d+", python)[:2])) < OLDEST_PYTHON:
        raise EquihandError(
            f"the cluster's Python is {python}; jobs need {'.'.join(map(str, OLDEST_PYTHON))} or newer on its nodes, and what "
            "cluster/Containerfile installs"
        )
    return JobSubmissionClient(address, headers=sent)


def check_fit(address: str, worker: Mapping[str, float]) -> str:
    """Why the job will wait, where no node of the cluster holds one worker now; else empty, also where nobody knows."""
    if not worker:
        return ""
    summary = _asked(address, "/nodes?view=summary", headers()).get("data", {}).get("summary", [])
    nodes = [node["raylet"].get("resourcesTotal", {}) for node in summary if node["raylet"].get("state") == "ALIVE"]
    if not nodes or any(all(node.get(name, 0) >= need for name, need in worker.items()) for node in nodes):
        return ""
    there = ", ".join(in_words(node) for node in nodes)
    return (
        f"no node of the cluster holds ({in_words(worker)}) now; there: {there}. The job waits until one comes, or its "
        "start_timeout_s is over"
    )


def _asked(address: str, path: str, sent: Mapping[str, str]) -> dict[str, Any]:
    """What the job server answers; {} where it does not, as one of another version of Ray."""
    request = urllib.request.Request(f"{address}{path}", headers=dict(sent))  # noqa: S310 - `job_server` lets http and https through only
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S / 2) as answer:  # noqa: S310
            found = json.load(answer)
    except (OSError, ValueError, HTTPException):
        return {}
    return found if isinstance(found, dict) else {}


def job_server(address: str) -> str:
    """The job server's URL of what a user gives; http:// and Ray's port are added. Raises SettingsError where it is none."""
    given, address = address, address.strip()
    if "://" not in address:
        address = f"http://{address}" if ":" in address or "/" in address else f"http://{address}:{DEFAULT_PORT}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or given in ("auto", "local"):
        raise SettingsError(
            f"--address '{one_line(given)}' is not that of a job server; write http://HOST:{DEFAULT_PORT} "
            "(RAY_API_SERVER_ADDRESS, where --address is not given)"
        )
    return address.rstrip("/")


def _version(address: str, sent: Mapping[str, str]) -> tuple[str, bool]:
    """The cluster's Ray version, and whether it lets only those in who have a token, or another one."""
    request = urllib.request.Request(f"{address}/api/version", headers=dict(sent))  # noqa: S310 - `job_server` lets http and https through only
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S / 2) as answer:  # noqa: S310
            return json.load(answer)["ray_version"], False
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return "", True
        raise


def _first_line(error: object) -> str:
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


def _latest(client: "JobSubmissionClient", run_id: str) -> str:
    attempts = attempts_of(client, run_id)
    if not attempts:
        raise EquihandError(f"the cluster knows no job '{run_id}'; --list shows those that there are")
    return str(attempts[max(attempts)].submission_id)


def _show_jobs(client: "JobSubmissionClient") -> None:
    for item in sorted(client.list_jobs(), key=lambda item: item.start_time or 0):
        if item.submission_id:
            started = time.strftime("%Y-%m-%d %H:%M", time.localtime((item.start_time or 0) / 1000))
            print(f"{item.submission_id:40} {item.status:10} {started}  {item.entrypoint}")


def _kuberay(submission: Submission, base: Path, image: str | None, apply: bool) -> int:
    """Print the job's objects of Kubernetes, or apply them; the exit code."""
    documents = kuberay.objects(submission.job, submission.run_id, submission.settings, base, image)
    text = kuberay.to_yaml(documents)
    if not apply:
        print(text, end="")
        return 0
    if (kubectl := shutil.which("kubectl")) is None:
        raise EquihandError("there is no kubectl on this machine; without --apply the objects are printed")
    return subprocess.run([kubectl, "apply", "-f", "-"], input=text.encode(), check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS),
        help="the cluster's job server (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
    )
    parser.add_argument("--run-id", help="the run's id; the same id goes on with the same run")
    parser.add_argument("--detach", action="store_true", help="do not follow the log")
    kubernetes = (
        "print the job as a RayJob with a cluster of its own, and its settings as a ConfigMap, for kubectl apply -f -"
    )
    parser.add_argument("--kuberay", action="store_true", help=f"{kubernetes}; nothing is sent")
    parser.add_argument("--apply", action="store_true", help="with --kuberay: hand it to kubectl")
    parser.add_argument("--image", help="with --kuberay: what the pods run; it brings the code (cluster/Containerfile)")
    parser.add_argument("--base", type=Path, help="with --kuberay: a file with a RayJob, whose cluster the job gets")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--attach", metavar="ID", help="follow the log of a job")
    what.add_argument("--stop", metavar="ID", help="end a job")
    what.add_argument("--list", action="store_true", help="show the cluster's jobs")
    parser.add_argument("job", nargs="?", help="ingest, pretrain, search, evaluate, ...")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the job's own arguments; JOB --help lists them")
    options = parser.parse_args(argv)
    if options.kuberay and not options.job:
        parser.error("--kuberay needs a job")
    if bool(options.job) == bool(options.attach or options.stop or options.list):
        parser.error("give a job, or one of --attach, --stop, --list")
    submission_id = ""
    try:
        if options.job:
            submission = prepare(options.job, options.arguments, options.run_id)
        if options.kuberay:
            return _kuberay(submission, options.base or kuberay.BASE, options.image, options.apply)
        address = job_server(options.address)
        client = connect(address)
        if options.list:
            _show_jobs(client)
            return 0
        if options.stop:
            submission_id = _latest(client, options.stop)
            stopped = client.stop_job(submission_id)
            print(f"{submission_id}: {'is being stopped' if stopped else 'has ended already'}")
            return 0
        if options.attach:
            submission_id = _latest(client, options.attach)
        else:
            if note := check_fit(address, submission.worker):
                print(f"note: {note}", file=sys.stderr)
            if (
                "tracking" in (given := yaml.safe_load(submission.settings))
                and given["tracking"].get("uri", "") is None
            ):
                print(
                    "note: no MLflow server is given (--tracking.uri, MLFLOW_TRACKING_URI): what is to be recorded is kept with the "
                    "run, and `python -m jobs.sync RUN --tracking_uri ...` delivers it",
                    file=sys.stderr,
                )
            submission_id = submit(client, address, submission)
        how = f"python -m jobs.submit --address {address}"
        hint = f"  log:   {how} --attach {submission_id}\n  stop:  {how} --stop {submission_id}"
        if options.detach:
            print(hint)
            return 0
        try:
            return follow(client, submission_id)
        except KeyboardInterrupt:
            print(f"\ndetached; {submission_id} goes on\n{hint}")
            return EXIT_INTERRUPTED
    except EquihandError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except (RuntimeError, OSError) as error:  # what the job server refuses, and a connection that breaks
        print(f"error: {_first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
