"""A question's news as server-sent events."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_client.assistant.choices import News, in_order
from edge_client.assistant.event_stream import DONE, event
from edge_client.assistant.requests import Question
from edge_client.assistant.shapes import Shape, metrics_of
from edge_client.types import RequestOutput


@dataclass
class Telling:
    """A question's news as events."""

    question: Question
    shape: Shape
    outputs: dict[int, RequestOutput] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)

    def of(self, news: News) -> bytes:
        """Events, or nothing if there is nothing to tell."""
        choice, chunk = news.choice, news.chunk
        told = b""
        if choice not in self.begun:
            self.begun.add(choice)
            told = self._beginning(choice)
        if chunk.text or chunk.logprobs or (news.view and chunk.token_ids):
            part = self.shape.part(choice, chunk.text, chunk.logprobs)
            if news.view is not None:
                part["outrider"] = news.view.news(chunk)
            told += event(part)
        if chunk.output is not None:
            self.outputs[choice] = chunk.output
            last = self.shape.end(choice, chunk.output)
            if len(self.outputs) == len(self.question.prompts) * self.question.n:
                last["metrics"] = metrics_of(in_order(self.outputs))
            told += event(last)
        return told

    def _beginning(self, choice: int) -> bytes:
        told = b""
        if (begin := self.shape.begin(choice)) is not None:
            told += event(begin)
        if prompt := echoed(self.question, choice):
            told += event(self.shape.part(choice, prompt, ()))
        return told

    def end(self) -> bytes:
        """The last events."""
        usage = self.question.include_usage
        return (event(self.shape.usage_chunk(in_order(self.outputs), self.question.n)) if usage else b"") + DONE


def echoed(question: Question, choice: int) -> str:
    """What a choice begins with before its answer: its prompt, if that was asked for."""
    prompt = question.prompts[choice // question.n]
    return prompt if question.echo and isinstance(prompt, str) else ""
