"""Raw streams: what a device that does not use our client may send, message by message."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from edge_client.errors import SessionError
from edge_client.link.security import Security
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.mock_engine import answer

DEADLINE_S = 120  # generous: only a test that would fail anyway waits for it
PROMPT = (5, 6, 7)
SEED = 9


class Refusal(NamedTuple):
    """How a stream ended."""

    code: str
    reason: str
    sentence: str


def opening(**fields: Any) -> pb.Open:
    """An Open that is right but for the given fields; a field of None is left out."""
    whole: dict[str, Any] = {"protocol_version": 1, "seed": SEED}
    if not fields.keys() & {"text", "chat", "prompt_ids", "resume"}:
        whole["prompt_ids"] = pb.TokenIds(ids=PROMPT)
    whole |= fields
    return pb.Open(**{name: value for name, value in whole.items() if value is not None})


class Stream:
    """One Generate stream over a connection of its own."""

    def __init__(
        self,
        address: str,
        open_request: pb.Open | None = None,
        options: Sequence[tuple[str, Any]] = (),
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str = "",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._requests: queue.SimpleQueue[pb.GenerateRequest | None] = queue.SimpleQueue()
        # A local pool: or else two streams of one test share a connection, and what breaks one breaks the other.
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        self._channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials is not None
            else grpc.insecure_channel(address, options)
        )
        stub = pb_grpc.VerifierServiceStub(self._channel)
        self._call: Any = stub.Generate(
            iter(self._requests.get, None),
            metadata=Security(api_key=api_key).metadata,
            timeout=deadline_s,
            wait_for_ready=True,
        )
        if open_request is not None:
            self.send(open=open_request)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def send(self, **message: Any) -> None:
        self.send_message(pb.GenerateRequest(**message))

    def send_message(self, message: pb.GenerateRequest) -> None:
        self._requests.put(message)

    def draft(self, start: int, tokens: Sequence[int], known_length: int, **more: Any) -> None:
        self.send(draft=pb.Draft(start=start, tokens=tokens, known_length=known_length, **more))

    def half_close(self) -> None:
        self._requests.put(None)

    def cut(self) -> None:
        """Drop the connection, as a device does that goes out of reach."""
        self._requests.put(None)
        self._channel.close()

    def read(self) -> pb.GenerateResponse:
        response: pb.GenerateResponse = next(self._call)
        return response

    def opened(self) -> pb.Opened:
        response = self.read()
        assert response.WhichOneof("message") == "opened", response
        return response.opened

    def tokens(self, count: int) -> list[int]:
        """Read commits until there are `count` tokens or more."""
        tokens: list[int] = []
        while len(tokens) < count:
            response = self.read()
            assert response.WhichOneof("message") in ("commit", "pong"), response
            tokens += response.commit.tokens
        return tokens

    def until_the_end(self) -> tuple[list[int], Refusal]:
        """The tokens that still come, and how the stream ends; a refusal of empty strings if it ends well."""
        tokens: list[int] = []
        try:
            for response in self._call:
                tokens += response.commit.tokens
        except grpc.RpcError as error:
            said = SessionError.from_rpc(cast(Any, error))
            return tokens, Refusal(said.code, said.reason, str(said))
        return tokens, Refusal("", "", "")

    def rest(self) -> Rest:
        """Read to the end."""
        rest = Rest([], [], [], pb.Finished(), [])
        for response in self._call:
            kind = response.WhichOneof("message")
            if kind == "commit":
                rest.commits.append(response.commit)
                rest.tokens.extend(response.commit.tokens)
                rest.texts.append(response.commit.text)
            elif kind == "pong":
                rest.pongs.append(response.pong.echo_sent_at_us)
            elif kind == "finished":
                rest.finished.CopyFrom(response.finished)
                rest.texts.append(response.finished.text)
        return rest

    def refusal(self) -> Refusal:
        """Read to the end, which must be an error."""
        return self.refused(self._call)

    @staticmethod
    def refused(call: Any) -> Refusal:
        """How any call ended, which must be an error."""
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            said = SessionError.from_rpc(cast(Any, error))
            return Refusal(said.code, said.reason, str(said))
        raise AssertionError("the stream ended well")

    def trailers(self) -> Sequence[tuple[str, bytes]]:
        return tuple(self._call.trailing_metadata())


class Rest(NamedTuple):
    """What came until a stream's end."""

    tokens: list[int]
    texts: list[str]
    commits: list[pb.Commit]
    finished: pb.Finished
    pongs: list[int]

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Bystander:
    """A healthy session beside an attack: it waits for its device in mid-answer, so it lives through it."""

    def __init__(self, address: str) -> None:
        self._stream = Stream(
            address, opening(sampling=pb.SamplingParams(max_tokens=24), patience_ms=PATIENCE_UNLIMITED_MS)
        )
        self._stream.opened()
        self._words = self._stream.tokens(1)

    def finish(self) -> None:
        """Go on to the end; the words must be the right ones."""
        right = answer(PROMPT, SEED, 24)
        known = len(PROMPT) + len(self._words)
        self._stream.draft(known, right[len(self._words) : 12], known)
        self._stream.half_close()
        self._words += self._stream.rest().tokens
        assert self._words == right
        self._stream.cut()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another thread or the other side will do."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)
