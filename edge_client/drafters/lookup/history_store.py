"""Past answers on disk: one file per vocabulary, bounded in bytes, readable by its owner alone, erasable.

A file is a magic line, then answers, oldest first: the number of tokens, a CRC-32 of the token bytes, the tokens; all
little-endian 32 bits. It is always written anew beside the old one and put in its place, so a crash leaves one or the
other. A file that is damaged all the same counts as empty, with a notice, and is replaced by the next answer.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs

from outrider_models.user_files import replace_file

DEFAULT_LIMIT_BYTES = 1 << 18  # 65,000 tokens: some hundred answers, sorted in some tens of milliseconds
_MAGIC = b"outrider history 1\n"
_HEAD = struct.Struct("<II")
_ID_BYTES = 4
_SUFFIX = ".history"


class Loaded(NamedTuple):
    """Past answers, oldest first, and what a person should know about them."""

    answers: list[list[int]]
    notices: tuple[str, ...] = ()


class HistoryStore:
    """The answers of one user on one device.

    folder: default the platform's folder for this user's data. limit_bytes: of each file; the oldest answers go first.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder or platformdirs.user_data_path("outrider") / "history"
        self.limit_bytes = limit_bytes

    def load(self, fingerprint: str) -> Loaded:
        """All answers in this vocabulary; none, and a notice, if the file cannot be understood."""
        file = self._file(fingerprint)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return Loaded([])
        except OSError as error:
            return Loaded([], (f"past answers in {file} cannot be read ({error.strerror}): starting without",))
        try:
            return Loaded(_parse(content))
        except ValueError as error:
            return Loaded([], (f"past answers in {file} are damaged ({error}): starting empty",))

    def add(self, fingerprint: str, answer: Sequence[int]) -> None:
        """Append an answer and forget the oldest ones past the limit. Raises OSError if it cannot be written."""
        if not answer:
            return
        records = [_record(known) for known in self.load(fingerprint).answers]
        room_tokens = (self.limit_bytes - len(_MAGIC) - _HEAD.size) // _ID_BYTES
        if room_tokens < 1:
            return
        records.append(_record(answer[-room_tokens:]))
        size, first = len(_MAGIC), len(records)
        while first and size + len(records[first - 1]) <= self.limit_bytes:
            first -= 1
            size += len(records[first])
        replace_file(self._file(fingerprint), b"".join([_MAGIC, *records[first:]]))

    def files(self) -> list[Path]:
        """Every file there is."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def erase(self) -> int:
        """Delete everything; returns how many files that were. Raises OSError."""
        files = self.files()
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def _file(self, fingerprint: str) -> Path:
        return self.folder / (re.sub(r"[^0-9A-Za-z]+", "-", fingerprint)[:80] + _SUFFIX)


def _record(answer: Sequence[int]) -> bytes:
    content = np.array(answer, "<u4").tobytes()
    return _HEAD.pack(len(answer), zlib.crc32(content)) + content


def _parse(content: bytes) -> list[list[int]]:
    """Raises ValueError with what is wrong."""
    if not content.startswith(_MAGIC):
        raise ValueError(f"it does not begin with {_MAGIC!r}")
    answers: list[list[int]] = []
    at = len(_MAGIC)
    while at < len(content):
        if at + _HEAD.size > len(content):
            raise ValueError(f"it ends within the head of answer {len(answers) + 1}")
        count, crc = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        tokens = content[at : at + count * _ID_BYTES]
        if len(tokens) != count * _ID_BYTES or zlib.crc32(tokens) != crc:
            raise ValueError(f"answer {len(answers) + 1} is not what was written")
        at += len(tokens)
        answers.append(np.frombuffer(tokens, "<u4").tolist())
    return answers
