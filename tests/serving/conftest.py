"""A server on free loopback ports, with an engine whose answers follow from the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.band_model import Served, serve_bands, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server a test module."""
    with serve_bands(tmp_path_factory.mktemp("repository")) as served:
        yield served
