"""What the endpoints give: OpenAI's bodies and chunks, with our `metrics` in them."""

from __future__ import annotations

import codecs
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edge_client.assistant.requests import OFFLINE_SUFFIX
from edge_client.assistant.token_strings import TokenStrings
from edge_client.types import RequestOutput, TokenLogprob

Json = dict[str, Any]


@dataclass
class Shape(ABC):
    """One request's answer in its endpoint's form.

    model: as asked for, until the verifier names the one that answers. notices: of the request. fingerprint: of the
    target, once it answers. spelling: None unless log-probabilities are wanted. offline: whether the device has gone on
    alone by now.
    """

    model: str
    include_usage: bool
    notices: tuple[str, ...] = ()
    fingerprint: str = ""
    spelling: TokenStrings | None = None
    offline: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def begin(self, index: int) -> Json | None:
        """What a choice's stream begins with, if with anything."""
        return None

    @abstractmethod
    def part(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        """A chunk with more of a choice."""

    def end(self, index: int, output: RequestOutput) -> Json:
        """The last chunk of a choice."""
        chunk = self.part(index, "", ())
        chunk["choices"][0]["finish_reason"] = finish_reason(output)
        return chunk

    @abstractmethod
    def choice(self, index: int, output: RequestOutput, echoed: str) -> Json:
        """A whole choice."""

    def whole(self, choices: Sequence[Json], outputs: Sequence[RequestOutput], n: int) -> Json:
        """The whole body."""
        self.offline = any(output.offline for output in outputs)
        head = self._head(self.whole_object)
        for choice, output in zip(choices, outputs, strict=True):
            if output.offline is not None:
                choice["outrider"] = {"offline": offline_of(output)}
        return head | {"choices": list(choices), "usage": usage(outputs, n), "metrics": self.metrics(outputs)}

    def metrics(self, outputs: Sequence[RequestOutput]) -> Json:
        """The object `metrics`, with the request's notices."""
        told = metrics_of(outputs)
        return told | {"notices": [*self.notices, *told["notices"]]}

    def usage_chunk(self, outputs: Sequence[RequestOutput], n: int) -> Json:
        """The chunk after the last choice's, if usage was asked for."""
        return self._head(self.chunk_object) | {"choices": [], "usage": usage(outputs, n)}

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model + OFFLINE_SUFFIX if self.offline else self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _chunk(self, choice: Json) -> Json:
        chunk = self._head(self.chunk_object) | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk


class ChatShape(Shape):
    """Of /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def begin(self, index: int) -> Json | None:
        return self._delta(index, {"role": "assistant", "content": ""}, ())

    def part(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        return self._delta(index, {"content": text} if text or logprobs else {}, logprobs)

    def _delta(self, index: int, delta: Json, logprobs: Sequence[TokenLogprob]) -> Json:
        told = self._logprobs(logprobs) if logprobs else None
        return self._chunk({"index": index, "delta": delta, "logprobs": told, "finish_reason": None})

    def choice(self, index: int, output: RequestOutput, echoed: str) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": echoed + output.text, "refusal": None},
            "logprobs": None if output.logprobs is None else self._logprobs(output.logprobs),
            "finish_reason": finish_reason(output),
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Json:
        content = [
            self._entry(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._entry(token, value) for token, value in entry.top.items()]}
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        assert self.spelling is not None
        spelled = self.spelling(token_id)
        return {"token": spelled.text, "logprob": logprob, "bytes": spelled.octets}


@dataclass
class CompletionShape(Shape):
    """Of /v1/completions."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)  # by choice, in characters of the text
    _readers: dict[int, codecs.IncrementalDecoder] = field(default_factory=dict)

    def part(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        told = self._logprobs(index, logprobs) if logprobs else None
        return self._chunk({"index": index, "text": text, "logprobs": told, "finish_reason": None})

    def choice(self, index: int, output: RequestOutput, echoed: str) -> Json:
        told = None if output.logprobs is None else self._logprobs(index, output.logprobs)
        text = echoed + output.text
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finish_reason(output)}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> Json:
        assert self.spelling is not None
        read = self._readers.setdefault(index, codecs.getincrementaldecoder("utf-8")("replace"))
        offset = self._offsets.get(index, 0)
        tokens, offsets, tops = [], [], []
        for entry in logprobs:
            spelled = self.spelling(entry.token_id)
            tokens.append(spelled.text)
            offsets.append(offset)
            offset += len(read.decode(bytes(spelled.octets or ())))  # half a character is none of the text's yet
            tops.append({self.spelling(token).text: value for token, value in entry.top.items()})
        self._offsets[index] = offset
        values = [entry.logprob for entry in logprobs]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def offline_of(output: RequestOutput) -> Json:
    """The end of an answer that the device wrote alone: its text, and the model that wrote it."""
    assert output.offline is not None
    return {"text": output.offline.text, "model": output.offline.model}


def finish_reason(output: RequestOutput) -> str:
    """OpenAI's word."""
    return "length" if output.finish_reason == "length" else "stop"


def usage(outputs: Sequence[RequestOutput], n: int) -> Json:
    """Token counts; a prompt counts once for its n choices. Cached are those that the verifier had not to evaluate for
    the first of them; rejected are guesses that were drawn for nothing."""
    prompt = sum(output.prompt_tokens for output in outputs[::n])
    completion = sum(tokens_of(output) for output in outputs)
    drafted = sum(output.metrics.drafted_tokens for output in outputs)
    accepted = sum(output.metrics.accepted_tokens for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.cached_prompt_tokens for output in outputs[::n])},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(0, drafted - accepted),
        },
    }


def tokens_of(output: RequestOutput) -> int:
    """Of the answer, the device's own words included."""
    return len(output.token_ids) + (len(output.offline.token_ids) if output.offline is not None else 0)


def metrics_of(outputs: Sequence[RequestOutput]) -> Json:
    """What a request cost and gained, all choices together; times from the request's beginning on the device.

    seed: of the first choice; the same seed gives the same words. tokens_per_s: after the first token. forwards: of the
    target, after the prompt.
    """
    told = [output.metrics for output in outputs]
    tokens = sum(tokens_of(output) for output in outputs)
    ttft_ms, total_ms = min(one.ttft_ms for one in told), max(one.total_ms for one in told)
    verified, accepted = sum(one.verified_tokens for one in told), sum(one.accepted_tokens for one in told)
    rtts = [one.rtt_ms for one in told if one.rtt_ms is not None]
    decoding_s = (total_ms - ttft_ms) / 1e3
    return {
        "seed": outputs[0].seed,
        "ttft_ms": round(ttft_ms, 2),
        "total_ms": round(total_ms, 2),
        "tokens_per_s": round((tokens - len(outputs)) / decoding_s, 2) if decoding_s > 0 else None,
        "rtt_ms": round(sum(rtts) / len(rtts), 2) if rtts else None,
        "drafted_tokens": sum(one.drafted_tokens for one in told),
        "verified_tokens": verified,
        "accepted_tokens": accepted,
        "acceptance": round(accepted / verified, 4) if verified else None,
        "forwards": sum(one.target_forwards for one in told),
        "draft_messages": sum(one.draft_messages for one in told),
        "commits": sum(one.commits for one in told),
        "uplink_bytes": sum(one.uplink_bytes for one in told),
        "downlink_bytes": sum(one.downlink_bytes for one in told),
        "offline_tokens": tokens - sum(len(output.token_ids) for output in outputs),
        "reconnects": sum(one.reconnects for one in told),
        "notices": [notice for one in told for notice in one.notices],
    }
