"""`python -m tests.chaos`: kills a job in all ways, many times, and says whether anything was lost.

Exit code 0 when all faults were dealt and nothing is wrong, else 1. Which faults happen, and where in the job, follows
from the seed; at which instruction they hit is up to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from jobs.formats.formats import FORMATS
from tests.chaos.campaign import Campaign, Result
from tests.chaos.faults import Kind, counts_of
from tests.chaos.inputs import write_inputs
from tests.chaos.places import StoreName, place_of
from tests.chaos.processes import adopt_orphans, own_processes
from tests.chaos.report import as_json, as_markdown, machine


def main() -> int:
    """Runs one campaign."""
    arguments = _arguments()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    adopt_orphans()
    # Ray puts sockets into it, whose paths have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            result = _campaign(Path(folder), arguments)
        finally:
            for process in own_processes():
                process.send(signal.SIGKILL)
    circumstances = {"seed": arguments.seed, "store": arguments.store, "format": arguments.format, "machine": machine()}
    text = as_markdown(result, circumstances)
    sys.stdout.write(text)
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.with_suffix(".md").write_text(text)
        arguments.report.with_suffix(".json").write_text(json.dumps(as_json(result, circumstances), indent=1))
    return 1 if result.findings or result.missed else 0


def _campaign(folder: Path, arguments: argparse.Namespace) -> Result:
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.1f} {text}\n")

    (folder / "i").mkdir()
    inputs = write_inputs(folder / "i", arguments.rows, arguments.shard_rows, arguments.seed, arguments.format)
    with place_of(arguments.store, folder) as place:
        counts = dict(arguments.faults) or counts_of(arguments.kills, store=place.server is not None)
        return Campaign(folder, inputs, place, say).run(counts, arguments.seed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs; some signals and frozen drivers come beside")
    names = ", ".join(kind.name.lower() for kind in Kind)
    parser.add_argument(
        "--faults", nargs="*", type=_count, default=[], metavar="NAME=N", help=f"in their place: {names}"
    )
    parser.add_argument("--rows", type=int, default=1_600)
    parser.add_argument("--shard-rows", type=int, default=20)
    parser.add_argument("--format", choices=sorted(FORMATS), default="parquet")
    parser.add_argument("--store", choices=get_args(StoreName), default="local")
    parser.add_argument("--report", type=Path, help="write the table there too, as .md and .json")
    return parser.parse_args()


def _count(text: str) -> tuple[Kind, int]:
    name, _, count = text.partition("=")
    try:
        return Kind[name.upper()], int(count)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: give the name of a fault and a number, such as worker=3") from None


if __name__ == "__main__":
    sys.exit(main())
