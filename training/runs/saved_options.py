"""Saved options: those of a run folder are the defaults of the command that resumes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from training.runs.checkpoint import RunFolder, format_json

# With another value the saved weights or optimizer states would not fit.
FIXED = (
    "trainer", "model", "backbone", "width", "aux", "output_stride", "dataset", "height",
    "crop_width", "optimizer", "dtype", "finetune", "freeze_bn", "freeze",
)  # fmt: skip
# These change neither what is learnt nor in which order.
FREE = (
    "symbol", "root", "workers", "log_interval", "val_interval", "no_val", "eval_only", "resume",
    "run", "on_nan", "max_skips", "checkpoint_minutes",
)  # fmt: skip
# Each command sets these itself.
OF_ONE_START = ("eval_only", "resume")

Json = bool | int | float | str | list[float] | list[str] | None


def read_options(folder: Path) -> Mapping[str, Json]:
    """Returns ``options.json`` of a run.

    Raises:
        ValueError: not a run's folder.
    """
    path = RunFolder(folder).options
    try:
        saved: dict[str, Json] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is not a run folder ({error}); to start from weights, give the .params file"
        ) from error
    return saved


def read_defaults(
    folder: Path, flags: Collection[str]
) -> tuple[Mapping[str, Json], Mapping[str, object]]:
    """Returns a run's options as they are saved, and as defaults of the flags that resume it.

    An option that the run did not know is in neither. ``flags`` are the options that have one.
    """
    saved = read_options(folder)
    defaults: dict[str, object] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in flags and name not in OF_ONE_START
    }
    if {"height", "crop_width"} <= set(saved):
        defaults["crop_size"] = (saved["height"], saved["crop_width"])
    symbol = RunFolder(folder).symbol
    if saved.get("trainer") == "torch" and symbol.is_file():
        # The very graph that was trained; MXNet is not needed again.
        defaults["symbol"] = symbol
    if "loss_weights" in defaults:
        # They hold it already; only a flag that is given changes them.
        defaults["aux_weight"] = None
    return saved, defaults


def check_resumable(saved: Mapping[str, Json], options: Mapping[str, object], folder: Path) -> None:
    """Warns about options that make the run end differently.

    Raises:
        ValueError: an option with which it cannot be resumed at all.
    """
    given: Mapping[str, Json] = json.loads(format_json(options))
    changed = [name for name in given if name in saved and given[name] != saved[name]]
    changes = {name: f"{name} {given[name]} instead of {saved[name]}" for name in changed}
    fixed = [changes[name] for name in changed if name in FIXED or _switched(name, saved, given)]
    if fixed:
        raise ValueError(
            f"{folder} cannot be resumed with {', '.join(fixed)}; leave the flag out, or start a "
            f"new run from {RunFolder(folder).last}"
        )
    other = [changes[name] for name in changed if name not in FREE]
    if other:
        warnings.warn(
            f"resuming {folder} with {', '.join(other)}: results will differ from the original run",
            stacklevel=3,
        )


def _switched(name: str, saved: Mapping[str, Json], given: Mapping[str, Json]) -> bool:
    """Returns whether averaging was switched: averaged weights are part of the optimizer's states,
    or not.
    """
    return name == "ema" and bool(saved[name]) != bool(given[name])
