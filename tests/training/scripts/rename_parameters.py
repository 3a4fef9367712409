"""``rename_parameters.py SAVED OUTPUT``: a network's ``save_parameters`` file, renamed by the
command."""

from __future__ import annotations

import sys

from export.mxnet_import import mx
from training.networks import build, tracing

ARGUMENTS = ["--model", "fcn", "--backbone", "resnet18", "--width", "0.25", "--num-classes", "7",
             "--size", "64x96"]  # fmt: skip


def main() -> None:
    network = build("fcn", "resnet18", 7, 64, 96, channel_multiplier=0.25)
    network.initialize()
    network.head.block[4].bias.set_data(mx.nd.arange(7))
    network.save_parameters(sys.argv[1])
    sys.argv[1:] = [*ARGUMENTS, "--params", sys.argv[1], "--output", sys.argv[2]]
    tracing.main()


if __name__ == "__main__":
    main()
