"""CRC-32C (Castagnoli), and the masked form that TensorFlow and LevelDB store.

Source: RFC 3720, appendix B.4; LevelDB util/crc32c.h for the mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.jit import compiled

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8


def _make_table() -> npt.NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


_TABLE = _make_table()


@compiled
def _update(
    data: npt.NDArray[np.uint8], table: npt.NDArray[np.uint32], crc: np.uint32
) -> np.uint32:
    for index in range(data.size):
        crc = table[(crc ^ data[index]) & 0xFF] ^ (crc >> 8)
    return crc


def crc32c(data: memoryview | bytes) -> int:
    """Of all bytes."""
    values = np.frombuffer(data, np.uint8)
    return int(_update(values, _TABLE, np.uint32(0xFFFFFFFF))) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """As it is stored beside data that may hold checksums itself."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF
