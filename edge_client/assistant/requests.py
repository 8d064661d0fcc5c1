"""What the endpoints take: OpenAI's request bodies, checked, as questions for the verifier.

Fields that are not known are ignored, as everywhere in this ecosystem; those that are known, would change the answer
and cannot be had here are refused, see `unsupported`. docs/assistant.md has a table of what is decided here.
"""

from __future__ import annotations

import dataclasses
import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_client.assistant.errors import ApiError
from edge_client.assistant.unsupported import not_here, refuse_unsupported
from edge_client.types import OfflineAnswers, Prompt
from speculation.sampling import MAX_LOGPROBS, SamplingError, SamplingParams

OFFLINE_SUFFIX = ":offline"  # of a model's name: the device may finish, or has finished, the answer alone
DEFAULT_MODEL = "default"  # also asks for the verifier's own
MOST_CHOICES = 16
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Tokens = Annotated[int, Field(ge=-1, lt=1 << 32)]  # -1: as many as the context holds, as in llama.cpp
_LEAST_TOP_P = 1e-30  # keeps the likeliest token alone; a smaller one would be 0 on its way to the verifier
_RANDOM_SEED = -1
_SEEDS = 1 << 64
_SAFE_SEED_BITS = 53  # what a JSON number keeps in every language
# Chat apps offer tools with every question. Who may choose may answer in words; only who must call one cannot.
_OFFERS = {"tools": "tool_choice", "functions": "function_call"}
_FREE = (None, "auto", "none")
# Apps for OpenAI's models send these with every question, too.
_LEFT_ASIDE = ("reasoning_effort", "verbosity")


@dataclass(frozen=True)
class Question:
    """What to answer, checked. prompts: each gets `n` choices. model: empty for the default.

    ride: whether chunks are to tell of the ride. drafts: False streams plainly. echo: whether a choice begins with its
    prompt. offline: whether the device may finish the answer alone; None leaves it to the server. notices: what is done
    otherwise than the asker may think.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    n: int
    seed: int
    model: str
    stream: bool
    include_usage: bool
    ride: bool
    drafts: bool
    offline: OfflineAnswers | None
    echo: bool = False
    notices: tuple[str, ...] = ()

    def seed_of(self, choice: int) -> int:
        """Every choice has a seed of its own, or all would have the same words; the first has the one asked for."""
        return (self.seed + choice % self.n) % _SEEDS


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class StreamOptions(_Strict):
    """OpenAI's."""

    include_usage: bool = False


class OutriderOptions(_Strict):
    """Ours; see the package."""

    model_config = ConfigDict(strict=True, extra="forbid")

    pace: Literal["riding", "streaming"] = "riding"
    ride: bool = False
    offline: Literal["never", "auto"] | None = None


class ResponseFormat(_Strict):
    """OpenAI's; only text is had here."""

    type: str


