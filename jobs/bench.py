"""Measurements on this machine, printed as Markdown tables.

    python -m jobs.bench data [--views.rounds 5 ...]    views, then stream, in one table
    python -m jobs.bench views|stream|train|ingest|contrast [--setting value ...]

`python -m jobs.bench NAME --help` lists the settings of a measurement.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jobs.bench_table import markdown
from jobs.runtime import run_job
from pipeline.config import Settings
from pipeline.progress import Progress

NAMES = ("data", "views", "stream", "train", "ingest", "contrast")
"""Each is a module `jobs.bench_<name>` with settings `Bench<Name>Job` and `run(settings, progress) -> dict`, whose "rows"
(see bench_table.py), if there are any, are printed here."""


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
    module = importlib.import_module(f"jobs.bench_{name}")
    settings_type: type[Settings] = getattr(module, f"Bench{name.capitalize()}Job")

    def run(settings: Settings, progress: Progress) -> dict[str, Any]:
        result: dict[str, Any] = module.run(settings, progress)
        if "rows" in result:
            print(markdown(result["rows"]), flush=True)
        return result

    run_job(settings_type, run, f"jobs.bench {name}", module.__doc__, argv=arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
