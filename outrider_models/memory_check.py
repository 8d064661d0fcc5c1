"""Will a model fit into this device's memory? Asked before it is loaded, so that nothing has to be killed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from outrider_models.errors import ModelFileError

MIN_CONTEXT_TOKENS = 256  # with less, a drafter forgets what it is about
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
    """Raises ModelFileError if weights and key-value cache together are more than there is. advice: what would fit."""
    available = available_bytes()
    if available is None or weights_bytes + cache_bytes <= available:
        return
    cache = f" and a key-value cache of {readable(cache_bytes)}" if cache_bytes else ""
    raise ModelFileError(
        f"{name} does not fit into memory: it needs about {readable(weights_bytes)} for its weights{cache}, "
        f"and {readable(available)} are free; {advice or 'take a smaller quantization or model, or less context'}"
    )


def fitting_context(
    name: str,
    weights_bytes: int,
    cache_bytes: Callable[[int], int],
    context_tokens: int,
    *,
    limit_bytes: int | None = None,
    fixed: bool = False,
) -> int:
    """The context to open a model with: context_tokens, or as many as fit beside the weights.

    cache_bytes: of the key-value cache, by context. limit_bytes: what the drafter may use of the memory that is free;
    None for all of it. fixed: somebody asked for this very context. Raises ModelFileError, with what would fit, if the
    weights do not fit, or not with MIN_CONTEXT_TOKENS, or not with a fixed context.
    """
    known = [found for found in (available_bytes(), limit_bytes) if found is not None]
    cache = cache_bytes(context_tokens)
    if not known or weights_bytes + cache <= min(known):
        return context_tokens
    room = min(known) - weights_bytes
    fits = int(room * context_tokens / cache) if cache and room > 0 else 0
    fits -= fits % 64
    if fits >= MIN_CONTEXT_TOKENS and not fixed:
        return fits
    free = "allowed" if min(known) == limit_bytes else "free"
    advice = (
        f"{fits} tokens of context would fit" if fits >= MIN_CONTEXT_TOKENS else "take a smaller one or quantization"
    )
    raise ModelFileError(
        f"{name} does not fit into memory: it needs about {readable(weights_bytes)} for its weights and "
        f"{readable(cache)} for {context_tokens} tokens of context, and {readable(min(known))} are {free}; {advice}"
    )


def parse_bytes(text: str) -> int:
    """A size as people write it: 800MB, 1.5 GB, 512MiB, or a number of bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no size; write for example 800MB or 1.5GB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmg".index(unit.lower() or " "))


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
