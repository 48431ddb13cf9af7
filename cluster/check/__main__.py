"""Check the files for a cluster, without having one.

    python -m cluster.check cluster                                  # all of this repository
    python -m cluster.check --schemas SCHEMAS my-overlay             # with the operator's own schemas

One line for each problem: file, object, field, what is wrong and what to do. Known are kustomizations and manifests of KubeRay and
Kubernetes, files of Ray's cluster launcher, compose files and Containerfiles.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.check.files import check
from cluster.check.schemas import folder_given


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 no problem, 1 there are some, 2 it cannot be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--schemas", metavar="FOLDER", help="the operator's schemas (default: EQUIHAND_KUBERAY_SCHEMAS, else our own)"
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    options = parser.parse_args(argv)
    try:
        problems = check(options.paths, folder_given(options.schemas))
    except ValueError as error:
        print(f"error: --schemas: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"error: there is no package {error.name}; pip install -e '.[dev]' -c constraints.txt brings it",
            file=sys.stderr,
        )
        return 2
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
