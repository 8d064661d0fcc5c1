"""What a device is told of an error: all of it must get through."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from google.rpc import status_pb2
from grpc import StatusCode

from cloud_verifier.errors import VerifierError

METADATA_BYTES = 8192  # of gRPC, without a setting
ENTRY_BYTES = 32  # counted for every entry by HTTP/2


@pytest.mark.parametrize("letter", ["!", "%", "é", "世", "😀", "\ud800"])
def test_a_status_that_quotes_a_prompt_fits_into_metadata(letter: str) -> None:
    error = VerifierError(StatusCode.INVALID_ARGUMENT, "PROMPT", f"no letters for {letter * 10_000}")
    ((name, details),) = error.trailing_metadata()
    in_base64 = len(details) * 4 // 3
    assert len(name) + in_base64 + len(quote(error.sentence)) + 3 * ENTRY_BYTES < METADATA_BYTES // 1.5
    assert error.sentence.startswith("no letters for ")
    assert error.sentence.endswith("...")
    assert status_pb2.Status.FromString(details).message == error.sentence == str(error)


def test_a_sentence_that_fits_is_told_whole() -> None:
    error = VerifierError(StatusCode.NOT_FOUND, "MODEL", "no 世 here")
    assert error.sentence == str(error) == "no 世 here"
