"""What a session can end with instead of an answer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from edge_client.types import RequestOutput

FAILURES = ("ENGINE_FAILED", "VERIFIER_FAULT")  # reasons of a verifier that failed on one session; others may go well


class SessionError(Exception):
    """The verifier refused, failed, or could not be reached.

    code: name of the gRPC status code. reason: stable upper-snake-case word for programs, empty if the verifier gave
    none. retry_after_s: when the verifier thinks that trying again makes sense. so_far: what had come of the answer, to
    go on from (`EdgeClient.generate(..., continues=...)`); None if it never began. The text is a sentence for people.
    """

    so_far: RequestOutput | None = None

    def __init__(self, code: str, reason: str, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.code, self.reason, self.retry_after_s = code, reason, retry_after_s

    @classmethod
    def from_rpc(cls, error: grpc.aio.AioRpcError) -> SessionError:
        """From what gRPC raised, with what its rich status tells."""
        reason, retry_after_s = "", None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin" and isinstance(value, bytes):
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                with contextlib.suppress(DecodeError):  # whoever answered is no verifier; the code and its words remain
                    for detail in status_pb2.Status.FromString(value).details:
                        if detail.Unpack(info):
                            reason = info.reason
                        elif detail.Unpack(retry):
                            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        sentence = error.details() or error.code().name.lower().replace("_", " ")
        return cls(error.code().name, reason, sentence, retry_after_s)


def closed() -> SessionError:
    """The client was closed."""
    return SessionError("CANCELLED", "CLOSED", "this client was closed; make another one")


def unreachable(verifier: str, detail: str) -> SessionError:
    """The verifier does not answer."""
    said = detail.rpartition(": ")[2].strip() or detail  # gRPC puts where it happened before what happened
    hung_up = any(words in detail for words in ("Socket closed", "Connection reset", "GOAWAY"))
    hint = "; it hung up, as one does that serves TLS only, or asks devices for a certificate" if hung_up else ""
    return SessionError(
        "UNAVAILABLE",
        "UNREACHABLE",
        f"the verifier at {verifier} cannot be reached ({said}); check that it runs and that the address is "
        f"right{hint}",
    )


def prompt_changed() -> SessionError:
    """The verifier would go on with an answer under another prompt."""
    return SessionError(
        "FAILED_PRECONDITION",
        "PROMPT_CHANGED",
        "the verifier turns the prompt into other tokens than when this answer began, and would go on with other "
        "words; ask again from the beginning",
    )


def gave_up(error: SessionError, times: int, tokens: int, seed: int) -> SessionError:
    """The verifier failed on an answer again and again."""
    return SessionError(
        error.code,
        error.reason,
        f"the verifier failed {times} times on this answer, at last after {tokens} tokens: {error}. What has come "
        f"stands; once the verifier is mended, seed {seed} gives the same words again",
        error.retry_after_s,
    )


def left() -> SessionError:
    """The device cancelled the answer, and the verifier could not be asked how far it was."""
    return SessionError("CANCELLED", "LEFT", "the answer was cancelled while the link to the verifier was down")
