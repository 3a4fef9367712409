"""Measures how many images a second the loader makes, and how long training steps wait for them.

``python -m benchmarks.studies.loader --dataset camvid --root ROOT --workers 1,2,4 --prefetch 1,4``.
A step is a pause of ``--step-ms`` without work on the CPU, as when a GPU trains: a trainer on the
CPU takes cores from the loader and waits longer.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from export.symbols.networks import IMAGENET
from training.datasets import dataset_labels, open_dataset
from training.flags import parse_floats, parse_size
from training.loader import Batch, Loader, Mixture
from training.runs.environment import read_environment
from training.transforms import Augmentation


@dataclass(frozen=True)
class LoaderTiming:
    """The figures of one loader.

    Attributes:
        images_per_second: made when every batch is taken at once.
        waiting: share (0-1) of the time that steps of a given length wait for their batch.
    """

    workers: int
    prefetch: int
    images_per_second: float
    waiting: float

    def line(self) -> str:
        """Returns a row of the table."""
        return (
            f"| {self.workers} | {self.prefetch} | {self.images_per_second:.1f} "
            f"| {100 * self.waiting:.0f} % |"
        )


def measure(loader: Loader, batches: int, step_seconds: float) -> LoaderTiming:
    """Takes ``batches`` batches as fast as they come, then as many with pauses.

    Each time, those that were made ahead are taken first.
    """
    stream = _warm(loader)
    start = time.perf_counter()
    images = sum(len(next(stream).names) for _ in range(batches))
    rate = images / (time.perf_counter() - start)
    stream.close()
    stream = _warm(loader)
    waited, start = 0.0, time.perf_counter()
    for _ in range(batches):
        time.sleep(step_seconds)
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
    share = waited / (time.perf_counter() - start)
    stream.close()
    return LoaderTiming(loader.workers, loader.prefetch, rate, share)


def _warm(loader: Loader) -> Generator[Batch, None, None]:
    stream = _batches(loader)
    for _ in range(loader.prefetch + 1):
        next(stream)
    return stream


def _batches(loader: Loader) -> Generator[Batch, None, None]:
    """Yields one epoch after the other; a generator, so that it can be closed."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def main(
    dataset: Annotated[str, typer.Option(help="Dataset, as for train.py.")] = "synthetic",
    root: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    crop_size: Annotated[str, typer.Option(help="Size of crops, HEIGHTxWIDTH.")] = "352x480",
    base_size: Annotated[int, typer.Option(help="Long edge before scaling.")] = 480,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a batch.")] = 8,
    workers: Annotated[
        str, typer.Option(help="Numbers of worker threads, comma-separated.")
    ] = "1,2,4",
    prefetch: Annotated[
        str, typer.Option(help="Numbers of batches made ahead, comma-separated.")
    ] = "1,4",
    step_ms: Annotated[float, typer.Option(min=0, help="Length of a training step in ms.")] = 250.0,
    batches: Annotated[int, typer.Option(min=1, help="Batches of each measurement.")] = 20,
) -> None:
    """Prints a row for each number of workers and of batches ahead."""
    samples = open_dataset(dataset, "train", root)
    classes = len(dataset_labels(dataset, root).names)
    here = read_environment()
    typer.echo(
        f"{dataset}, crops of {crop_size}, batches of {batch_size}, steps of {step_ms:g} ms; "
        f"{here.cpu}, {here.cores} cores\n"
    )
    typer.echo("| workers | prefetch | images/s | step waits |")
    typer.echo("|---|---|---|---|")
    for count in parse_floats(workers):
        for ahead in parse_floats(prefetch):
            loader = Loader(
                Mixture(samples, None, 0.0),
                Augmentation(*parse_size(crop_size), base_size),
                num_classes=classes,
                batch_size=batch_size,
                workers=int(count),
                seed=1,
                pixels=IMAGENET,
                prefetch=int(ahead),
            )
            typer.echo(measure(loader, batches, step_ms / 1000).line())


if __name__ == "__main__":
    typer.run(main)
