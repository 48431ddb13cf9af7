"""What brings frames to the network: making views (bench_views.py), then the stream (bench_stream.py), in one table."""

from typing import Any

from jobs import bench_stream, bench_views
from jobs.bench_stream import BenchStreamJob
from jobs.bench_views import BenchViewsJob
from jobs.runtime import Job, Session, ray_session
from pipeline.config import Settings
from pipeline.progress import SILENT, Progress


class BenchDataJob(Settings):
    """Settings of both."""

    views: BenchViewsJob = BenchViewsJob()
    stream: BenchStreamJob = BenchStreamJob()


def run(settings: BenchDataJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Both measurements; returns {"rows"}."""
    rows = bench_views.run(settings.views, progress)["rows"]
    return {"rows": [*rows, *bench_stream.run(settings.stream, progress, session)["rows"]]}


JOB = Job("bench data", BenchDataJob, run, __doc__, ray=bench_stream.JOB.ray)
