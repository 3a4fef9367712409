"""One process of an evaluation: its data, its network, and its share of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.palette import LabelSet
from training.datasets import SegmentationDataset, dataset_labels, open_dataset
from training.evaluation.center_crops import CenterCrops
from training.evaluation.scoring import Scores, score
from training.evaluation.sized_networks import SizedNetworks
from training.evaluation.sliding_windows import SlidingWindows
from training.evaluation.trained_model import TrainedModel
from training.evaluation.weights_options import EvaluationOptions

# While a GPU works on one image, threads decode, label and count others.
MAX_THREADS = 4


@dataclass(frozen=True)
class Part:
    """Scores of some images, and the seconds of the network for each of them."""

    scores: Scores
    seconds: tuple[float, ...]


class Evaluator:
    """Scores or labels the images that it is told.

    Args:
        on_gpu: threads prepare images for a GPU; on the CPU they would only take its cores.
    """

    def __init__(self, options: EvaluationOptions, on_gpu: bool) -> None:
        self.options = options
        self.samples = open_samples(options)
        self.labels: LabelSet = dataset_labels(options.run.dataset, options.run.root)
        self.threads = min(MAX_THREADS, max(1, options.run.workers)) if on_gpu else 1
        self.networks = SizedNetworks(options, len(self.labels.names))
        windows, pixels = None, options.run.pixels
        if options.scales:
            windows = SlidingWindows(
                options.crop, options.run.base_size, pixels, options.scales, options.flip
            )
        self.model = TrainedModel(self.networks, pixels, options.size, options.flip, windows)

    def predict(self, index: int, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The label map of an image; ``index`` is for :data:`scoring.Predict`."""
        return self.model.label(image)

    def score(self, indices: Sequence[int]) -> Part:
        """Scores these images.

        Raises:
            training.evaluation.scoring.ScoringError: one that cannot be scored.
        """
        self.model.seconds.clear()
        scores = score(
            self.samples, self.predict, len(self.labels.names), indices, self.threads,
            self.options.boundary_tolerance,
        )  # fmt: skip
        return Part(scores, tuple(self.model.seconds))

    def write(self, indices: Sequence[int], files: Sequence[Path]) -> None:
        """The predictions of these images, an indexed PNG each, in the dataset's colours."""
        for index, file in zip(indices, files, strict=True):
            save_indexed(self.predict(index, self.samples[index][0]), self.labels, file)

    def close(self) -> None:
        self.networks.close()


def open_samples(options: EvaluationOptions) -> SegmentationDataset:
    """The images of ``options.split`` as ``options.mode`` shows them.

    Raises:
        FileNotFoundError: no dataset there.
    """
    samples = open_dataset(options.run.dataset, options.split, options.run.root)
    if options.mode == "val":
        return CenterCrops(samples, options.crop.height, options.crop.width)
    return samples


def save_indexed(ids: npt.NDArray[np.uint8], labels: LabelSet, path: Path) -> None:
    """Class ids as pixel values, the colours in the palette."""
    picture = Image.fromarray(ids)
    picture.putpalette([part for color in labels.colors for part in color])
    picture.save(path)
