"""The folder of files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns ``$SEGSERVE_CACHE_DIR``, else ``~/.cache/segserve``; it need not exist yet."""
    folder = os.environ.get("SEGSERVE_CACHE_DIR")
    return Path(folder) if folder else Path.home() / ".cache" / "segserve"
