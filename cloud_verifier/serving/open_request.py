"""From an Open message to a session: whatever can be wrong with a request is found here, before any work is done."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.engines.base import EngineInfo, Sampler
from cloud_verifier.errors import VerifierError, invalid
from cloud_verifier.guessing.base import GuesserSource
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.session import Echo, Session
from cloud_verifier.security.principals import Quota
from cloud_verifier.serving.text_codec import TextCodec, TextError
from speculation.answer_text import AnswerText
from speculation.noise import NOISE_VERSION
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective
from speculation.sampling import SamplingError, SamplingParams
from speculation.verifier_tree import VerifierTree
from speculation.vocabulary.vocabulary import Vocabulary

PROTOCOL_VERSION = 1
_TOKEN_OVERHEAD_BYTES = 8  # of an entry of a message, id included
MAX_PATIENCE_MS = 60_000  # of any that ends at all
OBJECTIVES: dict[int, Objective] = {
    pb.OBJECTIVE_LATENCY: Objective.LATENCY,
    pb.OBJECTIVE_BALANCED: Objective.BALANCED,
    pb.OBJECTIVE_CAPACITY: Objective.CAPACITY,
}
VOCABULARY_PIECE_BYTES = 1 << 18
LEAST_PRIORITY = -1000
REPLAY_EFFORT_BYTES = 8  # reading a token of `continue_from` takes about as long as so many bytes of text


@dataclass(frozen=True)
class Served:
    """A model as served: its engine's facts, its tokenizer, its name, and what devices may have.

    max_lookahead: how far past the log guesses may reach. objective: of sessions that name none. max_patience_ms,
    max_priority: most that is granted; PATIENCE_UNLIMITED_MS grants any. max_tree_nodes: guesses in all branches of a
    session; 0 for lines only. guessers: where the verifier's own guesses come from, if it has any.
    """

    name: str
    engine: EngineInfo
    codec: TextCodec
    max_lookahead: int = 64
    objective: Objective = Objective.LATENCY
    max_patience_ms: int = PATIENCE_UNLIMITED_MS
    max_priority: int = 0
    max_tree_nodes: int = 256
    guessers: GuesserSource | None = None

    @property
    def tree_nodes(self) -> int:
        """Most guesses of a session that branches; 0 if none may."""
        return self.max_tree_nodes if self.engine.trees else 0

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: what the model's configuration, its tokenizer and its chat template name."""
        named = {*self.engine.eos_ids, *self.codec.end_ids}
        return tuple(sorted(token for token in named if token < self.engine.vocabulary_size))

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, over all that decides an answer's words, the request aside."""
        deciding = [self.engine.fingerprint, self.codec.words_fingerprint, self.eos_ids]
        return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()

    def model_info(self) -> pb.GetModelInfoResponse:
        """What devices are told about it."""
        return pb.GetModelInfoResponse(
            model=self.name,
            protocol_version=PROTOCOL_VERSION,
            noise_version=NOISE_VERSION,
            vocabulary_fingerprint=self.codec.fingerprint,
            vocabulary_size=self.engine.vocabulary_size,
            eos_ids=self.eos_ids,
            context_limit=self.engine.context_limit,
            max_lookahead=self.max_lookahead,
            target_fingerprint=self.fingerprint,
            strict=self.engine.strict,
            strict_report=self.engine.strict_report,
        )


def vocabulary_pieces(vocabulary: Vocabulary) -> Iterator[pb.GetVocabularyResponse]:
    """A vocabulary as messages well below the limit."""
    piece = pb.GetVocabularyResponse()
    size = 0
    for token_id, text in enumerate(vocabulary.strings):
        encoded = text.encode("utf-8", "surrogateescape")
        if size + len(encoded) > VOCABULARY_PIECE_BYTES:
            yield piece
            piece, size = pb.GetVocabularyResponse(start=token_id), 0
        piece.tokens.append(encoded)
        if token_id in vocabulary.special:
            piece.special_ids.append(token_id)
        elif token_id in vocabulary.added:
            piece.added_ids.append(token_id)
        size += len(encoded) + _TOKEN_OVERHEAD_BYTES
    yield piece


def check_version(request: pb.Open) -> None:
    """Raises VerifierError unless the device speaks this contract version."""
    if request.protocol_version != PROTOCOL_VERSION:
        raise VerifierError(
            StatusCode.FAILED_PRECONDITION,
            "PROTOCOL_VERSION",
            f"the device speaks protocol version {request.protocol_version}, this verifier speaks {PROTOCOL_VERSION}; "
            "update the older of the two",
        )


class PromptSize(NamedTuple):
    """How large a prompt is, before anything is done with it.

    least_tokens: it has no fewer, by its bytes and those of the vocabulary's longest token; every part of a message
    counts as one. effort_bytes: reading it takes about as long as turning so many bytes of text into tokens. sentence:
    says so.
    """

    least_tokens: int
    effort_bytes: int
    sentence: str


