"""Dialogues as token windows: the chat format, the tokenizer, and the training corpus.

The chat format is one special token per role and one that ends a turn::

    <|endoftext|><|user|>text<|end|><|assistant|>text<|end|>...

Nothing here knows about models.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

BEGIN, USER, ASSISTANT, END, SYSTEM = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"
SPECIAL_TOKENS = [BEGIN, USER, ASSISTANT, END, SYSTEM]
VOCAB_SIZE = 4096
TRAIN_FILES = ("sgd_train.jsonl.xz", "taskmaster4.jsonl.xz")
DEV_FILES = ("sgd_dev.jsonl.xz",)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Message = dict[str, str]
TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Dialogues laid end to end.

    tokens: shape [N], int64. assistant: shape [N], true where the token is the assistant's own (the closing
    ``<|end|>`` included), which is what a drafter will be asked to guess.
    """

    tokens: TokenArray
    assistant: npt.NDArray[np.bool_]


def load_dialogues(data: Path, files: Iterable[str]) -> list[list[Message]]:
    """All dialogues of the named files. Raises FileNotFoundError with the missing path."""
    return [messages for name in files for messages in _read(data / name)]


def _read(path: Path) -> Iterator[list[Message]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["messages"]


def render(messages: Iterable[Message]) -> str:
    """The text of a dialogue in the chat format, without the begin token."""
    return "".join(f"<|{m['role']}|>{m['content']}{END}" for m in messages)


def train_tokenizer(dialogues: Iterable[list[Message]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,096 entries with the roles as special tokens and the chat template attached."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((m["content"] for d in dialogues for m in d), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=BEGIN, model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: list[list[Message]], shuffle_seed: int) -> Corpus:
    """Shuffle the dialogues and lay them end to end, each opened by the begin token."""
    order = list(dialogues)
    random.Random(shuffle_seed).shuffle(order)
    backend = tokenizer.backend_tokenizer
    ids_of = {t: i for i, t in enumerate(SPECIAL_TOKENS)}
    user, assistant, end = ids_of[USER], ids_of[ASSISTANT], ids_of[END]
    tokens: list[int] = []
    own: list[bool] = []
    for messages in order:
        tokens.append(tokenizer.bos_token_id)
        own.append(False)
        for message in messages:
            mine = message["role"] == "assistant"
            ids = backend.encode(message["content"], add_special_tokens=False).ids
            tokens += [assistant if mine else user, *ids, end]
            own += [False, *[mine] * (len(ids) + 1)]
    return Corpus(np.array(tokens, dtype=np.int64), np.array(own))
