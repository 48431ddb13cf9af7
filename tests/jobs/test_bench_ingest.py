"""The memory measurement of the ingest, with tiny sizes."""

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from jobs.bench_ingest import BenchIngestJob, MemoryWatch, memory_mb, run
from jobs.bench_table import markdown
from pipeline.progress import SILENT


def test_both_sizes_are_measured(ray_cluster):
    result = run(BenchIngestJob(images=8, hands=4, factor=3, rows_per_shard=32))
    values = {row["what"]: row["value"] for row in result["rows"]}
    assert values["rows, small input"] == 32
    assert values["rows, 3 times as large"] == 96
    assert values["spilled from the object store"] == 0
    for stage in ("find and crop hands", "shuffle and write shards"):
        assert values[f"{stage}: peak of driver"] > 50
        assert values[f"{stage}: peak of workers"] > 50
        parts = ("driver", "workers", "rest of Ray", "object store")
        assert values[f"{stage}: peak of all"] <= sum(values[f"{stage}: peak of {part}"] for part in parts) + 1
    assert "| find and crop hands: peak of all |" in markdown(result["rows"])


def test_memory_that_is_taken_is_seen():
    before = memory_mb()["driver"]
    with MemoryWatch(SILENT, interval_s=0.01) as watch:
        watch.begin("taking")
        # From the system itself: an allocator that keeps freed memory would take it from there, and keep it.
        taken = mmap(-1, 80_000_000, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        for _ in range(80):
            taken.write(bytes(1_000_000))
        watch.begin("having less")
        taken.close()
        watch.begin("idle")
    assert watch.stages["having less"]["driver"] > before + 70
    assert watch.stages["idle"]["driver"] < before + 40
