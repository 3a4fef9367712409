"""Command line of ``train.py``: GluonCV's flags (scripts/segmentation/train.py), and ours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from training.datasets import canonical_name


@dataclass(frozen=True)
class TrainOptions:
    """One training run; sizes in pixels."""

    trainer: str
    symbol: Path | None
    dataset: str
    model: str
    backbone: str
    width: float
    root: Path | None
    height: int
    crop_width: int
    base_size: int
    epochs: int
    batch_size: int
    lr: float
    warmup_epochs: float
    head_lr_mult: float
    momentum: float
    weight_decay: float
    no_wd: bool
    clip_grad: float
    optimizer: str
    syncbn: bool
    ngpus: int
    no_cuda: bool
    workers: int
    seed: int
    resume: Path | None
    run: Path
    no_val: bool
    eval_only: bool
    val_interval: int
    log_interval: int
    scale_range: tuple[float, float]
    color_jitter: float
    synthetic_share: float
    class_balance: float
    loss_weights: tuple[float, ...]


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


def parser() -> argparse.ArgumentParser:
    """The flags; names and defaults are GluonCV's where it has them."""
    p = argparse.ArgumentParser(
        "train.py", description="Trains a segmentation network (MXNet Gluon, hybridized)."
    )
    p.add_argument("--trainer", choices=("gluon", "torch"), default="gluon", help="framework")
    net = p.add_argument_group("network")
    net.add_argument("--symbol", type=Path, help="symbol.json for --trainer torch, without MXNet")
    net.add_argument("--model", default="icnet", help="icnet")
    net.add_argument("--backbone", default="resnet50", help="resnet18/34/50/101/152")
    net.add_argument("--width", type=float, default=1.0, help="channel multiplier, e.g. 0.5")
    net.add_argument("--syncbn", action="store_true", help="batch norm over all devices")
    net.add_argument("--aux", action="store_true", help="auxiliary head (ICNet always has two)")
    net.add_argument("--aux-weight", type=float, default=0.4, help="weight of auxiliary losses")
    data = p.add_argument_group("data")
    data.add_argument("--dataset", default="camvid")
    data.add_argument("--root", type=Path, help="default ~/.mxnet/datasets/<dataset>")
    data.add_argument("--base-size", type=int, default=520, help="long edge before scaling")
    data.add_argument("--crop-size", type=parse_size, default=(480, 480), metavar="N|HxW")
    data.add_argument("--scale-range", type=parse_floats, default=(0.5, 2.0), metavar="LO,HI")
    data.add_argument("--color-jitter", type=float, default=0.0)
    data.add_argument("--synthetic-share", type=float, default=0.0, help="of every epoch")
    data.add_argument("--workers", type=int, default=2, help="loader threads")
    run = p.add_argument_group("optimisation")
    run.add_argument("--epochs", type=int, default=50)
    run.add_argument("--batch-size", type=int, default=16)
    run.add_argument("--lr", type=float, default=1e-3)
    run.add_argument("--warmup-epochs", type=float, default=0.0)
    run.add_argument("--head-lr-mult", type=float, default=10.0, help="all but the backbone")
    run.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    run.add_argument("--momentum", type=float, default=0.9)
    run.add_argument("--weight-decay", type=float, default=1e-4)
    run.add_argument("--no-wd", action="store_true", help="none on biases and batch norm")
    run.add_argument("--clip-grad", type=float, default=0.0, help="largest gradient norm; 0: any")
    run.add_argument("--class-balance", type=float, default=0.0, help="power of 1/frequency")
    run.add_argument("--loss-weights", type=parse_floats, help="final,1/8,1/16; default 1,aux,aux")
    run.add_argument("--seed", type=int, default=1)
    device = p.add_argument_group("devices")
    device.add_argument("--ngpus", type=int, default=0)
    device.add_argument("--no-cuda", action="store_true")
    out = p.add_argument_group("run")
    out.add_argument("--checkname", default="default")
    out.add_argument("--save-dir", type=Path, default=Path("runs"))
    out.add_argument("--resume", type=Path, help="a run folder, or a .params file to start from")
    out.add_argument("--no-val", action="store_true")
    out.add_argument("--val-interval", type=int, default=1, help="epochs")
    out.add_argument("--eval", action="store_true", help="only validate")
    out.add_argument("--log-interval", type=int, default=20, help="iterations")
    return p


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Reads the command line; exits with a message on a wrong one."""
    p = parser()
    a = p.parse_args(arguments)
    dataset = canonical_name(a.dataset)
    model = {"psp": "pspnet"}.get(a.model, a.model)
    if len(a.scale_range) != 2 or not 0 < a.scale_range[0] <= a.scale_range[1]:
        p.error("--scale-range takes LOW,HIGH with 0 < LOW <= HIGH")
    weights = a.loss_weights or (1.0, a.aux_weight, a.aux_weight)
    if len(weights) != 3:
        p.error("--loss-weights takes three numbers: final, 1/8, 1/16")
    resume: Path | None = a.resume
    run = a.save_dir / dataset / model / a.checkname
    if resume is not None and resume.is_dir():
        run = resume
    return TrainOptions(
        trainer=a.trainer, symbol=a.symbol, dataset=dataset, model=model,
        backbone=a.backbone, width=a.width, root=a.root,
        height=a.crop_size[0], crop_width=a.crop_size[1], base_size=a.base_size,
        epochs=a.epochs, batch_size=a.batch_size, lr=a.lr, warmup_epochs=a.warmup_epochs,
        head_lr_mult=a.head_lr_mult, momentum=a.momentum, weight_decay=a.weight_decay,
        no_wd=a.no_wd, clip_grad=a.clip_grad, optimizer=a.optimizer, syncbn=a.syncbn,
        ngpus=a.ngpus, no_cuda=a.no_cuda,
        workers=a.workers, seed=a.seed, resume=resume, run=run, no_val=a.no_val,
        eval_only=a.eval, val_interval=a.val_interval, log_interval=a.log_interval,
        scale_range=(a.scale_range[0], a.scale_range[1]), color_jitter=a.color_jitter,
        synthetic_share=a.synthetic_share, class_balance=a.class_balance, loss_weights=weights,
    )  # fmt: skip
