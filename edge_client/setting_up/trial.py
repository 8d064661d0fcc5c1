"""Try a configuration before it is written: the drafter's speed here, and the whole path to an answer."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.bench import measure
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.memory import readable
from edge_client.drafters.settings import DeviceSettings

QUESTION = [{"role": "user", "content": "Hello"}]
ANSWER_TOKENS = 12


@dataclass(frozen=True)
class Tried:
    """How a drafter does here. token_ms: None if it cannot be used; then `detail` says why."""

    spec: str
    token_ms: float | None
    memory_bytes: int | None
    detail: str


def try_drafter(spec: str, threads: int) -> Tried:
    """Load it and time single tokens; a few seconds for a model that suits a device."""
    if spec == "none":
        return Tried(spec, None, None, "no drafter: answers stream from the verifier alone")

    def load() -> Drafter:
        loaded = load_drafter(spec, threads=threads, settings=DeviceSettings())
        if loaded is None:
            raise DrafterError(f"{spec!r} names no drafter")
        return loaded

    try:
        figures = measure(load, tokens=16)
    except DrafterError as error:
        return Tried(spec, None, None, str(error))
    token_ms = figures.contexts[0].token_ms
    memory = f", {readable(figures.memory_bytes)} of memory" if figures.memory_bytes else ""
    return Tried(spec, token_ms, figures.memory_bytes, f"{token_ms:.1f} ms per token{memory}")


def best(tried: list[Tried]) -> str:
    """The fastest that can be used; "ngram" if none can, for it costs nothing."""
    usable = [one for one in tried if one.token_ms is not None]
    return min(usable, key=lambda one: one.token_ms or 0.0).spec if usable else "ngram"
