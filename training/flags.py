"""The flags of ``train.py``: GluonCV's (scripts/segmentation/train.py), and ours."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from export.symbols.networks import NETWORKS
from serving.parsing import read_text
from training.datasets import KNOWN
from training.recipe import recipe_names
from training.schedules import SCHEDULE_NAMES

DTYPES = ("float32", "bfloat16", "float16")
ON_NAN = ("stop", "skip")


def parse_size(text: str) -> tuple[int, int]:
    """``768`` or ``352x480`` (height x width) -> (height, width)."""
    parts = text.lower().split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes, default=0) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a size nor HEIGHTxWIDTH")
    return sizes[0], sizes[-1]


def parse_floats(text: str) -> tuple[float, ...]:
    """``1,0.4,0.4`` -> floats."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no comma-separated list of numbers"
        ) from None


def parse_class_weights(text: str) -> tuple[float, ...]:
    """``0.5,2,1``, or the name of a file of such numbers (also a line each) -> floats.

    Some may be 0: pixels of those classes are not learnt from.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = _read_numbers(Path(text))
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r}: weights are 0 or more, and not all of them 0")
    return weights


def _read_numbers(path: Path) -> tuple[float, ...]:
    try:
        content = read_text(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{str(path)!r} is neither a comma-separated list of numbers nor a file of them "
            f"({error})"
        ) from None
    try:
        return tuple(float(part) for part in content.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None


def parse_freeze(text: str) -> tuple[str, ...]:
    """``conv1,res2`` -> names; ``2`` -> that alone."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts) or (len(parts) > 1 and any(part.isdecimal() for part in parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a depth nor a list of names")
    return parts


