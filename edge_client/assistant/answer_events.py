"""A question's news as server-sent events."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_client.assistant.choices import News, in_order
from edge_client.assistant.event_stream import DONE, comment, event
from edge_client.assistant.requests import Question
from edge_client.assistant.responses import Shape, offline_of
from edge_client.types import LinkState, RequestOutput


@dataclass
class AnswerEvents:
    """A question's news as events."""

    question: Question
    shape: Shape
    outputs: dict[int, RequestOutput] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)

    def of(self, news: News) -> bytes:
        """Events, or nothing if there is nothing to tell."""
        choice, chunk = news.choice, news.chunk
        self.shape.offline |= chunk.offline
        told = self._beginning(choice) if choice not in self.begun else b""
        if chunk.text or chunk.logprobs or (news.view is not None and chunk.output is None):
            part = self.shape.part(choice, chunk.text, chunk.logprobs)
            if news.view is not None:
                part["outrider"] = news.view.news(chunk)
            told += event(part)
        elif chunk.output is None and chunk.link is not LinkState.LIVE:
            told += comment(f"link: {chunk.link.value}")
        if chunk.output is not None:
            told += self._ending(news, chunk.output)
        return told

    def _ending(self, news: News, output: RequestOutput) -> bytes:
        self.outputs[news.choice] = output
        last = self.shape.end(news.choice, output)
        beside = news.view.news(news.chunk) if news.view is not None else {}  # what the drafting thread did meanwhile
        if output.offline is not None:
            beside["offline"] = offline_of(output)
        if beside:
            last["outrider"] = beside
        if len(self.outputs) == len(self.question.prompts) * self.question.n:
            last["metrics"] = self.shape.metrics(in_order(self.outputs))
        return event(last)

    def _beginning(self, choice: int) -> bytes:
        self.begun.add(choice)
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
