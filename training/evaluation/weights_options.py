"""Command line of ``test.py``: GluonCV's flags (scripts/segmentation/test.py), and ours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from training.flags import parse_size, parser
from training.options import TrainOptions, parse_options
from training.runs.checkpoint import RunFolder


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation, or one folder of predictions.

    Attributes:
        run: the network and the data, as ``train.py`` is told them.
        weights: a ``.params`` file.
        score: with ``--eval``; predictions are written otherwise.
        size: of the network's input (height, width); None: the first image's own.
        output: where tables or predictions go; None (with ``score``): nowhere.
    """

    run: TrainOptions
    weights: Path
    score: bool
    split: str
    size: tuple[int, int] | None
    flip: bool
    limit: int | None
    boundary_tolerance: float
    output: Path | None


def _own_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("test.py", add_help=False, allow_abbrev=False)
    own = p.add_argument_group("only of test.py")
    own.add_argument("--eval", action="store_true", help="score; else predictions are written")
    own.add_argument("--split", default="val", help="train, val, with some datasets test")
    own.add_argument("--size", type=parse_size, metavar="N|HxW",
                     help="of the network's input; default: the first image's own, to a multiple "
                     "of 32")  # fmt: skip
    own.add_argument("--flip", action="store_true", help="average with the mirror image")
    own.add_argument("--limit", type=int, help="only the first images")
    own.add_argument("--boundary-tolerance", type=float, default=0.0,
                     help="share of the diagonal, for a boundary F-score; 0: none")  # fmt: skip
    own.add_argument("--output", type=Path, help="folder of tables or predictions; default of "
                     "these: outdir")  # fmt: skip
    return p


def parse_evaluation(arguments: list[str]) -> EvaluationOptions:
    """Reads the command line; exits with a message on a wrong one."""
    own = _own_parser()
    if {"-h", "--help"} & set(arguments):
        own.print_help()
        print("\nnetwork, data and devices, as train.py has them:\n")
        parser().print_help()
        raise SystemExit(0)
    a, rest = own.parse_known_args(arguments)
    run = parse_options([*rest, "--eval"])
    if run.resume is None and not run.run.is_dir():
        own.error("--resume names the weights: a run folder or a .params file")
    weights = run.resume or run.run
    if weights.is_dir():
        weights = RunFolder(weights).best
    if a.limit is not None and a.limit < 1:
        own.error("--limit is a number of images")
    return EvaluationOptions(
        run=run, weights=weights, score=a.eval, split=a.split, size=a.size, flip=a.flip,
        limit=a.limit, boundary_tolerance=a.boundary_tolerance,
        output=a.output if a.eval else a.output or Path("outdir"),
    )  # fmt: skip


def at_size(options: EvaluationOptions, size: tuple[int, int]) -> TrainOptions:
    """The network's options at another input size.

    A run's own symbol fits the size that it was trained at; at another the network is built again.
    """
    run = options.run
    if size != (run.height, run.crop_width) and run.symbol == _symbol_beside(options.weights):
        run = replace(run, symbol=None)
    return replace(run, height=size[0], crop_width=size[1])


def _symbol_beside(weights: Path) -> Path:
    return RunFolder(weights.parent).symbol
