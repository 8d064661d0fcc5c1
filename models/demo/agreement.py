"""How well an exported drafter still says what its transformers source says, on real text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_client.drafters.base import Drafter
from models.demo.data import Message, render

DIALOGUES: list[list[Message]] = [
    [
        {"role": "user", "content": "I need to find a place to eat. I would like something in Oakland."},
        {"role": "assistant", "content": "What kind of food would you like to eat?"},
        {"role": "user", "content": "I am thinking of Chinese food, and it should not be expensive."},
        {"role": "assistant", "content": "How about Bay Fung Tong? It is a nice restaurant in Oakland."},
        {"role": "user", "content": "That sounds good. Can you book a table for two at half past six in the evening?"},
        {
            "role": "assistant",
            "content": "Please confirm: a table for 2 people at Bay Fung Tong in Oakland at 6:30 pm.",
        },
        {"role": "user", "content": "Yes, thank you."},
        {"role": "assistant", "content": "Your reservation has been made. Is there anything else I can help you with?"},
    ],
    [
        {"role": "user", "content": "Will it rain in San Francisco on the 8th of this month?"},
        {
            "role": "assistant",
            "content": "There is a 24 percent chance of rain and the average temperature is 79 degrees.",
        },
        {"role": "user", "content": "Great. I want to see a movie there. Which ones are playing?"},
        {"role": "assistant", "content": "I found 10 movies for you. How about Breakthrough, Captain Marvel or Dumbo?"},
        {"role": "user", "content": "No, thanks. That is all for today."},
        {"role": "assistant", "content": "Have a great day!"},
    ],
]


@dataclass(frozen=True)
class Agreement:
    """tokens: positions compared. argmax: share of them where both like the same token best. overlap: mean of 1 - TV
    between the two distributions, which is the best acceptance rate one could get against the other. ms_per_token:
    median time of feeding one token and asking for candidates.
    """

    tokens: int
    argmax: float
    overlap: float
    ms_per_token: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens of dialogue: same best token at {self.argmax:.1%}, "
            f"overlap of the distributions {self.overlap:.4f}, {self.ms_per_token:.3f} ms per token"
        )


@torch.inference_mode()
def compare(source: Path, drafter: Drafter, dialogues: Iterable[list[Message]] = DIALOGUES) -> Agreement:
    """Compare a drafter with the transformers folder it was made from, token by token, over `dialogues`.

    The overlap counts only the candidates that the drafter gives, so make it with its whole vocabulary for a true one.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    same: list[bool] = []
    overlaps: list[float] = []
    seconds: list[float] = []
    for messages in dialogues:
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = begin + tokenizer.encode(render(messages), add_special_tokens=False)
        ids = ids[: drafter.info.context_tokens]
        expected = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1).numpy()
        drafter.rollback(0)
        for token, row in zip(ids, expected, strict=True):
            began = time.perf_counter()
            drafter.feed([token])
            found = drafter.candidates()
            seconds.append(time.perf_counter() - began)
            same.append(bool(found.ids[0] == row.argmax()))
            overlaps.append(float(np.minimum(np.exp(found.log_probs), row[found.ids]).sum()))
    return Agreement(len(same), statistics.mean(same), statistics.mean(overlaps), 1e3 * statistics.median(seconds))
