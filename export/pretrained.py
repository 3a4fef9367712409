"""``--pretrained``: published weights in place of ``--model``, ``--backbone`` and ``--params``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.symbol_lookup import NetworkName
from training.backbones import default_backbone


@dataclass(frozen=True)
class NamedNetwork:
    """What the options name, or published weights bring."""

    model: str | None
    backbone: str | None
    width: float
    aux: bool
    output_stride: int | None
    dataset: str | None
    params: Path | None

    @property
    def network(self) -> NetworkName:
        """To look the symbol up by. Raises ExportError where nothing was named."""
        if self.model is None:
            raise ExportError("name the network with --model, or give its --symbol")
        backbone = self.backbone or default_backbone(self.model)
        return NetworkName(
            self.model, backbone, self.width, self.dataset, self.aux, self.output_stride
        )


def name_network(pretrained: str | None, told: NamedNetwork) -> NamedNetwork:
    """``told``, or what ``pretrained`` brings; of that only the dataset may be told otherwise.

    Raises ExportError.
    """
    if pretrained is None:
        return told
    if told.model or told.backbone or told.params or told.width != 1:
        raise ExportError(
            "--pretrained brings its network and weights: leave out --model, --backbone, --width"
            " and --params"
        )
    # Fetching weights needs packages that exporting does not.
    from training.weights.zoo import resolve

    try:
        found = resolve(pretrained)
    except ValueError as error:
        raise ExportError(str(error)) from error
    has_strides = found.model == "deeplabv3plus"
    return NamedNetwork(
        found.model, found.backbone, found.width, found.aux,
        told.output_stride or (found.output_stride if has_strides else None),
        told.dataset or found.dataset, found.params,
    )  # fmt: skip
