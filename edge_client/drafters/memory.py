"""Will a model fit into this device's memory? Asked before it is loaded, so that nothing has to be killed."""

from __future__ import annotations

import os
from pathlib import Path

from edge_client.drafters.base import DrafterError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory that a new allocation could have now, within the container's limit; None where nobody tells."""
    known = [found for found in (_meminfo(), _container()) if found is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(name: str, weights_bytes: int, cache_bytes: int, advice: str = "") -> None:
    """Raises DrafterError if weights and key-value cache together are more than there is. advice: what would fit."""
    available = available_bytes()
    if available is None or weights_bytes + cache_bytes <= available:
        return
    cache = f" and a key-value cache of {readable(cache_bytes)}" if cache_bytes else ""
    raise DrafterError(
        f"{name} does not fit into memory: it needs about {readable(weights_bytes)} for its weights{cache}, "
        f"and {readable(available)} are free; {advice or 'take a smaller quantization or model, or less context'}"
    )


def readable(size_bytes: int) -> str:
    """Decimal units, as file listings have them."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _meminfo() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container() -> int | None:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no cgroup, or "max"
        return None
