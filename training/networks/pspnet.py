"""PSPNet: pyramid pooling on a dilated ResNet, at 1/8.

Source: Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105; gluon-cv
model_zoo/pspnet.py, whose parameter names and outputs this network has.
"""

from __future__ import annotations

from training.networks.fcn import STRIDE, DilatedSegmenter
from training.networks.layers import Norm, scale_channels
from training.networks.pyramid import PyramidHead
from training.networks.sizes import SizeRule

SIZES = SizeRule(STRIDE)
HEAD_CHANNELS = 512


class PSPNet(DilatedSegmenter):
    """``[N,3,H,W]`` -> logits ``[N,C,H,W]``, and those of the auxiliary head where ``aux``."""

    def make_head(
        self, num_classes: int, height: int, width: int, norm: Norm, channel_multiplier: float
    ) -> PyramidHead:
        return PyramidHead(
            self.stage_channels[3],
            scale_channels(HEAD_CHANNELS, channel_multiplier),
            height // STRIDE,
            width // STRIDE,
            norm,
            num_classes,
            prefix="head_",
        )
