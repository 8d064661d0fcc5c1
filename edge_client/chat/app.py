"""The conversation with a person: lines in, answers out, one command or one question at a time."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from edge_client.chat.conversation import Asked, Conversation, ConversationError
from edge_client.chat.interrupt import heeding
from edge_client.chat.progress import Progress
from edge_client.chat.rendering import Renderer, figures
from edge_client.client import EdgeClient
from edge_client.errors import SessionError
from edge_client.riding.offline import compare
from edge_client.types import OfflineAnswers, RequestMetrics, RequestOutput, RideSettings

AGAIN = "Ctrl-C once more, or Ctrl-D, ends the chat"


class Quit(Exception):
    """The person wants to leave."""


class Chat:
    """Keeps one conversation going with one client."""

    def __init__(
        self,
        client: EdgeClient,
        conversation: Conversation,
        painter: Renderer,
        offline_answers: OfflineAnswers,
    ) -> None:
        self._client, self.conversation, self._painter = client, conversation, painter
        self._offline_answers = offline_answers
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "this list"),
            "model": (self._model, "[NAME] ask for another model of the verifier's"),
            "system": (self._system, "[TEXT] what the assistant is to be; none takes it away"),
            "temperature": (self._temperature, "[NUMBER] 0 takes the likeliest words"),
            "seed": (self._seed, "[NUMBER or random] the same seed gives the same words"),
            "stats": (self._stats, "the last answer in figures"),
            "save": (self._save, "FILE this conversation, as JSON"),
            "load": (self._load, "FILE go on with a saved one"),
            "continue": (self._continue, "go on with an answer that broke off"),
            "retry": (self._retry, "the last question again, with another seed"),
            "new": (self._new, "forget what was said"),
            "offline": (self._offline, "[never, ask or auto] may the device answer alone without network?"),
            "check": (self._check, "have the verifier check what the device answered alone"),
            "quit": (self._quit, "as Ctrl-D"),
        }

    @property
    def names(self) -> list[str]:
        """Of the commands, with their slash."""
        return [f"/{name}" for name in self._commands]

    @property
    def metrics(self) -> RequestMetrics | None:
        """Of the last answer that was completed."""
        last = self.conversation.last
        return last.metrics if last is not None else None

    def run(self, read: Callable[[], str]) -> None:
        """Until the person leaves or the questions end.

        read: gives the next one, which may have several lines; raises EOFError at the end and
        KeyboardInterrupt for Ctrl-C.
        """
        warned = False
        while True:
            try:
                line = read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if warned:
                    return
                warned = True
                self._painter.say(AGAIN)
                continue
            try:
                warned = not self._take(line)
            except Quit:
                return

    def _take(self, line: str) -> bool:
        """One command or question; False if it was interrupted."""
        if not line:
            return True
        if not line.startswith("/"):
            self.conversation.ask(line)
            return self._answer(self.conversation.seed)
        name, _, argument = line[1:].partition(" ")
        known = self._commands.get(name)
        if known is None:
            self._painter.say(f"there is no command /{name}; /help lists them", "red")
            return True
        try:
            known[0](argument.strip())
        except KeyboardInterrupt:
            self._painter.say("[stopped]")
            return False
        except (SessionError, OSError, ValueError) as error:
            self._painter.say(str(error), "red")
        return True

    def _answer(self, seed: int | None, continues: RequestOutput | None = None, asked: Asked | None = None) -> bool:
        """asked: what the answer began with that this one `continues`. False if it was interrupted."""
        said: list[str] = []
        output: RequestOutput | None = None
        so_far = continues
        conversation = self.conversation
        asked = asked or conversation.asking
        progress = Progress()
        ride = RideSettings(model=asked.model, diary=progress.view.diary, offline_answers=self._offline_answers)
        interrupted = False
        try:
            with (
                closing(
                    self._client.stream(asked.messages, asked.params, seed=seed, ride=ride, continues=continues)
                ) as stream,
                heeding(stream) as chunks,
            ):
                output = self._painter.stream(chunks, said, progress)
        except KeyboardInterrupt:  # what has come so far is the answer
            interrupted = True
        except (SessionError, ValueError) as error:
            self._painter.write("\n" if said else "")
            self._painter.say(str(error), "red")
            so_far = (error.so_far if isinstance(error, SessionError) else None) or so_far
            if so_far is not None and so_far.text:
                self._painter.say("[/continue goes on from here, with the same words]")
        before = continues.text if continues is not None else ""
        if not said and not before and output is None:
            conversation.take_back()
        else:
            text = output.text if output is not None else before + "".join(said)
            conversation.answered(text, output or so_far, asked)
            self._painter.write("\n")
        if interrupted:
            self._painter.say("[stopped]")
        if output is not None:
            for notice in output.metrics.notices:
                self._painter.say(notice, "yellow")
            if output.offline is not None:
                self._painter.say("[once the network is back, /check asks the verifier about the device's own words]")
        return not interrupted

    # -- commands ------------------------------------------------------------------------------------------------------

    def _help(self, _argument: str) -> None:
        for name, (_, meaning) in self._commands.items():
            self._painter.say(f"  /{name:12} {meaning}", "")
        self._painter.say("  Alt-Enter begins a new line; Ctrl-C stops an answer, twice ends the chat", "")
        self._painter.legend()

    def _model(self, name: str) -> None:
        if name:
            self.conversation.model = name
        self._painter.say(f"model: {self.conversation.model or self._client.model_info(5.0).model}")

    def _system(self, text: str) -> None:
        self.conversation.system = text
        self._painter.say(f"system message: {text or 'none'}")

    def _temperature(self, number: str) -> None:
        if number:
            self.conversation.set_temperature(_number(number, float))
        self._painter.say(f"temperature: {self.conversation.params.temperature:g}")

    def _seed(self, number: str) -> None:
        if number == "random":
            self.conversation.seed = None
        elif number:
            seed = int(_number(number, int))
            if not 0 <= seed < 2**64:
                raise ConversationError("a seed is a number from 0 to 2^64 - 1, or random")
            self.conversation.seed = seed
        self._painter.say(f"seed: {'random' if self.conversation.seed is None else self.conversation.seed}")

    def _stats(self, _argument: str) -> None:
        last = self.conversation.last
        if last is None:
            raise ConversationError("no answer has been completed yet")
        self._painter.say(figures(last.metrics))
        m = last.metrics
        efficiency = f" (draft efficiency {m.accepted_tokens / m.drafted_tokens:.0%})" if m.drafted_tokens else ""
        length = f" (mean accepted length {len(last.token_ids) / m.target_forwards:.1f})" if m.target_forwards else ""
        self._painter.say(
            f"{len(last.token_ids)} tokens in {m.total_ms / 1e3:.1f} s, {m.accepted_tokens} of them drafted here; "
            f"{m.drafted_tokens} drafted in {m.draft_messages} messages{efficiency}; "
            f"{m.target_forwards} target forwards{length}; "
            f"{m.uplink_bytes} bytes up, {m.downlink_bytes} down; {m.reconnects} reconnects; seed {last.seed}"
        )
        if last.offline is not None:
            self._painter.say(f"{len(last.offline.token_ids)} more tokens by {last.offline.model} alone")

    def _save(self, file: str) -> None:
        self.conversation.save(_path(file))
        self._painter.say(f"saved to {_path(file)}")

    def _load(self, file: str) -> None:
        self.conversation.load(_path(file))
        self._painter.say(f"{len(self.conversation.turns)} messages; say something to go on")

    def _continue(self, _argument: str) -> None:
        broken, asked = self.conversation.last, self.conversation.asked
        if broken is None or broken.finish_reason != "error":
            raise ConversationError("no answer broke off")
        self.conversation.forget_answer()
        self._answer(None, broken, asked)

    def _retry(self, _argument: str) -> None:
        if not self.conversation.forget_answer():
            raise ConversationError("there is no answer to try again")
        self._answer(secrets.randbits(64))

    def _new(self, _argument: str) -> None:
        self.conversation.begin_anew()
        self._painter.say("a new conversation")

    def _offline(self, answers: str) -> None:
        if answers:
            try:
                self._offline_answers = OfflineAnswers(answers)
            except ValueError as error:
                raise ConversationError("say never, ask or auto") from error
        self._painter.say(f"without network the device answers alone: {self._offline_answers.value}")

    def _check(self, _argument: str) -> None:
        conversation = self.conversation
        before, asked = conversation.last, conversation.asked
        if before is None or before.offline is None or asked is None:
            raise ConversationError("no part of the last answer is the device's own: there is nothing to check")
        ride = self._client.check_stream(asked.messages, before, asked.params, model=asked.model)
        after = None
        with closing(ride) as chunks:
            for chunk in chunks:
                after = chunk.output
        assert after is not None
        self._painter.difference(before, compare(before, after))
        conversation.forget_answer()
        conversation.answered(after.text, after, asked)

    def _quit(self, _argument: str) -> None:
        raise Quit


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        raise ConversationError(f"{text!r} is not a number") from error


def _path(text: str) -> Path:
    if not text:
        raise ConversationError("name a file")
    return Path(text).expanduser()
