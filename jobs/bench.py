"""Measurements on this machine, printed as Markdown tables.

    python -m jobs.bench data [--views.rounds 5 ...]    views, then stream, in one table
    python -m jobs.bench views|stream|train|ingest|contrast [--setting value ...]

`python -m jobs.bench NAME --help` lists the settings of a measurement.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from jobs.bench_table import markdown
from jobs.runtime import run_job

NAMES = ("data", "views", "stream", "train", "ingest", "contrast")
"""Each is a module `jobs.bench_<name>` with a JOB whose run returns a dict; its "rows" (see bench_table.py), if there are any,
are printed here."""


def main(argv: Sequence[str]) -> NoReturn:
    """Runs the measurement that the first argument names; ends the process."""
    name, arguments = (argv[0], argv[1:]) if argv else ("", ())
    if name not in NAMES:
        stream, code = (sys.stdout, 0) if name in ("-h", "--help") else (sys.stderr, 2)
        if code:
            print(f"error: unknown measurement '{name}'; there are: {', '.join(NAMES)}", file=stream)
        else:
            print(__doc__, file=stream)
        sys.exit(code)
    job = importlib.import_module(f"jobs.bench_{name}").JOB

    def run(*arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = job.run(*arguments)
        if "rows" in result:
            print(markdown(result["rows"]), flush=True)
        return result

    run_job(replace(job, run=run), arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
