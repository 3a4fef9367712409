"""What the CPU can do that decides on forms of int8."""

from __future__ import annotations

from pathlib import Path

_VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True where the CPU adds products of 8 bits in 32; False also where that is not known."""
    try:
        text = cpuinfo.read_text("utf-8", "replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _VNNI.isdisjoint(flags.split())
