"""Draft from this user's past answers: what an assistant said once, it often says again (He et al., REST, 2311.08252;
Oliaro et al., suffix decoding, 2411.04975).

An answer is written to the store when it is complete and read back meanwhile; a session uses what was there when it
began, so that its candidates depend on nothing but the sequence.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge_client.drafters.base import DrafterError
from edge_client.drafters.lookup.history_store import HistoryStore
from edge_client.drafters.lookup.lookup import LookupDrafter
from edge_client.drafters.lookup.suffix_array import SuffixArray
from speculation.lookup import Match

_CONTEXT_TOKENS = 1 << 20


class _Read(NamedTuple):
    """Past answers, ready for a session, and what a person should know about them."""

    answers: SuffixArray
    notices: tuple[str, ...]


class HistoryDrafter(LookupDrafter):
    """Looks the sequence's last tokens up in past answers. store: where they are kept; default this user's own."""

    def __init__(
        self,
        store: HistoryStore | None = None,
        *,
        threads: int = 1,
        top_candidates: int = 16,
        context_tokens: int | None = None,
    ) -> None:
        super().__init__(
            "history",
            threads=threads,
            top_candidates=top_candidates,
            context_tokens=_CONTEXT_TOKENS if context_tokens is None else context_tokens,
        )
        self._store = store or HistoryStore()
        self._fingerprint: str | None = None
        self._answers = SuffixArray([])
        self._read = _Read(self._answers, ())
        self._reading: threading.Thread | None = None
        self._unwritable = False  # when it last had something to keep

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        super().adopt_vocabulary(fingerprint, size)
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._start_reading(fingerprint, size)
        if self._reading is None:
            return ()
        self._reading.join()
        self._reading = None
        self._answers, self._candidates = self._read.answers, None
        return self._read.notices

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        """Raises DrafterError if the answer cannot be kept; of many in a row, for the first."""
        if self._fingerprint is None or len(log) <= prompt_tokens:
            return
        known, self._unwritable = self._unwritable, True
        try:
            self._store.add(self._fingerprint, log[prompt_tokens:])
        except OSError as error:
            if known:
                return
            raise DrafterError(
                f"answers cannot be kept in {self._store.folder} ({error.strerror or error}), so the history drafter "
                "does not learn from them until they can; answers themselves are whole"
            ) from error
        self._unwritable = False
        self._start_reading(self._fingerprint, self.info.vocabulary_size)

    def _start_reading(self, fingerprint: str, size: int) -> None:
        """Sorting takes some tens of milliseconds, which are better spent between two sessions."""

        def read() -> None:
            loaded = self._store.load(fingerprint)
            usable = [answer for answer in loaded.answers if answer and max(answer) < size]
            self._read = _Read(SuffixArray(usable), loaded.notices)

        if self._reading is not None:
            self._reading.join()
        self._reading = threading.Thread(target=read, name="outrider-history", daemon=True)
        self._reading.start()

    def _matches(self) -> Iterator[Match]:
        return self._answers.matches(self._tokens)
