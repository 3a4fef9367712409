"""Attacks on a server in a process of its own: it lives, answers health, keeps no memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attack_server import AttackedServer, attacked_server
from tests.support.attacks import ATTACKS, Attack
from tests.support.body_attacks import BODY_ATTACKS

# Where /proc is absent nothing can be read of the server's memory.
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
# A real stall is there at every try; a machine that does much else delays some.
TRIES = 4
# Above what the server held before: allocators keep some of what is free. A server that keeps what
# an attack sent keeps that of the next one too.
KEPT_SHARE, KEPT_BYTES = 0.10, 8 << 20
REPEATS = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedServer]:
    with attacked_server(tmp_path_factory.mktemp("repository")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*ATTACKS, *BODY_ATTACKS], ids=lambda attack: attack.name)
def test_an_attack_harms_nobody_else(server: AttackedServer, attack: Attack) -> None:
    for _ in range(REPEATS):
        limit = server.resident_bytes * (1 + KEPT_SHARE) + KEPT_BYTES
        send_until_others_are_answered(server, attack)
        kept = server.wait_for_memory(limit)
        if kept <= limit:
            break
    assert kept <= limit


def send_until_others_are_answered(server: AttackedServer, attack: Attack) -> None:
    """Sends the attack until nobody else waited for long, at most ``TRIES`` times."""
    waits = []
    for _ in range(TRIES):
        with server.probe() as wait:
            answer = attack.send(server.http, server.grpc)
        assert answer in attack.allowed
        server.check_answers()
        waits.append(wait)
        if wait.within(attack.longest_wait_s):
            break
    assert waits[-1].within(attack.longest_wait_s), waits
