"""What a server says about a model."""

from __future__ import annotations

from dataclasses import dataclass

from segserve_client.proto import segserve_pb2 as pb

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """A served model.

    Attributes:
        classes: names; the index is the class id.
        palette: one RGB colour (0-255) a class.
        ignore_label: the id of pixels that belong to no class.
        size: height and width of the network's input.
        has_logits: whether ``smooth`` and ``confidence`` can be asked for.
        formats: what ``Client.encode`` can ask for.
    """

    model: str
    version: int
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_label: int
    size: tuple[int, int]
    has_logits: bool
    formats: tuple[str, ...]


def from_response(response: pb.DescribeResponse) -> Description:
    """Reads the message; colours come as 0xRRGGBB."""
    return Description(
        model=response.model,
        version=response.version,
        classes=tuple(entry.name for entry in response.classes),
        palette=tuple(
            (entry.color >> 16 & 255, entry.color >> 8 & 255, entry.color & 255)
            for entry in response.classes
        ),
        ignore_label=response.ignore_label,
        size=(response.height, response.width),
        has_logits=response.has_logits,
        formats=tuple(response.formats),
    )
