"""API keys: who may call, how often, and how much at a time.

The file has one key a line, ``NAME KEY [requests_per_second=N] [concurrent=N]``; ``#`` starts a
comment. ``KEY`` is the key itself, or ``sha256:`` and its SHA-256 in hexadecimal. Only digests are
kept, and no key is ever part of an error, a log or a metric.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidSetting, KeyLimitExceeded, Unauthenticated
from serving.parsing import read_text

log = logging.getLogger("segserve")

DIGEST = "sha256:"
MIN_KEY_LENGTH = 16
# How old the answer to "has the file changed?" may be.
RELOAD_SECONDS = 1.0


@dataclass(frozen=True)
class ApiKey:
    """One line of the file; a limit of None is none."""

    name: str
    digest: bytes
    requests_per_second: float | None = None
    concurrent: int | None = None


class KeyUse:
    """The use of one key's limits: a token bucket that holds a second's worth.

    Attributes:
        key: its line as the file has it now; open calls continue with new limits.
        is_revoked: the file does not have it any more.
    """

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.key = key
        self.is_revoked = False
        self._clock = clock
        self._running = 0
        self._tokens = self._burst
        self._counted = clock()

    @property
    def running(self) -> int:
        """Calls that have entered and not left."""
        return self._running

    @property
    def _burst(self) -> float:
        return max(1.0, self.key.requests_per_second or 0.0)

    def enter(self) -> None:
        """Begins a call; :meth:`leave` ends it.

        Raises:
            KeyLimitExceeded: too many run, or came in the last second.
        """
        limit = self.key.concurrent
        if limit is not None and self._running >= limit:
            raise KeyLimitExceeded(
                f"{self._running} requests of key {self.key.name!r} are being worked on already "
                f"(concurrent in the setting api_keys_file)",
                retry_after_s=1,
                reason="key_limit",
            )
        self.count()
        self._running += 1

    def count(self) -> None:
        """Counts a request; raises KeyLimitExceeded where it is one too many."""
        rate = self.key.requests_per_second
        if rate is None:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * rate)
        self._counted = now
        if self._tokens < 1.0:
            raise KeyLimitExceeded(
                f"key {self.key.name!r} may send {rate:g} requests per second "
                f"(requests_per_second in the setting api_keys_file)",
                retry_after_s=(1.0 - self._tokens) / rate,
                reason="key_limit",
            )
        self._tokens -= 1.0

    def leave(self) -> None:
        """Ends a call that entered."""
        self._running -= 1


class KeyRing:
    """The keys of ``api_keys_file``, read again when the file changes.

    A file that is broken after a change is logged, and the keys before it stay.

    Raises:
        InvalidSetting: the file cannot be read, or a line of it.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._uses: list[KeyUse] = []
        self._looked = clock()
        self._state = self._stat()
        self._read()

    def find(self, presented: str) -> KeyUse:
        """Returns the key that was presented; compares with every one, in constant time.

        Raises:
            Unauthenticated: none was, or it is not in the file.
        """
        self._reload_if_changed()
        if not presented:
            raise Unauthenticated(
                "no API key; send it as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY' "
                "(setting api_keys_file)",
                reason="unauthenticated",
            )
        digests = _digest_presented(presented)
        found = None
        for use in self._uses:
            for digest in digests:
                if hmac.compare_digest(use.key.digest, digest):
                    found = use
        if found is None:
            raise Unauthenticated(
                "unknown API key (setting api_keys_file)", reason="unauthenticated"
            )
        return found

    def check(self, use: KeyUse) -> None:
        """Checks a key that was found before, for a call that continues.

        Raises:
            Unauthenticated: it is not in the file any more.
        """
        self._reload_if_changed()
        if use.is_revoked:
            raise Unauthenticated(
                f"the API key {use.key.name!r} is not valid any more (setting api_keys_file)",
                reason="unauthenticated",
            )

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if now - self._looked < RELOAD_SECONDS:
            return
        self._looked = now
        try:
            state = self._stat()
            if state == self._state:
                return
            self._read()
            self._state = state
            log.info("read %d API keys from %s", len(self._uses), self._path)
        except InvalidSetting as error:
            log.error("the API keys stay as they were: %s", error)

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        try:
            text = read_text(self._path)
        except OSError as error:
            raise self._unreadable(error) from None
        except ValueError as error:
            raise InvalidSetting(f"setting api_keys_file: {error}") from None
        # A key that stays keeps what it has used, whatever its limits are now. A key may have two
        # names: each is one of its own.
        before = {(use.key.name, use.key.digest): use for use in self._uses}
        uses = []
        for key in parse_keys(text, self._path):
            use = before.pop((key.name, key.digest), None) or KeyUse(key, self._clock)
            use.key = key
            uses.append(use)
        for gone in before.values():
            gone.is_revoked = True
        self._uses = uses

    def _unreadable(self, error: OSError) -> InvalidSetting:
        why = error.strerror or error
        return InvalidSetting(f"setting api_keys_file: cannot read {self._path} ({why})")


def parse_keys(text: str, path: Path) -> list[ApiKey]:
    """Returns the keys of a file's text.

    Raises:
        InvalidSetting: the message names the line, never the key; or there is no key.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            key = _parse_key(words)
            if any(key.name == other.name for other in keys):
                raise ValueError(f"there is a key {key.name!r} already")
        except ValueError as error:
            raise InvalidSetting(f"setting api_keys_file: {path}, line {number}: {error}") from None
        keys.append(key)
    if not keys:
        raise InvalidSetting(f"setting api_keys_file: {path} holds no key")
    return keys


def _digest_presented(presented: str) -> list[bytes]:
    """Returns what the digest of a key in the file may be, however its letters were sent.

    HTTP headers are bytes, which were read as latin-1; most clients send UTF-8 in them.
    """
    readings = [presented.encode("utf-8", "surrogateescape")]
    with suppress(UnicodeEncodeError):
        readings.append(presented.encode("latin-1"))
    return [hashlib.sha256(reading).digest() for reading in readings]


def _parse_key(words: list[str]) -> ApiKey:
    if len(words) < 2:
        raise ValueError("expected NAME KEY [requests_per_second=N] [concurrent=N]")
    name, secret = words[:2]
    if secret.startswith(DIGEST):
        digest = _parse_digest(secret.removeprefix(DIGEST))
    elif len(secret) < MIN_KEY_LENGTH:
        raise ValueError(f"the key is shorter than {MIN_KEY_LENGTH} characters")
    else:
        digest = hashlib.sha256(secret.encode()).digest()
    rate: float | None = None
    concurrent: int | None = None
    for word in words[2:]:
        option, _, value = word.partition("=")
        if option == "requests_per_second":
            rate = _parse_positive(option, value)
        elif option == "concurrent":
            concurrent = math.ceil(_parse_positive(option, value))
        else:
            # Not quoted: it could be a part of the key.
            raise ValueError("after the key only requests_per_second=N and concurrent=N may stand")
    return ApiKey(name, digest, rate, concurrent)


def _parse_digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"{DIGEST} must be followed by 64 hexadecimal digits")
    return digest


def _parse_positive(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < 1e9:
        raise ValueError(f"{option} must be a positive number")
    return value
