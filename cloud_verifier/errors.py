"""Errors that a device is told about: a status code, a machine-readable reason and a sentence."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

DOMAIN = "outrider"
# A sentence may quote what was sent. gRPC drops a status whose metadata exceed 8 kB (at random, up to 16), and the
# sentence is in it twice, once with three characters for a byte.
SENTENCE_BYTES = 1024
CUT = "..."


class VerifierError(Exception):
    """Ends a stream with a status.

    reason: upper snake case, stable, for programs (google.rpc.ErrorInfo). The sentence says what was wrong, what was
    expected and what to do. retry_after_s: when trying again makes sense (google.rpc.RetryInfo). resumable: whether the
    session stays open for the device to resume.
    """

    def __init__(
        self,
        code: StatusCode,
        reason: str,
        sentence: str,
        *,
        retry_after_s: float | None = None,
        resumable: bool = False,
    ) -> None:
        sentence = _cut(sentence)
        super().__init__(sentence)
        self.code, self.reason, self.sentence = code, reason, sentence
        self.retry_after_s, self.resumable = retry_after_s, resumable

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The rich status, as every gRPC library knows how to read it."""
        details: list[any_pb2.Any] = [_packed(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))]
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        status = status_pb2.Status(code=self.code.value[0], message=self.sentence, details=details)
        return (("grpc-status-details-bin", status.SerializeToString()),)


def _cut(sentence: str) -> str:
    whole = sentence.encode("utf-8", "replace")
    if len(whole) <= SENTENCE_BYTES:
        return whole.decode()
    return whole[: SENTENCE_BYTES - len(CUT)].decode("utf-8", "ignore") + CUT


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped


def invalid(reason: str, sentence: str) -> VerifierError:
    """The request can never be right as it is."""
    return VerifierError(StatusCode.INVALID_ARGUMENT, reason, sentence)


async def refuse(context: Any, error: VerifierError) -> None:
    """End a call with this error."""
    await context.abort(error.code, error.sentence, error.trailing_metadata())
