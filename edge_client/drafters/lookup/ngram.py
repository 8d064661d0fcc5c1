"""Prompt lookup: what followed these words earlier in the conversation will follow them again.

Costs no evaluation and no memory to speak of. Strong where answers repeat their prompt: edits of code, summaries,
questions about a document, tables (Saxena's prompt lookup decoding; transformers, vLLM and llama.cpp have it as n-gram
drafting).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_client.drafters.lookup.lookup import MAX_MATCH_TOKENS, MAX_MATCHES, MIN_MATCH_TOKENS, LookupDrafter, Match

_CONTEXT_TOKENS = 1 << 20


class NgramDrafter(LookupDrafter):
    """Looks the sequence's last tokens up in the sequence itself; the latest places first.

    An index tells where each pair of tokens stood. Every fed token adds one entry to it and every token rolled back
    takes that entry away again, so that nothing remains of what was only guessed.
    """

    def __init__(self, *, threads: int = 1, top_candidates: int = 16, context_tokens: int | None = None) -> None:
        super().__init__(
            "ngram",
            threads=threads,
            top_candidates=top_candidates,
            context_tokens=_CONTEXT_TOKENS if context_tokens is None else context_tokens,
        )
        self._ends: dict[tuple[int, int], list[int]] = {}  # after which positions a pair ended, ascending

    def _grow(self, tokens: Sequence[int]) -> None:
        held, ends = self._tokens, self._ends
        for token in tokens:
            if held:
                pair = (held[-1], token)
                if (known := ends.get(pair)) is None:
                    ends[pair] = known = []
                known.append(len(held) + 1)
            held.append(token)

    def _shrink(self, length: int) -> None:
        held = self._tokens
        while len(held) > length:
            last = held.pop()
            if held:
                pair = (held[-1], last)
                self._ends[pair].pop()
                if not self._ends[pair]:
                    del self._ends[pair]

    def _matches(self) -> Iterator[Match]:
        held = self._tokens
        here = len(held)
        if here <= MIN_MATCH_TOKENS:
            return
        for end in reversed(self._ends[held[-2], held[-1]][-1 - MAX_MATCHES : -1]):  # the last one is here
            length, limit = MIN_MATCH_TOKENS, min(end, MAX_MATCH_TOKENS)
            while length < limit and held[end - length - 1] == held[here - length - 1]:
                length += 1
            yield Match(length, held[end])
