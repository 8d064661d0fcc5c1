"""What a device hears on one stream, held against what a verifier may say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from google.rpc import error_details_pb2, status_pb2
from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz.callers import Caller
from cloud_verifier.errors import DOMAIN, VerifierError
from cloud_verifier.serving.open_request import Served, prompt_ids
from tests.mock_engine import next_token

DETAILS = "grpc-status-details-bin"
MOST_STATUS_BYTES = 8000  # gRPC drops a status whose metadata are longer
# What a refusal may be: reasons, and the status code of each.
REFUSALS = {
    "ACCEPTANCE_RULE": "INVALID_ARGUMENT",
    "CONFIDENCE": "INVALID_ARGUMENT",
    "PARENTS": "INVALID_ARGUMENT",
    "CONTEXT_FULL": "OUT_OF_RANGE",
    "CONTINUES_PAST_END": "OUT_OF_RANGE",
    "DISABLED": "PERMISSION_DENIED",
    "EMPTY_MESSAGE": "INVALID_ARGUMENT",
    "KEY_REMOVED": "UNAUTHENTICATED",
    "MODEL": "NOT_FOUND",
    "NO_BEARER": "UNAUTHENTICATED",
    "NO_KEY": "UNAUTHENTICATED",
    "NOT_OPEN": "FAILED_PRECONDITION",
    "OBJECTIVE": "INVALID_ARGUMENT",
    "OPENED_TWICE": "INVALID_ARGUMENT",
    "OPEN_PIECE": "INVALID_ARGUMENT",
    "OPEN_TIMEOUT": "DEADLINE_EXCEEDED",
    "PRINCIPAL_QUEUE": "RESOURCE_EXHAUSTED",
    "PRINCIPAL_SESSIONS": "RESOURCE_EXHAUSTED",
    "PRINCIPAL_TOKENS": "RESOURCE_EXHAUSTED",
    "PROMPT": "INVALID_ARGUMENT",
    "PROMPT_CHANGED": "FAILED_PRECONDITION",
    "PROMPT_EMPTY": "INVALID_ARGUMENT",
    "PROMPT_MISSING": "INVALID_ARGUMENT",
    "PROMPT_TOO_LONG": "OUT_OF_RANGE",
    "PROTOCOL_VERSION": "FAILED_PRECONDITION",
    "REPLACED": "ABORTED",
    "SAMPLING": "INVALID_ARGUMENT",
    "SESSION": "NOT_FOUND",
    "SESSIONS": "RESOURCE_EXHAUSTED",
    "SLOW_READER": "ABORTED",
    "TOO_LARGE": "RESOURCE_EXHAUSTED",
    "TOKEN_ID": "INVALID_ARGUMENT",
    "UNDECODABLE": "INVALID_ARGUMENT",
    "UNKNOWN_KEY": "UNAUTHENTICATED",
}
LENGTH_CODES = {"KNOWN_LENGTH": ("ABORTED", "OUT_OF_RANGE")}  # in a draft, in a resume


class Story:
    """How a session's log must read: prompt, what it continues from, and then the target's own words."""

    def __init__(self, prompt: Sequence[int], given: Sequence[int], seed: int) -> None:
        self.prompt_length = len(prompt)
        self._tokens, self._seed = [*prompt, *given], seed

    def reads(self, start: int, end: int) -> list[int]:
        """Tokens from one position to another."""
        while len(self._tokens) < end:
            self._tokens.append(next_token(self._tokens, self._seed))
        return self._tokens[start:end]


class Device:
    """One stream as its device sees it. Whatever must not be is told to `complain`."""

    def __init__(self, served: Served, complain: Callable[[str], None], caller: Caller | None = None) -> None:
        """caller: None where everybody is welcome."""
        self._served, self._complain = served, complain
        self.caller, self._welcome = caller or Caller(), caller is None
        self._opening: pb.Open | None = None
        self._pieces = b""
        self.origin: Device | None = None  # whose session it resumes
        self.story: Story | None = None
        self.session_id = ""
        self.known = 0  # length of the log that it has heard of
        self.finished = False
        self.refusal = ""

    def sent(self, message: bytes) -> None:
        """It sends its first message, maybe in pieces; what that asks for decides what may come back."""
        if self._opening is None:
            try:
                request = pb.GenerateRequest.FromString(message)
                self._pieces += request.open_piece.data
                if request.WhichOneof("message") != "open_piece":
                    self._opening = request.open
                elif request.open_piece.last:
                    self._opening = pb.Open.FromString(self._pieces)
            except Exception:  # no message at all: it must be refused
                self._opening = pb.Open()

    def heard(self, response: pb.GenerateResponse) -> None:
        """A message came."""
        kind = response.WhichOneof("message")
        if self.finished:
            self._complain(f"{kind} after the end")
        elif (kind in ("opened", "open_progress")) == (self.story is not None):
            self._complain(f"{kind} when the stream is {'open' if self.story else 'not open'}")
        elif kind == "opened":
            self._opened(response.opened)
        elif kind == "commit":
            self._commit(response.commit)
        elif kind == "prompt_ids":
            self._prompt_ids(response.prompt_ids)
        elif kind == "finished":
            self.finished = True
            if response.finished.length != self.known:
                self._complain(f"finished at {response.finished.length}, but {self.known} tokens came")

    def _opened(self, opened: pb.Opened) -> None:
        assert self._opening is not None
        self.session_id = opened.session_id
        self._check_welcome(opened)
        if self._opening.HasField("resume"):
            self.story = self.origin.story if self.origin is not None else None
            if self.story is None:
                self._complain("resumed a session that nobody had opened")
                self.story = Story((), (), 0)
            first = self._opening.resume.known_length
        else:
            try:
                prompt = prompt_ids(self._opening, self._served)
            except VerifierError as error:
                self._complain(f"opened a session for what must be refused: {error}")
                prompt = []
            self.story = Story(prompt, self._opening.continue_from, self._opening.seed)
            first = len(prompt) + len(self._opening.continue_from)
        self.known = opened.resumed_at
        if (opened.prompt_length, opened.resumed_at) != (self.story.prompt_length, first):
            self._complain(f"opened at {opened.resumed_at} after {opened.prompt_length} tokens, not at {first}")

    def _prompt_ids(self, piece: pb.PromptIds) -> None:
        assert self.story is not None
        end = piece.start + len(piece.ids)
        if end > self.story.prompt_length or list(piece.ids) != self.story.reads(piece.start, end):
            self._complain(f"other prompt ids from {piece.start}: {list(piece.ids)}")

    def _check_welcome(self, opened: pb.Opened) -> None:
        if self._welcome:
            return
        caller, origin = self.caller, self.origin
        limit = caller.quota.max_prompt_tokens
        if not caller.principal:
            self._complain("let in whom nobody knows")
        elif limit is not None and opened.prompt_length > limit:
            self._complain(f"a prompt of {opened.prompt_length} tokens of {caller.principal}, who may send {limit}")
        assert self._opening is not None
        if self._opening.HasField("resume") and origin is not None and origin.caller.principal != caller.principal:
            self._complain(f"{caller.principal} resumed a session of {origin.caller.principal}")

    def _commit(self, commit: pb.Commit) -> None:
        assert self.story is not None
        end = commit.start + len(commit.tokens)
        if commit.start != self.known:
            self._complain(f"a commit from {commit.start}, but the log known has {self.known} tokens")
        elif list(commit.tokens) != self.story.reads(commit.start, end):
            self._complain(f"other words from {commit.start}: {list(commit.tokens)}")
        if commit.text_lengths and sum(commit.text_lengths) != len(commit.text.encode()):
            self._complain("lengths that are not those of the text")
        self.known = end

    def refused(self, code: str, sentence: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """The stream ended with a status of the verifier's own."""
        found = dict(metadata).get(DETAILS, b"")
        assert isinstance(found, bytes)
        info = error_details_pb2.ErrorInfo()
        told = [detail.Unpack(info) for detail in status_pb2.Status.FromString(found).details]
        self.refusal = info.reason
        right = code in LENGTH_CODES.get(info.reason, (REFUSALS.get(info.reason),))
        if not (any(told) and info.domain == DOMAIN and right and sentence):
            self._complain(f"refused with {code} {info.reason!r}: {sentence[:200]!r}")
        if len(found) > MOST_STATUS_BYTES:
            self._complain(f"a status of {len(found)} bytes")
