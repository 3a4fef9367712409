"""``make fuzz``: structure-aware mutants of images and requests against the real server.

Every mutant is a function of its number: ``--start 4711 --count 1`` tries one again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from campaign import SCHEDULE, Progress, run_blocks  # noqa: E402


def main() -> int:
    """Returns 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--start", type=int, help="first number; default: where the last run stopped"
    )
    parser.add_argument("--count", type=int, default=200_000, help="how many mutants")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "fuzz")
    parser.add_argument("--block", type=int, default=1000, help="mutants between two reports")
    parser.add_argument(
        "--kinds", nargs="+", default=SCHEDULE, choices=sorted({*SCHEDULE}), help="default: all"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    for progress, seconds in run_blocks(
        arguments.start, arguments.count, folder, arguments.block, arguments.kinds
    ):
        found = len(progress.findings)
        print(f"{progress.next_number} mutants, {found} findings, {seconds:.0f} s", flush=True)
    findings = Progress(folder / "progress.json").findings
    for number, kind, verdict in findings:
        print(f"{number} {kind}: {verdict}")
    print(f"state: {folder / 'progress.json'}; files: {folder / 'crashes'}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