def prompt_size(request: pb.Open, served: Served) -> PromptSize:
    """That of a request's prompt."""
    effort_bytes = request.ByteSize() + REPLAY_EFFORT_BYTES * len(request.continue_from)
    if request.HasField("prompt_ids"):
        count = len(request.prompt_ids.ids)
        return PromptSize(count, effort_bytes, f"the prompt has {count} tokens")
    texts, parts = [request.text], 0
    messages, most = request.chat.messages, served.engine.context_limit
    if len(messages) > most:
        parts = len(messages)
    elif messages:
        parts = sum(len(message.content) for message in messages)
        if parts <= most:
            texts += [part.text for message in messages for part in message.content]
    size_bytes = sum(len(text.encode()) for text in texts)
    least = max(-(-size_bytes // served.codec.longest_token_bytes), parts)
    shape = f"{parts} parts" if least == parts else f"{size_bytes} bytes"
    return PromptSize(least, effort_bytes, f"the prompt has {shape}, which make at least {least} tokens,")


def most_prompt_tokens(served: Served, quota: Quota) -> int:
    """The longest prompt that leaves room for an answer, and that a principal may send."""
    room = served.engine.context_limit - 1
    return room if quota.max_prompt_tokens is None else min(room, quota.max_prompt_tokens)


def check_size(size: PromptSize, served: Served, quota: Quota) -> None:
    """Raises VerifierError for a prompt that is too long whatever its tokens are: nothing need be done to know that."""
    if size.least_tokens <= most_prompt_tokens(served, quota):
        return
    limit = quota.max_prompt_tokens
    if limit is not None and size.least_tokens > limit:
        raise _prompt_too_long(size.sentence, limit)
    raise _context_full(size.sentence, served)


def check_quota(prompt_tokens: int, quota: Quota) -> None:
    """Raises VerifierError if a principal may not send a prompt of so many tokens."""
    limit = quota.max_prompt_tokens
    if limit is not None and prompt_tokens > limit:
        raise _prompt_too_long(f"the prompt has {prompt_tokens} tokens,", limit)


def _prompt_too_long(what: str, limit: int) -> VerifierError:
    return VerifierError(
        StatusCode.OUT_OF_RANGE, "PROMPT_TOO_LONG", f"{what} and this key may send {limit}; shorten the prompt"
    )


def _context_full(what: str, served: Served) -> VerifierError:
    return VerifierError(
        StatusCode.OUT_OF_RANGE,
        "CONTEXT_FULL",
        f"{what} and the context holds {served.engine.context_limit}, one of which the answer needs; shorten the "
        "prompt",
    )


def new_session(request: pb.Open, served: Served) -> Session:
    """A session for an Open that does not resume one. Raises VerifierError."""
    check_version(request)
    check_model(request.model, served)
    params = sampling_params(request.sampling, served.engine.vocabulary_size)
    if request.acceptance_rule not in (pb.ACCEPTANCE_RULE_UNSPECIFIED, pb.ACCEPTANCE_RULE_SHARED_NOISE):
        raise invalid("ACCEPTANCE_RULE", f"acceptance rule {request.acceptance_rule} is not known; use SHARED_NOISE")
    patience = Patience(patience_ms(request), objective(request) or served.objective, served.max_patience_ms)
    prompt = prompt_ids(request, served)
    fingerprint = prompt_fingerprint(prompt)
    if request.prompt_fingerprint not in (0, fingerprint):
        raise VerifierError(
            StatusCode.FAILED_PRECONDITION,
            "PROMPT_CHANGED",
            "the prompt has other tokens here than where this answer began, as from a chat template with a date in it, "
            "and the answer would go on with other words; ask again from the beginning",
        )
    room = served.engine.context_limit - len(prompt)
    if room < 1:
        raise _context_full(f"the prompt has {len(prompt)} tokens", served)
    check_ids(request.continue_from, served.engine.vocabulary_size, "continue_from")
    limit = min(room, params.max_tokens or room)
    if len(request.continue_from) > limit:
        raise VerifierError(
            StatusCode.OUT_OF_RANGE,
            "CONTINUES_PAST_END",
            f"continue_from has {len(request.continue_from)} tokens, but the answer ends after {limit}",
        )
    now = time.monotonic()
    stops = frozenset(params.stop_ids) | served.codec.vocabulary.named(params.stop)
    sampler = Sampler(params, request.seed, len(prompt))
    session = Session(
        session_id=secrets.token_hex(16),
        sampler=sampler,
        line=VerifierTree(list(prompt)),
        text=AnswerText(served.codec.stream(prompt), params.stop),
        stop_ids=stops if params.ignore_eos else stops.union(served.eos_ids),
        max_length=len(prompt) + limit,
        max_lookahead=served.max_lookahead,
        max_nodes=served.tree_nodes,
        patience=patience,
        ready_since_s=now,
        priority=max(LEAST_PRIORITY, min(served.max_priority, request.priority)),
        want_text=request.want_text,
        echo=Echo(0, now),
        prompt_fingerprint=fingerprint,
        guesser=served.guessers(sampler) if served.guessers is not None else None,
    )
    session.replay(request.continue_from)
    if (length := len(session.drafted)) < len(request.continue_from):
        raise VerifierError(
            StatusCode.OUT_OF_RANGE,
            "CONTINUES_PAST_END",
            f"continue_from has {len(request.continue_from)} tokens, but the answer stops after {length}",
        )
    session.sent = session.line.length
    return session


def objective(request: pb.Open | pb.Draft) -> Objective | None:
    """The objective named, if any. Raises VerifierError."""
    if request.objective == pb.OBJECTIVE_UNSPECIFIED:
        return None
    if request.objective not in OBJECTIVES:
        raise invalid("OBJECTIVE", f"objective {request.objective} is not known; use LATENCY, BALANCED or CAPACITY")
    return OBJECTIVES[request.objective]


def patience_ms(request: pb.Open | pb.Draft) -> int | None:
    """The patience asked for, within what makes sense; None without a wish."""
    if not request.HasField("patience_ms"):
        return None
    if request.patience_ms == PATIENCE_UNLIMITED_MS:
        return PATIENCE_UNLIMITED_MS
    return min(request.patience_ms, MAX_PATIENCE_MS)


def change_patience(patience: Patience, draft: pb.Draft) -> None:
    """What a draft says of objective and patience from now on. Raises VerifierError."""
    if (named := objective(draft)) is not None:
        patience.objective, patience.asked_ms = named, None
    if (asked_ms := patience_ms(draft)) is not None:
        patience.asked_ms = asked_ms


def check_model(name: str, served: Served) -> None:
    """Raises VerifierError if the model is not the one served. An empty name means the default."""
    if name and name != served.name:
        raise VerifierError(
            StatusCode.NOT_FOUND,
            "MODEL",
            f"model {name[:200]!r} is not served here; this verifier serves {served.name!r}",
        )


def check_ids(ids: Sequence[int], vocabulary_size: int, where: str) -> None:
    """Raises VerifierError if an id lies outside the vocabulary."""
    worst = max(ids, default=0)
    if worst >= vocabulary_size:
        raise invalid("TOKEN_ID", f"{where} has token id {worst}; ids of this model are below {vocabulary_size}")


def prompt_ids(request: pb.Open, served: Served) -> list[int]:
    """The prompt as tokens. Raises VerifierError if there is none or it cannot be encoded."""
    kind = request.WhichOneof("prompt")
    try:
        if kind == "prompt_ids":
            ids = list(request.prompt_ids.ids)
        elif kind == "text":
            ids = served.codec.encode_text(request.text)
        elif kind == "chat":
            messages = [{"role": m.role, "content": "".join(p.text for p in m.content)} for m in request.chat.messages]
            if not messages:
                raise invalid("PROMPT_EMPTY", "the conversation has no messages; send at least one")
            ids = served.codec.encode_chat(messages)
        else:
            raise invalid("PROMPT_MISSING", "Open has no prompt; set prompt_ids, chat or text")
    except TextError as error:
        raise invalid("PROMPT", str(error)) from error
    if not ids:
        raise invalid("PROMPT_EMPTY", "the prompt has no tokens; send at least one")
    check_ids(ids, served.engine.vocabulary_size, "the prompt")  # a tokenizer may have more ids than the model
    return ids


def prompt_fingerprint(ids: Sequence[int]) -> int:
    """As `Opened.prompt_fingerprint` in the contract: equal prompts have equal ones, on every verifier."""
    digest = hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).digest()
    return int.from_bytes(digest[:8], "little") or 1


def sampling_params(message: pb.SamplingParams, vocabulary_size: int) -> SamplingParams:
    """The contract's message as checked parameters. Raises VerifierError."""

    def given(name: str, default: float) -> float:
        return float(getattr(message, name)) if message.HasField(name) else default

    check_ids(list(message.logit_bias), vocabulary_size, "logit_bias")
    check_ids(message.stop_ids, vocabulary_size, "stop_ids")
    try:
        return SamplingParams(
            temperature=given("temperature", 1.0),
            top_k=message.top_k,
            top_p=given("top_p", 1.0),
            min_p=message.min_p,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            repetition_penalty=given("repetition_penalty", 1.0),
            logit_bias=dict(message.logit_bias),
            max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
            stop=tuple(message.stop),
            stop_ids=tuple(message.stop_ids),
            ignore_eos=message.ignore_eos,
            logprobs=message.logprobs if message.HasField("logprobs") else None,
        )
    except SamplingError as error:
        raise invalid("SAMPLING", str(error)) from error
