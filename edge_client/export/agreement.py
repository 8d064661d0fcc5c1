"""How well an exported drafter still says what its transformers source says, and what that costs in acceptance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_client.drafters.base import Drafter
from speculation.noise import Noise

SEED, TEMPERATURE = 20, 0.8
SAMPLES = (
    "The lighthouse keeper climbed the stairs every evening before the sun went down. He trimmed the wick, filled the "
    "lamp with oil and wrote the weather into a book that nobody read. When the first ships without sails came past, "
    "he wrote that down too, and the next morning there was a letter asking him how much coal the light would need.",
    "Q: How do I boil an egg so that the yolk stays soft?\nA: Put the egg into boiling water, wait six minutes, then "
    "hold it under cold water.\nQ: And if it comes from the fridge?\nA: Then give it half a minute more.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
)


@dataclass(frozen=True)
class Agreement:
    """A drafter against its source.

    tokens: positions compared. argmax: share of them where both like the same token best, which is the acceptance at
    temperature 0 against the source itself. sampled: share where both draw the same token at T = 0.8 with shared noise.
    overlap: mean of 1 - TV between the two distributions, the best acceptance that any rule could reach.
    max_difference: largest difference of a log-probability. ms_per_token: median time of feeding one token and asking
    for candidates.
    """

    tokens: int
    argmax: float
    sampled: float
    overlap: float
    max_difference: float
    ms_per_token: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens of text against the source: same best token at {self.argmax:.1%}, same draw at "
            f"T = {TEMPERATURE} at {self.sampled:.1%}, overlap of the distributions {self.overlap:.4f}, "
            f"largest difference of a logit {self.max_difference:.3g}, {self.ms_per_token:.3f} ms per token"
        )


def sequences(source: Path, texts: Iterable[str] = SAMPLES) -> list[list[int]]:
    """Texts as token ids of the source's tokenizer, each after its begin token."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [begin + tokenizer.encode(text, add_special_tokens=False) for text in texts]


@torch.inference_mode()
def compare(source: Path, drafter: Drafter, tokens: Iterable[Sequence[int]]) -> Agreement:
    """Compare a drafter with the transformers folder it was made from, token by token.

    Only the candidates that the drafter gives count, so make it with its whole vocabulary for a true overlap.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    noise = Noise(SEED)
    same: list[bool] = []
    drawn: list[bool] = []
    overlaps: list[float] = []
    differences: list[float] = []
    seconds: list[float] = []
    for sequence in tokens:
        ids = list(sequence)[: drafter.info.context_tokens]
        expected = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
        gumbel_ids = np.arange(expected.shape[1])
        drafter.rollback(0)
        for position, (token, row) in enumerate(zip(ids, expected, strict=True), 1):
            began = time.perf_counter()
            drafter.feed([token])
            found = drafter.candidates()
            seconds.append(time.perf_counter() - began)
            gumbel = noise.gumbel(position, gumbel_ids)
            ours = found.ids[(found.log_probs / TEMPERATURE + gumbel[found.ids]).argmax()]
            same.append(bool(found.ids[0] == row.argmax()))
            drawn.append(bool(ours == (row / TEMPERATURE + gumbel).argmax()))
            overlaps.append(float(np.exp(np.minimum(found.log_probs, row[found.ids])).sum()))
            differences.append(float(np.abs(found.log_probs - row[found.ids]).max()))
    return Agreement(
        tokens=len(same),
        argmax=statistics.mean(same),
        sampled=statistics.mean(drawn),
        overlap=statistics.mean(overlaps),
        max_difference=max(differences),
        ms_per_token=1e3 * statistics.median(seconds),
    )
