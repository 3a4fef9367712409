"""Measures what decoding outside the server's process costs: latency, CPU time, throughput.

    python -m benchmarks.studies.decoders photo.jpg

Both ways are measured in one run, turn by turn, so that other work on the machine affects both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.contest.processes import read_cpu_seconds
from benchmarks.machine import read_machine
from serving.imaging.decode import check_still, decode, read_still
from serving.imaging.decoder_pool import DecoderPool, Decoding
from serving.settings import Settings

Decode = Callable[[bytes], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="+", help="images to decode")
    parser.add_argument("--rounds", type=int, default=200, help="images to decode one by one")
    parser.add_argument("--bursts", type=int, default=12, help="bursts of concurrent images")
    options = parser.parse_args()
    settings = Settings()
    pool = DecoderPool(settings, lambda reason: print(f"a decoder was replaced: {reason}"))
    pool.start()
    pool.wait_ready()

    def outside(data: bytes) -> object:
        still = read_still(data)
        check_still(still, settings.max_image_megapixels)
        return pool.decode(still, Decoding())

    def inside(data: bytes) -> object:
        return decode(data, max_megapixels=settings.max_image_megapixels)

    try:
        photos = [path.read_bytes() for path in options.photo]
        print(read_machine().line())
        ways: dict[str, Decode] = {"in process": inside, "in decoder processes": outside}
        for name, numbers in one_by_one(ways, photos, options.rounds).items():
            print(f"{name:22} {numbers}")
        for name, numbers in at_a_time(ways, photos, options.bursts, pool.size).items():
            print(f"{name:22} {numbers}")
    finally:
        pool.close()


def one_by_one(ways: dict[str, Decode], photos: list[bytes], rounds: int) -> dict[str, str]:
    """Returns latency and CPU time of single images: medians, and the quartiles of latency."""
    latency: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, float] = dict.fromkeys(ways, 0.0)
    for k in range(rounds + 10):
        for name, way in ways.items():
            before, start = read_cpu_seconds(os.getpid()), time.perf_counter()
            way(photos[k % len(photos)])
            seconds = time.perf_counter() - start
            if k >= 10:  # The first ones find caches and buffers cold.
                latency[name].append(seconds * 1e3)
                spent[name] += read_cpu_seconds(os.getpid()) - before
    found = {}
    for name, values in latency.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = (
            f"{middle:6.2f} ms ({low:.2f} to {high:.2f}), best {min(values):.2f} ms,"
            f" {spent[name] / rounds * 1e3:.2f} ms of CPU time"
        )
    return found


def at_a_time(
    ways: dict[str, Decode], photos: list[bytes], bursts: int, width: int
) -> dict[str, str]:
    """Returns images a second with ``width`` threads: median, lowest and highest of the bursts."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with ThreadPoolExecutor(width) as threads:
        for _ in range(bursts):
            for name, way in ways.items():
                work = [photos[k % len(photos)] for k in range(30 * width)]
                start = time.perf_counter()
                # What is decoded is let go of at once.
                list(threads.map(lambda data, way=way: way(data) is None, work))
                rates[name].append(len(work) / (time.perf_counter() - start))
    return {
        name: f"{statistics.median(values):6.1f} images/s ({min(values):.1f} to {max(values):.1f})"
        for name, values in rates.items()
    }


if __name__ == "__main__":
    main()
