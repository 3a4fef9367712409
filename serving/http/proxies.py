"""Who a request comes from where proxies stand in front: the setting ``trusted_proxies``.

Anybody can write ``X-Forwarded-For``. It is read from the right, as each proxy adds the address it
was asked from at the end, and believed only as far as those that wrote it are trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address
MAX_HOPS = 32


class TrustedProxies:
    """Finds the client's own address and scheme behind the proxies that are trusted.

    Args:
        networks: addresses or networks, as ``10.0.0.0/8`` or ``::1``.

    Raises:
        ValueError: one of them is neither.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ip_network(network) for network in networks)

    def trusts(self, host: str) -> bool:
        """Returns whether a peer of that address may say for whom it asks."""
        if not self._networks:
            return False
        address = parse_address(host)
        return address is not None and self._contains(address)

    def find_client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Returns the address of the last hop that is not trusted; the peer's where it is not.

        An entry that is not an address ends the search at the proxy that passed it on.
        """
        if not self.trusts(peer):
            return peer
        values = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        client = peer
        for entry in reversed(values.split(b",")[-MAX_HOPS:]):
            address = parse_address(entry.decode("latin-1"))
            if address is None:
                break
            client = str(address)
            if not self._contains(address):
                break
        return client

    def find_scheme(self, peer: str, scheme: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Returns what the client speaks: ``X-Forwarded-Proto`` where a trusted proxy says so."""
        if self.trusts(peer):
            for name, value in reversed(headers):
                if name == b"x-forwarded-proto":
                    last = value.rpartition(b",")[2].strip().lower()
                    return last.decode("ascii") if last in (b"http", b"https") else scheme
        return scheme

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> Address | None:
    """Returns an address written alone, in brackets, or with a port; None for anything else.

    IPv4 inside IPv6 (``::ffff:192.0.2.1``, what a socket of both sees) is IPv4.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
