"""The target's vocabulary on the device: asked for once, checked against its fingerprint, kept in the user's cache.

What comes over the wire is not trusted: its size is bounded while it arrives, and it must have the fingerprint that the
verifier itself told. A cached file is checked in the same way, and simply asked for again if it is damaged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import platformdirs
from google.protobuf.message import DecodeError
from outrider.v1 import verifier_pb2 as pb

from edge_client.link.channel import Channel
from outrider_models.user_files import replace_file
from speculation.vocabulary.vocabulary import MOST_TOKENS, Vocabulary

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
MOST_FILES = 16
_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{64})")
_SUFFIX = ".2.vocabulary"  # its number is to change with what is kept


class VocabularyError(ValueError):
    """A vocabulary that is not what it claims to be. The message says what is wrong."""


class VocabularyCache:
    """folder: default the platform's folder for this user's cache."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or platformdirs.user_cache_path("outrider") / "vocabularies"

    def get(self, channel: Channel, info: pb.GetModelInfoResponse) -> Vocabulary:
        """The vocabulary of the model that `info` tells of. Raises SessionError and VocabularyError."""
        named = _FINGERPRINT.fullmatch(info.vocabulary_fingerprint)
        file = self.folder / (named[1] + _SUFFIX) if named else None
        if file is not None and (cached := _read(file, info.vocabulary_fingerprint)) is not None:
            return cached
        message = channel.vocabulary(info.model, _collect)
        vocabulary = _checked(message, info.vocabulary_fingerprint)
        if file is not None:
            try:
                replace_file(file, message.SerializeToString())
                self._forget_old(file)
            except OSError as error:
                log.warning("the target's vocabulary cannot be kept in %s: %s", file, error)
        return vocabulary

    def _forget_old(self, new: Path) -> None:
        """Keep the files that were written last. Raises OSError."""
        files = sorted(self.folder.glob("*.vocabulary"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST_FILES]:
            if file != new:
                file.unlink(missing_ok=True)


async def _collect(pieces: AsyncIterator[Any]) -> pb.GetVocabularyResponse:
    """All pieces as one. Raises VocabularyError as soon as they are too many or do not fit together."""
    whole = pb.GetVocabularyResponse()
    size = 0
    async for piece in pieces:
        if piece.start != len(whole.tokens):
            raise VocabularyError(f"a piece of it begins at token {piece.start} instead of {len(whole.tokens)}")
        size += piece.ByteSize()
        if size > MOST_BYTES or len(whole.tokens) + len(piece.tokens) > MOST_TOKENS:
            raise VocabularyError(f"it has more than {MOST_TOKENS} tokens or {MOST_BYTES >> 20} MiB")
        whole.tokens.extend(piece.tokens)
        whole.special_ids.extend(piece.special_ids)
        whole.added_ids.extend(piece.added_ids)
    return whole


def _checked(message: pb.GetVocabularyResponse, fingerprint: str) -> Vocabulary:
    strings = tuple(token.decode("utf-8", "surrogateescape") for token in message.tokens)
    special, added = (frozenset(i for i in ids if i < len(strings)) for ids in (message.special_ids, message.added_ids))
    vocabulary = Vocabulary(strings, special, added=added - special)
    if vocabulary.fingerprint != fingerprint:
        raise VocabularyError("its fingerprint is not the one that the verifier told")
    return vocabulary


def _read(file: Path, fingerprint: str) -> Vocabulary | None:
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        return _checked(pb.GetVocabularyResponse.FromString(content), fingerprint)
    except (OSError, DecodeError, VocabularyError):
        return None