def parse_loss_scale(text: str) -> float:
    """``dynamic`` -> 0, else a positive number."""
    try:
        scale = 0.0 if text == "dynamic" else float(text)
    except ValueError:
        scale = -1.0
    if scale < 0 or (scale == 0 and text != "dynamic"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor dynamic")
    return scale


def parser() -> argparse.ArgumentParser:
    """The flags; names and defaults are GluonCV's where it has them."""
    p = argparse.ArgumentParser(
        "train.py", description="Trains a segmentation network, with MXNet Gluon or PyTorch."
    )
    p.add_argument("--recipe", help="a published one, as defaults: " + ", ".join(recipe_names()))
    p.add_argument("--trainer", choices=("gluon", "torch"), default="gluon", help="framework")
    net = p.add_argument_group("network")
    net.add_argument("--symbol", type=Path, help="symbol.json for --trainer torch, without MXNet")
    net.add_argument("--model", default="icnet", help=", ".join(NETWORKS))
    net.add_argument("--backbone", help="resnet18/34/50/101/152 or xception65; default: the usual")
    net.add_argument("--width", type=float, default=1.0, help="channel multiplier, e.g. 0.5")
    net.add_argument("--syncbn", action="store_true", help="batch norm over all devices")
    net.add_argument("--freeze-bn", action="store_true", help="batch norm keeps statistics, scale "
                     "and shift of the weights that it starts from")  # fmt: skip
    net.add_argument("--freeze", type=parse_freeze, default=(), metavar="N|NAME,...",
                     help="the backbone's first N parts (1: its stem), or parameters whose names "
                     "begin so, are not trained; their batch norms keep statistics")  # fmt: skip
    net.add_argument("--output-stride", type=int, choices=(8, 16), default=16, help="deeplabv3plus")
    net.add_argument("--aux", action="store_true", help="auxiliary head (ICNet always has two)")
    net.add_argument("--aux-weight", type=float, default=0.4, help="weight of auxiliary losses")
    data = p.add_argument_group("data")
    data.add_argument("--dataset", default="camvid", help=", ".join(KNOWN))
    data.add_argument("--root", type=Path, help="default ~/.mxnet/datasets/<dataset>")
    data.add_argument("--base-size", type=int, default=520, help="long edge before scaling")
    data.add_argument("--short-size", type=int, default=0, help="short edge, in place of the long")
    data.add_argument("--crop-size", type=parse_size, default=(480, 480), metavar="N|HxW")
    data.add_argument("--scale-range", type=parse_floats, default=(0.5, 2.0), metavar="LO,HI")
    data.add_argument("--color-jitter", type=float, default=0.0)
    data.add_argument("--rotation", type=float, default=0.0, help="largest angle, degrees")
    data.add_argument("--aspect", type=float, default=0.0, help="how far the scales of rows and "
                      "columns may differ; 0: one scale")  # fmt: skip
    data.add_argument("--blur", type=float, default=0.5, help="share of blurred crops")
    data.add_argument("--class-crops", type=float, default=0.0, help="share on a drawn class")
    data.add_argument("--synthetic-share", type=float, default=0.0, help="of every epoch")
    data.add_argument("--workers", type=int, default=2, help="loader threads")
    run = p.add_argument_group("optimisation")
    run.add_argument("--epochs", type=int, default=50)
    run.add_argument("--batch-size", type=int, default=16)
    run.add_argument("--lr", type=float, default=1e-3)
    run.add_argument("--schedule", choices=SCHEDULE_NAMES, default="poly", help="of the rate")
    run.add_argument("--lr-steps", type=parse_floats, default=(), metavar="EPOCH,...",
                     help="where --schedule step multiplies the rate")  # fmt: skip
    run.add_argument("--lr-factor", type=parse_floats, default=(0.1,), metavar="F[,...]",
                     help="by how much; one for all steps or one each")  # fmt: skip
    run.add_argument("--warmup-epochs", type=float, default=0.0)
    run.add_argument("--head-lr-mult", type=float, default=10.0, help="all but the backbone")
    run.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    run.add_argument("--momentum", type=float, default=0.9)
    run.add_argument("--weight-decay", type=float, default=1e-4)
    run.add_argument("--no-wd", action="store_true", help="none on biases and batch norm")
    run.add_argument("--clip-grad", type=float, default=0.0, help="largest gradient norm; 0: any")
    run.add_argument("--class-balance", type=float, default=0.0, help="power of 1/frequency")
    run.add_argument("--class-weights", type=parse_class_weights, default=(), metavar="W,...|FILE",
                     help="how much a pixel of each class weighs in the loss")  # fmt: skip
    run.add_argument("--loss-weights", type=parse_floats, help="prediction,auxiliary,...; "
                     "default 1,aux,...")  # fmt: skip
    run.add_argument("--legacy-loss-weights", action="store_true", help="those that act in "
                     "GluonCV, whatever it is told: 1 each, on ICNet's prediction 2")  # fmt: skip
    run.add_argument("--ohem", type=float, default=0.0, metavar="P", help="probability that is "
                     "easy: pixels whose class has more do not count")  # fmt: skip
    run.add_argument("--ohem-share", type=float, default=0.0625, help="but at least from these")
    run.add_argument("--seed", type=int, default=1)
    only = p.add_argument_group("only with --trainer torch")
    only.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="autocast of the passes")
    only.add_argument("--loss-scale", type=parse_loss_scale, default=0.0, metavar="N|dynamic",
                      help="of --dtype float16; default dynamic")  # fmt: skip
    only.add_argument("--accumulate", type=int, default=1, help="parts that a batch is split into")
    only.add_argument(
        "--ema", type=float, default=0.0, help="decay of averaged weights, e.g. 0.999"
    )
    only.add_argument("--compile", action="store_true", help="torch.compile; slow first steps")
    device = p.add_argument_group("devices")
    device.add_argument("--ngpus", type=int, default=0)
    device.add_argument("--no-cuda", action="store_true")
    out = p.add_argument_group("run")
    out.add_argument("--checkname", default="default")
    out.add_argument("--save-dir", type=Path, default=Path("runs"))
    out.add_argument("--resume", type=Path, help="a run folder, or a .params file to start from")
    out.add_argument("--pretrained", metavar="NAME", help="weights of GluonCV's zoo "
                     "(icnet_resnet50_citys) or a folder of segserve import-weights, and their "
                     "network: to fine-tune, or with --eval to score")  # fmt: skip
    out.add_argument("--finetune", type=Path, help="a .params file; other-shaped heads start anew")
    out.add_argument("--no-val", action="store_true")
    out.add_argument("--val-interval", type=int, default=1, help="epochs")
    out.add_argument("--eval", action="store_true", help="only validate")
    out.add_argument("--log-interval", type=int, default=20, help="iterations")
    out.add_argument("--checkpoint-minutes", type=float, default=10.0, help="write one at the end "
                     "of each epoch, and so often within; 0: not within")  # fmt: skip
    out.add_argument("--on-nan", choices=ON_NAN, default=ON_NAN[0], help="where a step's loss or "
                     "gradients are not finite; it is never taken")  # fmt: skip
    out.add_argument("--max-skips", type=int, default=10, help="in a row, with --on-nan skip")
    return p
