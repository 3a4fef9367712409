"""A server on free loopback ports, with an engine whose answers follow from the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from band_model import MODEL_SIZE, Served, free_ports, serve_fake, write_model

from serving.testing import FakeEngine, ServerThread


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server a test module."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    with ServerThread(free_ports(folder), serve_fake(engine)) as server:
        yield Served(server, engine)
