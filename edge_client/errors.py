"""What a session can end with instead of an answer."""

from __future__ import annotations

import contextlib

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


class SessionError(Exception):
    """The verifier refused, failed, or could not be reached.

    code: name of the gRPC status code. reason: stable upper-snake-case word for programs, empty if the verifier gave
    none. The text is a sentence for people.
    """

    def __init__(self, code: str, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.reason = code, reason

    @classmethod
    def from_rpc(cls, error: grpc.aio.AioRpcError) -> SessionError:
        """From what gRPC raised, with the reason out of its rich status."""
        reason = ""
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin" and isinstance(value, bytes):
                info = error_details_pb2.ErrorInfo()
                with contextlib.suppress(DecodeError):  # whoever answered is no verifier; the code and its words remain
                    for detail in status_pb2.Status.FromString(value).details:
                        if detail.Unpack(info):
                            reason = info.reason
        return cls(error.code().name, reason, error.details() or error.code().name.lower().replace("_", " "))


def closed() -> SessionError:
    """The client was closed."""
    return SessionError("CANCELLED", "CLOSED", "this client was closed; make another one")


def unreachable(verifier: str, detail: str) -> SessionError:
    """The verifier does not answer."""
    return SessionError(
        "UNAVAILABLE",
        "UNREACHABLE",
        f"the verifier at {verifier} cannot be reached ({detail}); check that it runs and that the address is right",
    )


def left() -> SessionError:
    """The device cancelled the answer, and the verifier could not be asked how far it was."""
    return SessionError("CANCELLED", "LEFT", "the answer was cancelled while the link to the verifier was down")
