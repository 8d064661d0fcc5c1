"""What the drafter learns from: the target's own answers, to questions that the target asks itself and to a few forms.

No text from elsewhere is needed. A chat model that is given the beginning of a user's turn writes a question (Magpie,
arXiv 2406.08464); forms add the kinds of work that it seldom thinks of. The answers are sampled in equal parts greedily
and at T = 0.8, because a drafter is only ever asked about what its target writes (DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

THINGS = (
    "a bicycle", "bread", "a lighthouse", "a small garden", "the moon", "a river", "a neighbour", "coffee", "a school",
    "a museum", "a broken lamp", "a long journey", "the sea", "an old clock", "a job", "a birthday", "a dog", "winter",
    "a train", "a library", "music", "a bridge", "football", "a letter", "the kitchen", "a film", "the forest", "money",
)  # fmt: skip
FORMS = (
    "Write a short story about {}.", "Explain {} to a child.", "Give me five facts about {}.", "Write a poem about {}.",
    "Write a short e-mail about {}.", "What should I know about {}?", "List three reasons to like {}.",
    "Translate into French: I am thinking about {}.", "Translate into Spanish: We talked about {} yesterday.",
    "Write a Python function that describes {}.", "Write a Python class for {}.", "Write an HTML page about {}.",
    "Make a plan for a week with {}.", "Write a dialogue between two people about {}.", "Compare {} with {}.",
    "Mia has {n} apples and gets {m} more. How many does she have? Explain step by step.",
    "What is {n} times {m}? Explain step by step.", "Solve for x: {n}x + {m} = 50. Show every step.",
    "A ticket costs {n} dollars. What do {m} tickets cost? Explain step by step.",
    "Summarise in one sentence: {} was mentioned in the meeting, and everybody agreed to come back to it on the {n}th.",
    "Here is a list: {}, {}, {}. Which of these is the smallest, and why?",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A conversation. tokens: ids. answer_at: index of the answer's first token."""

    tokens: list[int]
    answer_at: int


def form(rng: random.Random) -> str:
    """A question made of a form."""
    text = rng.choice(FORMS)
    while "{}" in text:
        text = text.replace("{}", rng.choice(THINGS), 1)
    return text.replace("{n}", str(rng.randint(2, 19))).replace("{m}", str(rng.randint(2, 40)))


class Writer:
    """Lets the target write in batches.

    target, tokenizer: of transformers; the chat template names the roles.
    """

    def __init__(self, target: Any, tokenizer: Any, batch: int, seed: int) -> None:
        self._target, self._tokenizer, self._batch = target, tokenizer, batch
        self._rng = random.Random(seed)
        torch.manual_seed(seed)
        mark = "\u2063"  # no template writes it
        before, after = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        ).split(mark)
        self._before = tokenizer.encode(before, add_special_tokens=False)
        self._after = tokenizer.encode(after, add_special_tokens=False)
        self._end: int = tokenizer.eos_token_id

    def examples(self, budget_s: float, answer_tokens: int, question_tokens: int = 48) -> Iterator[Example]:
        """Conversations until the time is spent; at least one batch."""
        until = time.monotonic() + budget_s
        turn = 0
        while turn == 0 or time.monotonic() < until:
            half = self._batch // 2
            asked = [self._before] * half
            own = [self._cut(row) for row in self._write(asked, question_tokens, 1.0)] if half else []
            forms = [
                self._tokenizer.encode(form(self._rng), add_special_tokens=False) for _ in range(self._batch - half)
            ]
            prompts = [[*self._before, *question, *self._after] for question in [*own, *forms] if question]
            temperature = 0.8 if turn % 2 else 0.0
            for prompt, answer in zip(prompts, self._write(prompts, answer_tokens, temperature), strict=True):
                whole = self._cut(answer)
                ended = [self._end] if len(whole) < len(answer) else []
                yield Example([*prompt, *whole, *ended], len(prompt))
            turn += 1

    def _cut(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(self._end)] if self._end in tokens else tokens

    @torch.inference_mode()
    def _write(self, prompts: list[list[int]], length: int, temperature: float) -> list[list[int]]:
        """`length` tokens for each prompt; what follows the end of a turn means nothing."""
        longest = max(map(len, prompts))
        device = self._target.device
        inputs = torch.tensor([[self._end] * (longest - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        past, pieces = None, []
        over = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        for _ in range(length):
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            out = self._target(
                input_ids=inputs, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            past, logits = out.past_key_values, out.logits[:, -1].float()
            if temperature:
                inputs = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                inputs = logits.argmax(-1, keepdim=True)
            pieces.append(inputs)
            over |= inputs[:, 0] == self._end
            if bool(over.all()):
                break
            mask = torch.cat([mask, torch.ones_like(inputs)], 1)
        written: list[list[int]] = torch.cat(pieces, 1).tolist()
        return written
