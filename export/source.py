"""Which network is exported: told by name, or brought by ``--pretrained``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from export.errors import ExportError
from export.options import refuse_given
from export.progress import show_bytes
from export.symbols.find import NetworkName
from export.symbols.networks import MODEL_ALIASES, NETWORKS, WITH_AUXILIARY, default_backbone
from export.weights.zoo import resolve

WITH_STRIDES = "deeplabv3plus"


@dataclass(frozen=True)
class NamedNetwork:
    """What the options name, or published weights bring; None was not given."""

    model: str | None
    backbone: str | None
    width: float | None
    aux: bool | None
    output_stride: int | None
    dataset: str | None
    params: Path | None

    @property
    def network(self) -> NetworkName:
        """To look the symbol up by. Raises ExportError where nothing was named."""
        if self.model is None:
            raise ExportError("name the network with --model, or give its --symbol")
        return NetworkName(
            self.model,
            self.backbone or default_backbone(self.model),
            1.0 if self.width is None else self.width,
            self.dataset,
            bool(self.aux),
            self.output_stride,
        )


def name_network(
    pretrained: str | None, symbol: Path | None, told: NamedNetwork, console: Console
) -> NamedNetwork:
    """``told``, or what ``pretrained`` brings; of that only the dataset may be told otherwise.

    Raises ExportError, also for options that the network leaves no room for.
    """
    form = {"--width": told.width, "--aux": told.aux, "--output-stride": told.output_stride}
    if pretrained is not None:
        reason = f"--pretrained {pretrained} brings its network and weights"
        refuse_given(
            reason,
            {"--model": told.model, "--backbone": told.backbone, **form, "--params": told.params},
        )
    elif symbol is not None:
        refuse_given(f"--symbol {symbol} is the network as it is", form)
    else:
        _check_form(told)
    if pretrained is None:
        return told
    with show_bytes(console, f"weights {pretrained}") as on_bytes:
        found = resolve(pretrained, on_bytes)
    return NamedNetwork(
        found.model, found.backbone, found.width, found.aux,
        found.output_stride if found.model == WITH_STRIDES else None,
        told.dataset or found.dataset, found.params,
    )  # fmt: skip


def _check_form(told: NamedNetwork) -> None:
    """Raises ExportError for what the named network, one of ours, does not have."""
    model = MODEL_ALIASES.get(told.model or "", told.model)
    if model not in NETWORKS:
        return
    if model != WITH_STRIDES:
        refuse_given(
            f"{model} has one output stride, {WITH_STRIDES} alone has several",
            {"--output-stride": told.output_stride},
        )
    if model not in WITH_AUXILIARY:
        refuse_given(
            f"{model} has no auxiliary head ({', '.join(WITH_AUXILIARY)} have one)",
            {"--aux": told.aux or None},
        )