class Body(_Strict):
    """What both endpoints take. None means the default, as in OpenAI's clients."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    outrider: OutriderOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # some clients say -1 for "all"
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=_SEEDS)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None

    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """What to answer. Raises ApiError."""

    @property
    @abstractmethod
    def most_tokens(self) -> int | None:
        """Most tokens to answer."""

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """How many alternatives to report at each position; None for no log-probabilities at all. Raises ApiError."""

    def question(self) -> Question:
        """The request as a question. Raises ApiError."""
        self._check()
        prompts = self.prompts()
        n = self.n or 1
        if n * len(prompts) > MOST_CHOICES:
            raise ApiError(
                400,
                f"n is {n} and there are {len(prompts)} prompts; at most {MOST_CHOICES} choices are given at a time",
                code="too_many_choices",
                param="n",
            )
        ours = self.outrider or OutriderOptions()
        model = (self.model or "").removesuffix(OFFLINE_SUFFIX)
        offline = OfflineAnswers(ours.offline) if ours.offline is not None else None
        if offline is None and model != (self.model or ""):
            offline = OfflineAnswers.AUTO
        return Question(
            prompts=prompts,
            params=self._params(),
            n=n,
            seed=secrets.randbits(_SAFE_SEED_BITS) if self.seed in (None, _RANDOM_SEED) else (self.seed or 0) % _SEEDS,
            model="" if model == DEFAULT_MODEL else model,
            stream=bool(self.stream),
            include_usage=self.stream_options is not None and self.stream_options.include_usage,
            ride=ours.ride,
            drafts=ours.pace == "riding",
            offline=offline,
        )

    def _check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "stream_options is for streams; set stream to true")
        if self.outrider is not None and self.outrider.ride and not self.stream:
            raise _wrong("outrider", "outrider.ride is for streams; set stream to true")
        if self.response_format is not None and self.response_format.type != "text":
            raise not_here(
                "response_format",
                f"the verifier cannot follow a grammar yet, so {self.response_format.type} cannot be promised; "
                "leave out response_format and ask for JSON in words",
            )

    def _params(self) -> SamplingParams:
        given = {
            "temperature": self.temperature,
            "top_p": _LEAST_TOP_P if self.top_p is not None and 0 <= self.top_p < _LEAST_TOP_P else self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": _bias(self.logit_bias or {}),
            "max_tokens": None if self.most_tokens == -1 else self.most_tokens,
            "stop": tuple(filter(None, (self.stop,) if isinstance(self.stop, str) else self.stop or ())),
            "stop_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "logprobs": self.alternatives,
        }
        try:
            return SamplingParams(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        except SamplingError as error:
            raise _wrong(str(error).split(" ", 1)[0], str(error)) from error


class TextPart(_Strict):
    """A part of a message; text is the only kind that can be had here."""

    type: str
    text: str | None = None


class Message(_Strict):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = None
    prefix: bool | None = None
    partial: bool | None = None


class ChatBody(Body):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def _check(self) -> None:
        super()._check()
        if self.echo:
            raise not_here("echo", "messages are not echoed; leave out echo")
        if self.add_special_tokens:
            raise not_here("add_special_tokens", "a chat template brings its own; leave out add_special_tokens")

    def prompts(self) -> Sequence[Prompt]:
        return [[_said(index, message) for index, message in enumerate(self.messages)]]

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs", "top_logprobs needs logprobs; set logprobs to true")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Body):
    """Of /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    def prompts(self) -> Sequence[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    @property
    def most_tokens(self) -> int | None:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def _check(self) -> None:
        super()._check()
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise not_here("best_of", "all choices are returned and none is left out; use n instead of best_of")
        if self.echo and self.logprobs is not None:
            raise not_here(
                "echo",
                "echo with logprobs asks for log-probabilities of the prompt, and the verifier gives those of answers "
                "only; leave out echo or logprobs. Benchmarks that generate answers work, those that score given ones "
                "do not",
            )
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompts()):
            raise not_here("echo", "only text is echoed, not token ids; leave out echo")
        if self.add_special_tokens is False and any(isinstance(prompt, str) for prompt in self.prompts()):
            raise not_here(
                "add_special_tokens", "a text gets the tokenizer's own; leave out add_special_tokens or send ids"
            )

    def question(self) -> Question:
        return dataclasses.replace(super().question(), echo=bool(self.echo))


def parse(kind: type[Body], body: object) -> Question:
    """A request's JSON as a question. Raises ApiError."""
    if not isinstance(body, Mapping):
        raise ApiError(400, "the body is no JSON object; send an object with the fields of a request", code="no_object")
    refuse_unsupported(body)
    notices = _unused(body)
    try:
        return dataclasses.replace(kind.model_validate(body).question(), notices=notices)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        param = str(first["loc"][0]) if first["loc"] else None
        raise _wrong(param, f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _unused(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Notices of what is left aside. Raises ApiError for an offer that must be taken."""
    notices: list[str] = []
    for name, choice in _OFFERS.items():
        if not body.get(name):
            continue
        if body.get(choice) not in _FREE:
            raise not_here(name, f"the verifier cannot call {name}; leave out {choice}, and it answers in words")
        if body.get(choice) != "none":
            notices.append(f"{name} were offered; the verifier cannot call any and answers in words")
    notices += [f"{name} is left aside: the model answers as it does" for name in _LEFT_ASIDE if body.get(name)]
    return tuple(notices)


def _said(index: int, message: Message) -> Mapping[str, str]:
    """A message as the contract has it. Raises ApiError."""
    where = f"messages.{index}"
    if message.tool_calls or message.role in ("tool", "function"):
        raise not_here("messages", f"{where}: the verifier cannot call tools; leave out calls and their results")
    if message.prefix or message.partial:
        raise not_here("messages", f"{where}: an answer cannot be given its beginning; leave out prefix and partial")
    role = "system" if message.role == "developer" else message.role
    content = message.content or ""
    if isinstance(content, str):
        return {"role": role, "content": content}
    for part in content:
        if part.type != "text" or part.text is None:
            raise not_here("messages", f"{where}: a part of type {part.type!r} cannot be read here; send text")
    return {"role": role, "content": "\n".join(part.text or "" for part in content)}  # as vLLM and llama.cpp do


def _bias(biases: Mapping[str, float]) -> dict[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) < 1 << 32):
            raise _wrong("logit_bias", f"logit_bias has the key {token[:40]!r}; its keys must be token ids")
    return {int(token): bias for token, bias in biases.items()}


def _wrong(param: str | None, sentence: str) -> ApiError:
    return ApiError(400, sentence, code="invalid_value", param=param)
