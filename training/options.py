"""The options of a training run, each declared once: as a field of ``TrainOptions`` with its flag.

Names and defaults are those of GluonCV's script (scripts/segmentation/train.py) where it has them.
A recipe, pretrained weights and the run that ``--resume`` names give other defaults.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from export.datasets import known_datasets
from export.symbols.networks import (
    MODEL_ALIASES,
    NETWORKS,
    Pixels,
    count_losses,
    default_backbone,
    legacy_loss_weights,
    pixels_of,
)
from training.class_weights import parse_class_weights
from training.datasets import KNOWN, canonical_name
from training.flags import add_flags, flag, flagged, parse_floats, parse_size
from training.parameters import parse_freeze
from training.recipe import read_recipe, recipe_names
from training.runs.checkpoint import RunFolder
from training.runs.saved_options import Json, check_resumable, read_defaults
from training.schedules import SCHEDULE_NAMES

IDLE_GPU = "a GPU is available, but training runs on the CPU: add --ngpus 1 or --no-cuda"


def parse_loss_scale(text: str) -> float:
    """Returns a positive number, or 0 for ``dynamic``."""
    try:
        scale = 0.0 if text == "dynamic" else float(text)
    except ValueError:
        scale = -1.0
    if scale < 0 or (scale == 0 and text != "dynamic"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a positive number nor dynamic: expected for example 1024"
        )
    return scale


_main = partial(flag, "options")
_network = partial(flag, "network")
_data = partial(flag, "data")
_optimisation = partial(flag, "optimisation")
_torch = partial(flag, "only with --trainer torch")
_devices = partial(flag, "devices")
_run = partial(flag, "run")


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run; sizes in pixels.

    The fields without a flag follow from others: ``height`` and ``crop_width`` from --crop-size,
    ``run`` from --save-dir, --checkname, dataset and model.
    """

    trainer: str = _main("gluon", "framework that trains", choices=("gluon", "torch"))

    symbol: Path | None = _network(
        None, "network as a symbol.json file, for --trainer torch without MXNet"
    )
    model: str = _network("icnet", f"one of {', '.join(NETWORKS)}")
    backbone: str = _network(
        None, "resnet18/34/50/101/152 or xception65; default: the one the model is published with"
    )
    width: float = _network(1.0, "channel multiplier, for example 0.5")
    syncbn: bool = _network(False, "compute batch norm statistics over all devices")
    freeze_bn: bool = _network(
        False, "keep the batch norms' statistics, scale and shift at their starting values"
    )
    freeze: tuple[str, ...] = _network(
        (), "do not train the backbone's first N parts (1: its stem), or parameters whose names "
        "start with NAME; their batch norms keep their statistics",
        parse=parse_freeze, metavar="N|NAME,...",
    )  # fmt: skip
    output_stride: int = _network(16, "output stride of deeplabv3plus", choices=(8, 16))
    aux: bool = _network(False, "add an auxiliary head (ICNet always has two)")

    dataset: str = _data("camvid", f"one of {', '.join(KNOWN)}")
    root: Path | None = _data(None, "folder of the dataset; default: ~/.mxnet/datasets/<dataset>")
    base_size: int = _data(520, "long edge of images before random scaling")
    short_size: int = _data(0, "short edge before random scaling; replaces --base-size")
    height: int = 480
    crop_width: int = 480
    scale_range: tuple[float, float] = _data(
        (0.5, 2.0), "range of random scales", parse=parse_floats, metavar="LO,HI"
    )
    color_jitter: float = _data(0.0, "strength of random gain, contrast and brightness, 0 to 1")
    rotation: float = _data(0.0, "largest random rotation in degrees")
    aspect: float = _data(
        0.0, "largest difference between the scales of rows and columns; 0: one scale for both"
    )
    blur: float = _data(0.5, "share of crops that are blurred")
    class_crops: float = _data(0.0, "share of crops centred on a randomly chosen class")
    synthetic_share: float = _data(0.0, "share of each epoch that is synthetic")
    workers: int = _data(2, "number of threads that load images")

    epochs: int = _optimisation(50, "number of epochs")
    batch_size: int = _optimisation(16, "images per step, over all devices")
    lr: float = _optimisation(1e-3, "base learning rate")
    schedule: str = _optimisation("poly", "learning rate schedule", choices=SCHEDULE_NAMES)
    lr_steps: tuple[float, ...] = _optimisation(
        (), "epochs at which --schedule step multiplies the learning rate",
        parse=parse_floats, metavar="EPOCH,...",
    )  # fmt: skip
    lr_factor: tuple[float, ...] = _optimisation(
        (0.1,), "factor of --lr-steps: one for all steps, or one for each",
        parse=parse_floats, metavar="F[,...]",
    )  # fmt: skip
    warmup_epochs: float = _optimisation(0.0, "epochs of linear warm-up")
    head_lr_mult: float = _optimisation(
        10.0, "learning rate multiplier of everything but the backbone"
    )
    optimizer: str = _optimisation("sgd", "update rule", choices=("sgd", "adam"))
    momentum: float = _optimisation(0.9, "momentum of sgd")
    weight_decay: float = _optimisation(1e-4, "weight decay")
    no_wd: bool = _optimisation(False, "no weight decay on biases and batch norms")
    clip_grad: float = _optimisation(0.0, "largest gradient norm; 0: no limit")
    class_balance: float = _optimisation(
        0.0, "weigh classes by (median frequency / frequency) to this power; 0: all alike"
    )
    class_weights: tuple[float, ...] = _optimisation(
        (), "loss weight of each class's pixels, as a list or a file of numbers",
        parse=parse_class_weights, metavar="W,...|FILE",
    )  # fmt: skip
    loss_weights: tuple[float, ...] = _optimisation(
        None, "loss weights of the prediction and the auxiliary heads; default: 1, then "
        "--aux-weight for each", parse=parse_floats, metavar="W,...",
    )  # fmt: skip
    ohem: float = _optimisation(
        0.0, "OHEM: ignore pixels whose true class already has more than this probability; 0: off",
        metavar="P",
    )  # fmt: skip
    ohem_share: float = _optimisation(0.0625, "OHEM: keep at least this share of the pixels")
    seed: int = _optimisation(1, "seed of everything random")

    dtype: str = _torch(
        "float32", "precision of autocast", choices=("float32", "bfloat16", "float16")
    )
    loss_scale: float = _torch(
        0.0, "loss scale of --dtype float16; default: dynamic",
        parse=parse_loss_scale, metavar="N|dynamic",
    )  # fmt: skip
    accumulate: int = _torch(1, "number of parts that each batch is split into")
    ema: float = _torch(0.0, "decay of averaged weights, for example 0.999; 0: no averaging")
    compile: bool = _torch(False, "use torch.compile; the first steps are slow")

    ngpus: int = _devices(0, "number of GPUs; 0: train on the CPU")
    no_cuda: bool = _devices(False, "train on the CPU even if there are GPUs")

    run: Path = Path("runs")
    resume: Path | None = _run(None, "a run folder to continue, or a .params file to start from")
    finetune: Path | None = _run(
        None, "a .params file to start from; arrays of other shapes are initialized again"
    )
    no_val: bool = _run(False, "do not validate")
    val_interval: int = _run(1, "epochs between validations")
    eval_only: bool = _run(False, "only validate", name="--eval")
    log_interval: int = _run(20, "iterations between log lines")
    checkpoint_minutes: float = _run(
        10.0, "minutes between checkpoints within an epoch, besides the one at its end; 0: none"
    )
    on_nan: str = _run(
        "stop", "what to do if loss or gradients are not finite; such a step is never taken",
        choices=("stop", "skip"),
    )  # fmt: skip
    max_skips: int = _run(10, "consecutive skipped steps that --on-nan skip allows")

    @property
    def pixels(self) -> Pixels:
        """Returns the normalisation that the network expects: ImageNet's, or its own."""
        return pixels_of(self.model, self.backbone)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``train.py``: with a flag for each option, and more."""
    p = argparse.ArgumentParser(
        "train.py", description="Trains a segmentation network, with MXNet Gluon or PyTorch."
    )
    groups = add_flags(p, TrainOptions)
    p.add_argument(
        "--recipe", help=f"defaults of a published training: {', '.join(recipe_names())}"
    )
    groups["network"].add_argument(
        "--aux-weight", type=float, default=0.4, help="loss weight of the auxiliary heads"
    )
    groups["data"].add_argument(
        "--crop-size", type=parse_size, default=(480, 480), metavar="N|HxW",
        help="size of the crops that the network is trained on",
    )  # fmt: skip
    groups["optimisation"].add_argument(
        "--legacy-loss-weights", action="store_true",
        help="reproduce GluonCV's effective loss weights (it ignores the configured ones): 1 per "
        "output, 2 for ICNet's main output",
    )  # fmt: skip
    run = groups["run"]
    run.add_argument("--save-dir", type=Path, default=Path("runs"), help="folder of all runs")
    run.add_argument("--checkname", default="default", help="name of the run in --save-dir")
    run.add_argument(
        "--pretrained", metavar="NAME",
        help="weights and network of GluonCV's zoo (for example icnet_resnet50_citys) or of a "
        "folder of segserve import-weights: to fine-tune, or with --eval to score",
    )  # fmt: skip
    return p


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Returns the options of a command line; exits with a message if it is wrong.

    If ``--resume`` names a run's folder, the run's options are the defaults. Warns about flags that
    make the run end differently.
    """
    p = make_parser()
    try:
        return _parse(p, sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        p.error(str(error))


def _parse(p: argparse.ArgumentParser, arguments: list[str]) -> TrainOptions:
    recipe = _first_value(arguments, "--recipe")
    if recipe is not None:
        # In front of the others: what is given explicitly comes later and wins.
        arguments = [*read_recipe(recipe).arguments(), *arguments]
    pretrained = None
    name = _first_value(arguments, "--pretrained")
    if name is not None:
        # Reading weights takes packages that most trainings do not need.
        from export.weights.zoo import resolve

        pretrained = resolve(name)
        arguments = [*pretrained.flags(), *arguments]
    named: Path | None = p.parse_args(arguments).resume
    saved: Mapping[str, Json] | None = None
    if named is not None and named.is_dir():
        saved, defaults = read_defaults(named, flagged(TrainOptions))
        p.set_defaults(**defaults)
        if recipe is not None:
            raise ValueError("--recipe starts a run, --resume RUN continues one: give one of them")
    a = p.parse_args(arguments)
    if pretrained is not None:
        if a.resume is not None or a.finetune is not None:
            raise ValueError("--pretrained names the weights: leave out --resume and --finetune")
        setattr(a, "resume" if a.eval_only else "finetune", pretrained.params)
    a.dataset = canonical_name(a.dataset)
    if a.dataset not in (known := known_datasets()):
        raise ValueError(f"unknown --dataset {a.dataset}; known: {', '.join(known)}")
    a.model = MODEL_ALIASES.get(a.model, a.model)
    if a.model not in NETWORKS:
        raise ValueError(f"unknown --model {a.model}; known: {', '.join(NETWORKS)}")
    a.loss_weights = _choose_loss_weights(p, a, resumed=saved is not None)
    _check(a)
    _check_trainer(p, a)
    if saved is None and a.finetune is not None and a.resume is not None:
        raise ValueError("--finetune starts a run, --resume continues one: give one of them")
    a.backbone = a.backbone or default_backbone(a.model)
    a.height, a.crop_width = a.crop_size
    a.run = a.save_dir / a.dataset / a.model / a.checkname
    if saved is not None and a.resume is not None:
        a.run = a.resume
        if RunFolder(a.run).newest() is None and not a.eval_only:
            # Killed before its first checkpoint: it starts again as it started then.
            a.resume = Path(str(saved["resume"])) if saved.get("resume") else None
    options = TrainOptions(**{o.name: getattr(a, o.name) for o in fields(TrainOptions)})
    if saved is not None and not a.eval_only:
        check_resumable(saved, asdict(options), a.run)
    return options


def _choose_loss_weights(
    p: argparse.ArgumentParser, a: argparse.Namespace, resumed: bool
) -> tuple[float, ...]:
    given: tuple[float, ...] | None = a.loss_weights
    losses = count_losses(a.model, a.aux)
    if a.legacy_loss_weights:
        if given is not None and not resumed:
            raise ValueError("give --loss-weights or --legacy-loss-weights, not both")
        return legacy_loss_weights(a.model, losses)
    # A resumed run has loss weights already, and no default for the auxiliary one.
    if given is None or (given == p.get_default("loss_weights") and a.aux_weight is not None):
        given = (1.0, *(a.aux_weight,) * (losses - 1))
    # The number of losses of a given symbol is known to the trainer alone.
    if a.symbol is None and len(given) != losses:
        raise ValueError(
            f"--loss-weights takes {losses} numbers for {a.model}: the prediction's first"
        )
    return given


def _check(a: argparse.Namespace) -> None:
    """Raises ValueError for values that are out of range or exclude each other."""
    low_high = a.scale_range
    for wrong, message in (
        (
            len(low_high) != 2 or not 0 < low_high[0] <= low_high[1],
            "--scale-range takes LOW,HIGH with 0 < LOW <= HIGH",
        ),
        (
            (a.schedule == "step") != bool(a.lr_steps),
            "--schedule step needs --lr-steps EPOCH,..., and no other schedule has them",
        ),
        (
            len(a.lr_factor) not in (1, len(a.lr_steps)),
            "--lr-factor takes one number, or one for each of --lr-steps",
        ),
        (
            a.freeze_bn and a.syncbn,
            "--freeze-bn and --syncbn exclude each other: frozen batch norms compute no statistics",
        ),
        (
            bool(a.class_weights and a.class_balance),
            "give --class-weights or --class-balance, not both (0 switches the latter off)",
        ),
        (
            a.checkpoint_minutes < 0 or a.val_interval < 1 or a.log_interval < 1,
            "--checkpoint-minutes is 0 or more; --val-interval and --log-interval are 1 or more",
        ),
        (a.short_size < 0, "--short-size is a number of pixels, 0 or more"),
        (
            a.aspect < 0 or not 0 <= a.blur <= 1,
            "--aspect is 0 or more, --blur a share between 0 and 1",
        ),
        (
            a.accumulate < 1 or a.batch_size % max(1, a.accumulate),
            "--accumulate must divide --batch-size into equal parts",
        ),
        (
            not 0 <= a.ema < 1 or not 0 <= a.ohem <= 1 or not 0 < a.ohem_share <= 1,
            "--ema, --ohem and --ohem-share are shares between 0 and 1",
        ),
    ):
        if wrong:
            raise ValueError(message)


def _check_trainer(p: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    for name in ("dtype", "accumulate", "ema", "compile", "symbol", "loss_scale"):
        if a.trainer != "torch" and getattr(a, name) != p.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} needs --trainer torch")
    if a.loss_scale and a.dtype != "float16":
        raise ValueError("--loss-scale needs --dtype float16")


def _first_value(arguments: list[str], flag: str) -> str | None:
    """Returns the value of a flag that changes others' defaults, before those are read."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(flag, dest="value")
    value: str | None = first.parse_known_args(arguments)[0].value
    return value
