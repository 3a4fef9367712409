"""segserve serves semantic segmentation models: an image in, a label map in its own size out.

``Client`` talks to a server, ``export_symbol`` converts a network; each imports what it needs when
it is first used. The command is ``segserve``, or ``python -m segserve``.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segserve_client import Client

    from export.pipeline import ExportRequest, export_symbol

__version__ = version("segserve")
__all__ = ["Client", "ExportRequest", "__version__", "export_symbol"]


def __getattr__(name: str) -> object:
    if name == "Client":
        from segserve_client import Client

        return Client
    if name in ("ExportRequest", "export_symbol"):
        from export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'segserve' has no attribute {name!r}")
