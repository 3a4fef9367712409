"""Sends a video, or a folder of frames, as one stream; label maps arrive in the frames' order.

Usage: python stream.py VIDEO_OR_FOLDER OUT [MODEL] [SERVER]; needs segserve-client, and
opencv-python for videos.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from segserve_client import Client, SegserveError

source, out = Path(sys.argv[1]), Path(sys.argv[2])
model = sys.argv[3] if len(sys.argv) > 3 else "icnet"
server = sys.argv[4] if len(sys.argv) > 4 else "localhost:8001"


def read_frames() -> Iterator[Path | npt.NDArray[np.uint8]]:
    if source.is_dir():
        yield from sorted(path for path in source.iterdir() if path.is_file())
        return
    import cv2

    video = cv2.VideoCapture(str(source))
    while True:
        found, frame = video.read()
        if not found:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # RGB


out.mkdir(parents=True, exist_ok=True)
with Client(server, model) as client:
    for index, answer in enumerate(client.segment_stream(read_frames())):
        if isinstance(answer, SegserveError):
            print(f"frame {index}: {answer}", file=sys.stderr)
            continue
        answer.save(out / f"{index:06d}.png")
print(f"wrote label maps to {out}")
