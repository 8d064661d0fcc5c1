"""Logs without anybody's words: an exception may quote the prompt, so logs say which one it was and where it arose."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

FRAMES = 4


def log_failure(log: logging.Logger, sentence: str, error: BaseException, level: int = logging.ERROR) -> None:
    """What failed, without the exception's own words; these are for who turns on DEBUG."""
    log.log(level, "%s: %s", sentence, without_words(error))
    log.debug("%s", sentence, exc_info=error)


def without_words(error: BaseException) -> str:
    """The exception's type and the innermost places in the code."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in reversed(frames))
    cause = error.__cause__
    return f"{type(error).__name__} at {where or 'an unknown place'}" + (
        f", of {without_words(cause)}" if cause else ""
    )
