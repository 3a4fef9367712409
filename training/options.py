"""What a training run was told: flags (``flags.py``), a recipe and a saved run put together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from training.datasets import canonical_name
from training.flags import parser
from training.recipe import read_recipe
from training.runs.checkpoint import RunFolder
from training.runs.saved_options import Json, check_resumable, use_as_defaults

IDLE_GPU = "a GPU is here, and training is on the CPU: --ngpus 1 takes it, --no-cuda says not to"


@dataclass(frozen=True)
class TrainOptions:
    """One training run; sizes in pixels."""

    trainer: str
    symbol: Path | None
    dataset: str
    model: str
    backbone: str
    width: float
    aux: bool
    output_stride: int
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
    rotation: float
    aspect: float
    blur: float
    class_crops: float
    synthetic_share: float
    class_balance: float
    class_weights: tuple[float, ...]
    loss_weights: tuple[float, ...]
    ohem: float
    ohem_share: float
    schedule: str
    lr_steps: tuple[float, ...]
    lr_factor: tuple[float, ...]
    short_size: int
    freeze_bn: bool
    freeze: tuple[str, ...]
    loss_scale: float
    finetune: Path | None
    dtype: str
    accumulate: int
    ema: float
    compile: bool
    on_nan: str
    max_skips: int
    checkpoint_minutes: float

    @property
    def pixels(self) -> Pixels:
        """What the network sees: ImageNet's normalisation, or its own."""
        return pixels_of(self.model, self.backbone)


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Reads the command line; exits with a message on a wrong one.

    Where ``--resume`` names a run's folder, its options are the defaults. Warns of flags with which
    the run does not end as it would have.
    """
    p = parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    recipe = _first_value(arguments, "--recipe")
    if recipe is not None:
        try:
            # In front of the others: what is given explicitly comes later and wins.
            arguments = [*read_recipe(recipe).arguments(), *arguments]
        except ValueError as error:
            p.error(str(error))
    pretrained = None
    name = _first_value(arguments, "--pretrained")
    if name is not None:
        try:
            # Reading weights takes packages that most trainings do not need.
            from export.weights.zoo import resolve

            pretrained = resolve(name)
            arguments = [*pretrained.flags(), *arguments]
        except ValueError as error:
            p.error(str(error))
    named: Path | None = p.parse_args(arguments).resume
    saved: Mapping[str, Json] | None = None
    if named is not None and named.is_dir():
        try:
            saved = use_as_defaults(p, named)
        except ValueError as error:
            p.error(str(error))
        if recipe is not None:
            p.error("--recipe starts a run, --resume RUN goes on with one: give one of them")
    a = p.parse_args(arguments)
    if pretrained is not None:
        if a.resume is not None or a.finetune is not None:
            p.error("--pretrained names the weights: leave out --resume and --finetune")
        if a.eval:
            a.resume = pretrained.params
        else:
            a.finetune = pretrained.params
    dataset = canonical_name(a.dataset)
    if dataset not in (known := known_datasets()):
        p.error(f"unknown --dataset {a.dataset}; known: {', '.join(known)}")
    model = MODEL_ALIASES.get(a.model, a.model)
    if model not in NETWORKS:
        p.error(f"unknown --model {a.model}; known: {', '.join(NETWORKS)}")
    if len(a.scale_range) != 2 or not 0 < a.scale_range[0] <= a.scale_range[1]:
        p.error("--scale-range takes LOW,HIGH with 0 < LOW <= HIGH")
    weights, losses = a.loss_weights, count_losses(model, a.aux)
    # A resumed run has loss weights already, and no default for the auxiliary one.
    if weights == p.get_default("loss_weights") and a.aux_weight is not None:
        weights = (1.0, *(a.aux_weight,) * (losses - 1))
    if a.legacy_loss_weights:
        if a.loss_weights is not None and saved is None:
            p.error("give --loss-weights or --legacy-loss-weights, not both")
        weights = legacy_loss_weights(model, losses)
    if (a.schedule == "step") != bool(a.lr_steps):
        p.error("--schedule step needs --lr-steps EPOCH,..., and no other schedule has them")
    if len(a.lr_factor) not in (1, len(a.lr_steps)):
        p.error("--lr-factor takes one number, or one for each of --lr-steps")
    if a.freeze_bn and a.syncbn:
        p.error("--freeze-bn has no statistics that --syncbn could take over all devices")
    if a.class_weights and a.class_balance:
        p.error("give --class-weights or --class-balance, not both (0 switches the latter off)")
    if a.checkpoint_minutes < 0 or a.val_interval < 1 or a.log_interval < 1:
        p.error(
            "--checkpoint-minutes is 0 or more; --val-interval and --log-interval are 1 or more"
        )
    if a.short_size < 0:
        p.error("--short-size is a number of pixels")
    if a.aspect < 0 or not 0 <= a.blur <= 1:
        p.error("--aspect is 0 or more, --blur a share between 0 and 1")
    # Of a symbol that is given only the trainer knows.
    if a.symbol is None and len(weights) != losses:
        p.error(f"--loss-weights takes {losses} numbers for {model}: the prediction's first")
    if a.trainer != "torch":
        for flag, value in (("dtype", a.dtype), ("accumulate", a.accumulate), ("ema", a.ema),
                            ("compile", a.compile), ("symbol", a.symbol),
                            ("loss_scale", a.loss_scale)):  # fmt: skip
            if value != p.get_default(flag):
                p.error(f"--{flag.replace('_', '-')} needs --trainer torch")
    if a.loss_scale and a.dtype != "float16":
        p.error("--loss-scale is of --dtype float16")
    if a.accumulate < 1 or a.batch_size % a.accumulate:
        p.error("--accumulate divides --batch-size into equal parts")
    if not 0 <= a.ema < 1 or not 0 <= a.ohem <= 1 or not 0 < a.ohem_share <= 1:
        p.error("--ema, --ohem and --ohem-share are shares between 0 and 1")
    if saved is None and a.finetune is not None and a.resume is not None:
        p.error("--finetune starts a run, --resume goes on with one: give one of them")
    resume: Path | None = a.resume
    run = a.save_dir / dataset / model / a.checkname
    if saved is not None and resume is not None:
        run = resume
        if RunFolder(run).newest() is None and not a.eval:
            # Killed before its first checkpoint: it starts again as it started then.
            resume = Path(str(saved["resume"])) if saved.get("resume") else None
    options = TrainOptions(
        trainer=a.trainer, symbol=a.symbol, dataset=dataset, model=model,
        backbone=a.backbone or default_backbone(model), width=a.width, aux=a.aux,
        output_stride=a.output_stride, root=a.root,
        height=a.crop_size[0], crop_width=a.crop_size[1], base_size=a.base_size,
        epochs=a.epochs, batch_size=a.batch_size, lr=a.lr, warmup_epochs=a.warmup_epochs,
        head_lr_mult=a.head_lr_mult, momentum=a.momentum, weight_decay=a.weight_decay,
        no_wd=a.no_wd, clip_grad=a.clip_grad, optimizer=a.optimizer, syncbn=a.syncbn,
        ngpus=a.ngpus, no_cuda=a.no_cuda,
        workers=a.workers, seed=a.seed, resume=resume, run=run, no_val=a.no_val,
        eval_only=a.eval, val_interval=a.val_interval, log_interval=a.log_interval,
        scale_range=(a.scale_range[0], a.scale_range[1]), color_jitter=a.color_jitter,
        rotation=a.rotation, aspect=a.aspect, blur=a.blur,
        class_crops=a.class_crops, ohem=a.ohem, ohem_share=a.ohem_share,
        schedule=a.schedule, lr_steps=a.lr_steps, lr_factor=a.lr_factor, short_size=a.short_size,
        freeze_bn=a.freeze_bn, freeze=a.freeze, loss_scale=a.loss_scale, finetune=a.finetune,
        dtype=a.dtype, accumulate=a.accumulate, ema=a.ema, compile=a.compile,
        on_nan=a.on_nan, max_skips=a.max_skips, checkpoint_minutes=a.checkpoint_minutes,
        synthetic_share=a.synthetic_share, class_balance=a.class_balance,
        class_weights=a.class_weights, loss_weights=weights,
    )  # fmt: skip
    if saved is not None and not a.eval:
        try:
            check_resumable(saved, asdict(options), run)
        except ValueError as error:
            p.error(str(error))
    return options


def _first_value(arguments: list[str], flag: str) -> str | None:
    """The value of a flag that decides on others' defaults, before those are read."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(flag, dest="value")
    value: str | None = first.parse_known_args(arguments)[0].value
    return value
