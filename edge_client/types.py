"""What the Python API takes and gives. Plain data; units in names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from speculation.pace.observed import Diary

if TYPE_CHECKING:
    from outrider.v1 import verifier_pb2 as pb

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]


class OfflineAnswers(StrEnum):
    """Whether the device may answer alone when the verifier cannot be reached."""

    NEVER = "never"
    ASK = "ask"
    AUTO = "auto"


class LinkState(StrEnum):
    """How an answer fares with the verifier.

    WAITING: the link is silent or broken; what has come stays, and the answer goes on by itself when it is back.
    OFFLINE: the device goes on alone, to the end of this answer.
    """

    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    OFFLINE = "offline"


@dataclass(frozen=True)
class RideSettings:
    """What one answer does otherwise than its client's others.

    model: to ask for; empty for the client's. drafts: without them the answer streams plainly. diary: where the ride
    is written down as it goes, see `speculation.pace.observed`. offline_answers: whether the device may finish it
    alone.
    """

    model: str = ""
    drafts: bool = True
    diary: Diary | None = None
    offline_answers: OfflineAnswers | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """The target's own log-probabilities at one position, before temperature and filters."""

    token_id: int
    logprob: float
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestMetrics:
    """What an answer cost and gained.

    ttft_ms: to the first token. ms_per_token: mean over the tokens after the first. target_forwards: of the verifier,
    after the prompt. verified_tokens: drafted tokens that the target checked. acceptance: the acceptance rate, accepted
    / checked; None without drafts. accepted_tokens / drafted_tokens is the draft efficiency. Byte counts are of
    serialised messages, without framing. notices: what a person should know, such as a drafter that failed. failures:
    of the verifier on this answer, after each of which it went on from the words that had come. own_verified_tokens,
    own_accepted_tokens: guesses of the verifier's own, checked and right; they are not among the drafted ones.
    """

    ttft_ms: float
    total_ms: float
    ms_per_token: float
    rtt_ms: float | None
    drafted_tokens: int
    verified_tokens: int
    accepted_tokens: int
    acceptance: float | None
    target_forwards: int
    draft_messages: int
    commits: int
    drafting_ms: float
    uplink_bytes: int
    downlink_bytes: int
    reconnects: int
    notices: tuple[str, ...] = ()
    failures: int = 0
    own_verified_tokens: int = 0
    own_accepted_tokens: int = 0


@dataclass(frozen=True)
class OfflinePart:
    """What the device wrote alone, at the end of an answer.

    texts[i]: what token_ids[i] adds to the text. of_log: the tokens are the target's and go on from the log; else they
    are of the model's own vocabulary. model: who wrote. target: fingerprint of the target that wrote the part before;
    empty if the verifier was never reached.
    """

    text: str
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    of_log: bool
    model: str
    target: str


@dataclass(frozen=True)
class RequestOutput:
    """A complete answer, or what came of one that broke off (`SessionError.so_far`).

    text: without special tokens and without the stop text. token_ids: the verifier's. finish_reason: stop, length,
    abort, or error if it broke off. seed: gives the same words again. drafted[i]: token_ids[i] was guessed by the
    device. offline: the end of the text, if the device wrote it alone. cached_prompt_tokens: those that the verifier
    had evaluated before, for another. target: fingerprint of what wrote it; empty if no verifier was reached.
    prompt_fingerprint: of the tokens that the verifier made of the prompt; 0 if it did not tell.
    held_text: the end of the text that belongs to no token, for it became certain only because the answer ended: half a
    character, or the beginning of a stop text. An answer that goes on from there does not tell it again.
    """

    text: str
    token_ids: tuple[int, ...]
    drafted: tuple[bool, ...]
    finish_reason: str
    prompt_tokens: int
    seed: int
    metrics: RequestMetrics
    logprobs: tuple[TokenLogprob, ...] | None = None
    offline: OfflinePart | None = None
    cached_prompt_tokens: int = 0
    target: str = ""
    prompt_fingerprint: int = 0
    held_text: str = ""

    @property
    def committed_text(self) -> str:
        """The part of the text that the verifier said."""
        return self.text.removesuffix(self.offline.text) if self.offline is not None else self.text


class Writer(StrEnum):
    """Whose word a token was first.

    DEVICE: it had guessed the token, and the verifier used the guess; BRANCH: so, with a guess that stood beside a
    likelier one. OWN: the verifier had guessed it by itself. CORRECTED: the device had guessed other ones there.
    SERVER: the verifier wrote it without a guess.
    """

    DEVICE = "device"
    BRANCH = "branch"
    OWN = "own"
    CORRECTED = "corrected"
    SERVER = "server"


@dataclass(frozen=True)
class StreamChunk:
    """News of an answer as it grows. The last chunk carries the complete output.

    texts[i]: what token_ids[i] adds to the text; the answer's end may add text of no token. drafted[i]: the device had
    guessed token_ids[i]. corrected[i]: it had taken another token there for the likeliest; with drafted[i], its second
    guess was right. own[i]: the verifier had guessed it by itself. logprobs: empty unless asked for. link: how the
    answer fares from now on; a chunk without text may bring nothing else. While it is offline, texts and tokens are the
    device's own. model_info: what the verifier says of the model that answers; always with its tokens, and None until
    it has been reached.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    drafted: tuple[bool, ...] = ()
    corrected: tuple[bool, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    output: RequestOutput | None = None
    link: LinkState = LinkState.LIVE
    model_info: pb.GetModelInfoResponse | None = None
    own: tuple[bool, ...] = ()

    @property
    def writers(self) -> tuple[Writer, ...]:
        """Whose word each token was, where the verifier writes."""
        found = []
        for index in range(len(self.token_ids)):
            if self.drafted[index]:
                found.append(Writer.BRANCH if self.corrected[index] else Writer.DEVICE)
            elif self.corrected[index]:
                found.append(Writer.CORRECTED)
            else:
                found.append(Writer.OWN if self.own and self.own[index] else Writer.SERVER)
        return tuple(found)

    @property
    def offline(self) -> bool:
        """Whether these are the device's own words, which no verifier has seen."""
        return self.link is LinkState.OFFLINE
