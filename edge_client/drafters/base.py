"""The contract of a drafter: a small model that holds one token sequence and tells what may come next.

A drafter knows nothing about networks, sampling or the verifier. It holds a sequence that grows by `feed`, shrinks by
`rollback`, and after each `feed` knows its best candidates for the next token. Choosing among them (temperature, shared
noise) is the caller's business, so that every drafter guesses by the same rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_client.drafters.errors import DrafterError as DrafterError  # noqa: PLC0414 - part of the contract
from outrider_models.model_text import ModelText
from speculation.sampling import PowerSum
from speculation.vocabulary.vocabulary import Vocabulary

ANY_VOCABULARY = ""
MOST_PATH_TOKENS = 64  # of a branch beside the sequence


@dataclass(frozen=True)
class DrafterInfo:
    """What the rest of the device needs to know about a drafter.

    name: for people. vocabulary_size: ids are 0 <= id < vocabulary_size. vocabulary_fingerprint: see
    `speculation.vocabulary`; ANY_VOCABULARY for a drafter that only repeats ids it was fed and so speaks any.
    context_tokens: longest sequence it can hold. runs_on: what really runs where, for people; empty if it does not say.
    notices: what a person should know, such as an accelerator that was missing.
    """

    name: str
    vocabulary_size: int
    vocabulary_fingerprint: str
    context_tokens: int
    runs_on: str = ""
    notices: tuple[str, ...] = ()


class Candidates(NamedTuple):
    """Likely next tokens, likeliest first; n = 0 where the drafter has nothing to say.

    ids: shape [n], int64. log_probs: shape [n], float64, natural logarithm of q over the whole vocabulary (they need
    not sum to one: the tail is cut off). power_sum: gives the sum of (q / its greatest) to a power over the whole
    vocabulary, until the drafter is fed again; None if nobody knows.
    """

    ids: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float64]
    power_sum: PowerSum | None = None


class Drafter(ABC):
    """One token sequence and what may follow it.

    Safety contract: not thread-safe, one caller at a time. `feed` may block for as long as the model takes; callers who
    must stay interruptible feed long prompts in chunks. After any chain of feeds and rollbacks the candidates are those
    of a fresh drafter fed with the same tokens. `rollback` costs no model evaluation.
    """

    info: DrafterInfo

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in the sequence."""

    @abstractmethod
    def feed(self, tokens: Sequence[int]) -> None:
        """Append one or more tokens and evaluate them.

        Raises ValueError for an id outside the vocabulary or an empty sequence, and DrafterError when the sequence
        would outgrow `info.context_tokens` or the runtime fails. After an error the sequence is as it was before.
        """

    @property
    def reads_blocks(self) -> bool:
        """Whether `feed_block` costs less than its tokens one by one."""
        return False

    def feed_block(self, tokens: Sequence[int], last: int) -> list[Candidates]:
        """As `feed`; gives the candidates after each of the last `last` tokens, 1 <= last <= len(tokens)."""
        if last < len(tokens):
            self.feed(tokens[:-last])
        found = []
        for token in tokens[-last:]:
            self.feed([token])
            found.append(self.candidates())
        return found

    @property
    def most_tips(self) -> int:
        """Ends of a tree that `feed_beside` evaluates at once for less than the time of one after the other; 1 if none.

        The end that is fed is one of them.
        """
        return 1

    def feed_beside(self, tokens: Sequence[int], length: int, paths: Sequence[Sequence[int]]) -> list[Candidates]:
        """As `feed`, and in the same evaluation looks at branches: gives what may follow the first `length` tokens of
        the sequence and then each of `paths`.

        0 < length < self.length after the feed; at most `most_tips` - 1 paths, none of them empty or longer than
        MOST_PATH_TOKENS. The sequence is what it would be without them. The candidates are those of a fresh drafter fed
        with the same tokens, up to the rounding of another batch; so are those of later calls. What was evaluated of a
        path is kept while there is room, for longer paths and for feeds that take it.

        Raises what `feed` raises, and ValueError for paths that it does not take.
        """
        if paths:
            raise ValueError(f"{self.info.name} looks at one end at a time, not at {len(paths)} branches beside it")
        self.feed(tokens)
        return []

    @abstractmethod
    def candidates(self) -> Candidates:
        """What may follow the last fed token: at most as many candidates as the drafter was made with.

        None at all is an answer, too: whoever asked need not ask again until the sequence has changed.

        Raises DrafterError when nothing was fed since the drafter was made or rolled back: feed at least the last token
        again.
        """

    @abstractmethod
    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens only. Raises ValueError unless 0 <= length <= self.length.

        A rollback that drops tokens forgets the candidates; the next call must be `feed`. One to 0 also empties the
        model inside: another drafter may be made around it next.
        """

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        """The target has this vocabulary; told at the start of every session, before any feed of it.

        A drafter with a vocabulary of its own ignores it. Returns notices for people, such as a store that is damaged.
        """
        return ()

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:  # noqa: B027 - optional
        """An answer is complete: the log, prompt first. Leaves sequence and candidates as they are.

        Raises DrafterError with what a person should know, once if it is so for many answers.
        """

    def vocabulary(self) -> Vocabulary | None:
        """The model's own tokens, for a target that has others; None if they are not known or there are none.

        Raises what reading them raises. Called at most once for each target, on any thread.
        """
        return None

    def model_text(self) -> ModelText:
        """The model's own tokenizer and chat template. Raises DrafterError if it has none or they cannot be used."""
        raise DrafterError(f"{self.info.name} has no words of its own")

    def speaker(self) -> Drafter | None:
        """The model in it, which can answer alone in its own tokens; None if there is none.

        It is shared: roll this drafter back to 0 before, and the model after.
        """
        return None

    def with_model(self, wrap: Callable[[Drafter], Drafter]) -> Drafter:
        """This drafter with `wrap` around its model, which is most often the whole of it."""
        return wrap(self)

    @abstractmethod
    def close(self) -> None:
        """Free the model. May be called more than once."""
