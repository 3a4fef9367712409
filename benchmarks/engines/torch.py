"""Runs a network's symbol on PyTorch, operator by operator, as the trainer executes it.

Normalisation and, for ``mask``, resize and argmax run on the device as well: pixels go in as bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks.engines.graphs import network_at
from benchmarks.engines.subject import Case, EngineMissing
from export.passes.build import cut_at_logits, prune_heads
from export.symbols.networks import IMAGENET
from training.trainers.symbol_module import SymbolModule

_TYPES = {"fp32": torch.float32, "fp16": torch.float16}


class TorchSubject:
    """A network with random weights on PyTorch; channels last, batch norms not folded.

    Raises EngineMissing for another precision than fp32 and fp16.
    """

    def __init__(self, case: Case) -> None:
        if case.precision not in _TYPES:
            raise EngineMissing(f"--engine torch runs {', '.join(_TYPES)}, not {case.precision}")
        if case.network is None:
            raise EngineMissing("--engine torch executes symbols; leave --served out")
        self.on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if self.on_gpu else "cpu")
        torch.set_num_threads(case.threads)
        symbol, weights = network_at(case.network, case.classes, case.height, case.width)
        cut = cut_at_logits(prune_heads(symbol), case.height, case.width)
        self._type = _TYPES[case.precision]
        module = SymbolModule(cut.graph, weights).eval().to(device, self._type)
        # PyTorch's types lack the overload of a module.
        self._module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor([255 * m for m in IMAGENET.mean], device=device)
        self._scale = torch.tensor([1 / (255 * s) for s in IMAGENET.std], device=device)
        self._masks = case.output == "mask"
        self._size = (case.height, case.width)
        self._device = device
        here = torch.from_numpy(case.images())
        self._here = here.pin_memory() if self.on_gpu else here
        self._there = self._here.to(device)
        self._replay: torch.cuda.CUDAGraph | None = None
        self._out = self._forward()
        self._result = torch.empty_like(self._out, device="cpu", pin_memory=self.on_gpu)
        if self.on_gpu and case.graphs:
            self._capture()
        place = "" if self._masks else f" at {cut.height}x{cut.width}"
        kind = str(self._out.dtype).removeprefix("torch.")
        self.engine = f"torch-{device.type}"
        self.fetched = f"{case.output or 'logits'}{place}, {kind}"
        self.layout = "channels last" + (", CUDA graph" if self._replay else "")
        self.versions = f"PyTorch {torch.__version__}"

    def compute(self) -> None:
        if self._replay is not None:
            self._replay.replay()
        else:
            self._out = self._forward()
        self._synchronise()

    def run(self) -> None:
        self._there.copy_(self._here, non_blocking=True)
        if self._replay is not None:
            self._replay.replay()
        else:
            self._out = self._forward()
        self._result.copy_(self._out, non_blocking=True)
        self._synchronise()

    def close(self) -> None:
        self._replay = None

    @torch.inference_mode()
    def _forward(self) -> Tensor:
        pixels = (self._there.float() - self._mean) * self._scale
        image = pixels.permute(0, 3, 1, 2).to(self._type)
        logits: Tensor = self._module(image)[0]
        if not self._masks:
            return logits
        full = functional.interpolate(
            logits, self._size, mode="bilinear", align_corners=True
        )  # fmt: skip
        return full.argmax(1).to(torch.uint8)

    def _capture(self) -> None:
        """Captures a CUDA graph after three runs on a separate stream, as PyTorch requires."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch's own gap
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._replay = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._replay):
            self._out = self._forward()

    def _synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
