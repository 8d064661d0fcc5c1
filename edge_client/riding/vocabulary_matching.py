"""What a client knows of its drafter and the targets it has met: found out once for each, while answers go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import Drafter
from edge_client.drafters.vocabulary.strategy import Match, match, same_vocabulary
from edge_client.errors import SessionError
from edge_client.link.channel import Channel
from edge_client.riding.vocabulary_cache import VocabularyCache, VocabularyError
from speculation.vocabulary.correspondence import Way

KEPT_MATCHES = 8  # each holds two vocabularies
Ready = Callable[[Match], None]


class VocabularyMatching:
    """Matches one drafter with targets on a thread of its own.

    notices: where the way is told, once for each target. cache: of targets' vocabularies.
    """

    def __init__(
        self, channel: Channel, drafter: Drafter, notices: list[str], cache: VocabularyCache | None = None
    ) -> None:
        self._channel, self._drafter, self._notices = channel, drafter, notices
        self._cache = cache or VocabularyCache()
        self._lock = threading.Lock()
        self._known: dict[str, Match] = {}
        self._waiting: dict[str, list[Ready]] = {}
        self._threads: set[threading.Thread] = set()

    def ask(self, info: pb.GetModelInfoResponse, ready: Ready) -> None:
        """Call `ready` with the match, now or from another thread as soon as it is known."""
        key = info.vocabulary_fingerprint
        with self._lock:
            known = self._known.get(key)
            if known is None:
                first = key not in self._waiting
                self._waiting.setdefault(key, []).append(ready)
                if first:
                    thread = threading.Thread(target=self._find, args=(info,), name="outrider-matching", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:  # the next who asks may have more luck
                        del self._waiting[key]
                        raise
                    self._threads.add(thread)
        if known is not None:
            ready(known)

    def ended(self, timeout_s: float) -> bool:
        """Wait until nothing reads the drafter any more; whether that was in time. Close the channel before."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _find(self, info: pb.GetModelInfoResponse) -> None:
        found, lasting = self._look(info)
        key = info.vocabulary_fingerprint
        with self._lock:
            self._threads.discard(threading.current_thread())
            if lasting:
                self._known[key] = found
                if len(self._known) > KEPT_MATCHES:
                    del self._known[next(iter(self._known))]
                if found.way is not Way.EQUAL and found.sentence not in self._notices:
                    self._notices.append(found.sentence)
            waiting = self._waiting.pop(key)
        for ready in waiting:
            ready(found)

    def find(self, info: pb.GetModelInfoResponse) -> Match:
        """The match, once it is known."""
        return self._look(info)[0]

    def _look(self, info: pb.GetModelInfoResponse) -> tuple[Match, bool]:
        """The match, and whether it is worth remembering: the network may do better next time."""
        try:
            if info.vocabulary_fingerprint == self._drafter.info.vocabulary_fingerprint:
                return same_vocabulary(self._drafter), True  # with nothing to be asked for
            target = self._cache.get(self._channel, info)
            return match(self._drafter, target, info.vocabulary_size), True
        except SessionError as error:
            sentence = f"the drafter's vocabulary is not the target's, which cannot be had from the verifier: {error}"
            return Match(Way.NONE, sentence, None), error.code == "UNIMPLEMENTED"
        except VocabularyError as error:
            sentence = f"the drafter's vocabulary is not the target's, which the verifier tells wrongly: {error}"
            return Match(Way.NONE, sentence, None), True
        except BaseException as error:  # whatever reading a drafter's files does, answers must still come
            sentence = f"the drafter cannot be matched with the target ({type(error).__name__}: {error})"
            return Match(Way.NONE, sentence, None), True
