"""Small models of the hub that speak the target's vocabulary: suggestions, by what the verifier tells of its target.

A family is known by tokens that no other has, whatever name an operator gave the model, or else by its name. Whether
a suggestion fits is still measured: here are only guesses at what is worth a download.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from outrider_models.hub import download_bytes
from outrider_models.hub_model import HubModel


class Family(NamedTuple):
    """marks: tokens that its vocabulary has, and foreign ones that it has not. drafters: the smallest first."""

    name: re.Pattern[str]
    marks: frozenset[str]
    foreign: frozenset[str]
    drafters: tuple[HubModel, ...]


class Suggestion(NamedTuple):
    """model: as `--drafter` takes it. download_bytes: what would still have to come."""

    model: HubModel
    download_bytes: int


def _family(name: str, marks: str, foreign: str, *drafters: HubModel) -> Family:
    return Family(re.compile(name, re.IGNORECASE), frozenset(marks.split()), frozenset(foreign.split()), drafters)


FAMILIES = (
    _family(
        r"qwen-?3(?!\.)", "<|im_start|> <|fim_prefix|> <think>", "", HubModel("ggml-org/Qwen3-0.6B-GGUF", choice="Q4_0")
    ),
    _family(r"qwen-?2\.5", "<|im_start|> <|fim_prefix|>", "<think>", HubModel("bartowski/Qwen2.5-0.5B-Instruct-GGUF")),
    _family(r"llama-?3", "<|eot_id|> <|start_header_id|>", "", HubModel("bartowski/Llama-3.2-1B-Instruct-GGUF")),
    _family(
        r"gemma-?3(?!n)",
        "<start_of_turn> <start_of_image>",
        "<audio_soft_token>",
        HubModel("unsloth/gemma-3-1b-it-GGUF"),
    ),
    _family(r"smollm2", "<|im_start|> <repo_name> <reponame>", "", HubModel("bartowski/SmolLM2-135M-Instruct-GGUF")),
)


def family_of(model: str, tokens: Collection[str]) -> Family | None:
    """The target's family, by its vocabulary if that is known, else by its name."""
    for family in FAMILIES:
        if family.marks <= set(tokens) and not family.foreign & set(tokens) if tokens else family.name.search(model):
            return family
    return None


def suggestions(models: Sequence[HubModel]) -> list[Suggestion]:
    """With their sizes as the hub tells them. Raises DrafterError if the hub cannot be asked."""
    return [Suggestion(model, download_bytes(model)) for model in models]
