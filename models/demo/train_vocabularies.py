"""Train drafters that differ in nothing but their tokenizer, to measure what a foreign vocabulary costs.

::

    python -m models.demo.train_vocabularies --data DIALOGUES --target models/demo/target --out WORK

`same` has the demo tokenizer. `other` and `foreign` have tokenizers of SentencePiece's kind (spaces as "▁", bytes as a
fallback, digits one by one): `other` one of 6,144 entries that makes about as many tokens of a text, as vocabularies of
different models do; `foreign` one of 4,096 that has seen only one of the sets, and makes a third more. All are the demo
drafter's shape, begin with the target's first and last layer and a random embedding, and take turns on the same
dialogues, so that equal shares of one wall clock are equal work. They learn the text, not the target's distribution,
which only a drafter of the same vocabulary could. `python -m benchmarks.vocabularies`
compares them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo.data import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    SPECIAL_TOKENS,
    TRAIN_FILES,
    VOCAB_SIZE,
    Message,
    encode,
    load_dialogues,
)
from models.demo.train import WINDOW_TOKENS, Windows, llama, optimizers

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BATCH = 6
KINDS = {"same": (VOCAB_SIZE, ()), "other": (6144, TRAIN_FILES), "foreign": (VOCAB_SIZE, TRAIN_FILES[1:])}


def train_other_tokenizer(dialogues: Iterable[list[Message]], vocabulary_size: int = VOCAB_SIZE) -> Tokenizer:
    """A BPE of SentencePiece's kind with the same special tokens."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, fuse_unk=True))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[*SPECIAL_TOKENS, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator((m["content"] for d in dialogues for m in d), trainer)
    parsed = json.loads(tokenizer.to_str())
    parsed["added_tokens"] = [added for added in parsed["added_tokens"] if added["content"] in SPECIAL_TOKENS]
    return Tokenizer.from_str(json.dumps(parsed))


def with_template(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers wants it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=BEGIN, model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Student:
    """One drafter in training."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, data: Path, target: LlamaForCausalLM) -> None:
        self.folder = folder
        tokenizer.save_pretrained(folder)
        config = llama(layers=2)
        config.vocab_size = len(tokenizer)
        self.model = LlamaForCausalLM(config)
        last = target.config.num_hidden_layers - 1
        layers = {
            key.replace(f".layers.{theirs}.", f".layers.{ours}."): value
            for ours, theirs in ((0, 0), (1, last))
            for key, value in target.state_dict().items()
            if f".layers.{theirs}." in key
        }
        self.model.load_state_dict(layers, strict=False)
        corpus = encode(tokenizer, load_dialogues(data, TRAIN_FILES), shuffle_seed=0)
        print(f"{folder.name}: {self.model.num_parameters() / 1e6:.2f} M parameters, {len(corpus.tokens)} tokens")
        self._batches = Windows(corpus, BATCH, WINDOW_TOKENS, seed=2)
        self._optimizers = optimizers(self.model)
        self._rates = [[group["lr"] for group in each.param_groups] for each in self._optimizers]
        self.loss = 0.0

    def step(self, number: int, share: float) -> None:
        """One batch. share: how much of the time is spent, for the learning rate."""
        scale = min(1.0, (number + 1) / 50) * (0.03 + 0.97 * min(1.0, 1.4 * (1 - share)))
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        tokens, own = self._batches()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=tokens[:, :-1]).logits
        losses = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        weight = 0.4 + 0.6 * own[:, 1:].flatten().float()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.loss = loss.item() if not number else 0.98 * self.loss + 0.02 * loss.item()


def main() -> None:
    """Train both as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz dialogue files")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the drafters")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=36.0, help="for all together (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    target = LlamaForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    tokenizers = {}
    for kind in args.kinds:
        size, files = KINDS[kind]
        if files:
            tokenizers[kind] = with_template(train_other_tokenizer(load_dialogues(args.data, files), size))
        else:
            tokenizers[kind] = PreTrainedTokenizerFast.from_pretrained(args.target)
    students = [Student(args.out / name, tokenizer, args.data, target) for name, tokenizer in tokenizers.items()]
    began, number = time.monotonic(), 0
    while (share := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        for student in students:
            student.step(number, share)
        number += 1
        if number % 50 == 0:
            losses = ", ".join(f"{student.folder.name} {student.loss:.3f}" for student in students)
            print(f"step {number}, {share:.0%}: {losses}", flush=True)
        if number % 400 == 0:
            for student in students:
                student.model.save_pretrained(student.folder)
    for student in students:
        student.model.save_pretrained(student.folder)


if __name__ == "__main__":
    main()
