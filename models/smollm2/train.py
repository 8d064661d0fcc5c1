"""Make a drafter for a target within a time: data, training, export, evaluation.

::

    python -m models.smollm2.train --target FOLDER --output OUT --budget-s 1500
    python -m models.smollm2.train --target FOLDER --output OUT --budget-s 540 --device cuda --batch 256 --layers 4

FOLDER is any Llama-shaped chat model with a byte-level BPE and a tied head, such as the target that `make demo
MODEL=smollm2` makes. Two fifths of the time the target writes, the rest the drafter learns. It begins as the target's
own first and last layers and the rows of the embedding that the answers use (`edge_client.export.trimming`), and learns
the target's distribution over these by total variation, which is what acceptance is made of (Direct Alignment, arXiv
2403.00858). OUT gets `drafter/` (transformers), `drafter-onnx/`, with llama.cpp `drafter.gguf`, and `training.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edge_client.export.exporting import export, size_bytes
from edge_client.export.trimming import rows, spellings, trim
from models.smollm2.data import Example, Writer

DATA_SHARE = 0.4
TEMPERATURE = 0.8
LEARNING_RATE = 6e-4
HELD_OUT = 16  # examples, at most one in eight


class Distillation:
    """Target and drafter side by side on the same text, each in its own tokens.

    kept: the target's id of each of the drafter's tokens. spelled: the drafter's ids for each of the target's.
    """

    def __init__(self, target: Any, drafter: Any, kept: Sequence[int], spelled: Sequence[Sequence[int]]) -> None:
        self._target, self._drafter = target, drafter
        self._kept = torch.tensor(kept, device=target.device)
        self._spelled = spelled

    def losses(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Total variation and cross-entropy at every token of the answers, each of shape [n].

        What the target gives to tokens that were left out counts as lost in the total variation.
        """
        theirs, their_places, ours, our_places = [], [], [], []
        for row, example in enumerate(examples):
            ids: list[int] = []
            for at, token in enumerate(example.tokens[:-1]):
                ids += self._spelled[token]
                if at + 1 >= example.answer_at:
                    their_places.append((row, at))
                    our_places.append((row, len(ids) - 1))
            theirs.append(example.tokens[:-1])
            ours.append(ids)
        with torch.no_grad():
            p = self._at(self._target, theirs, their_places)
            p = (p.float() / TEMPERATURE).softmax(-1)[:, self._kept]
        log_q = (self._at(self._drafter, ours, our_places).float() / TEMPERATURE).log_softmax(-1)
        return 0.5 * ((p - log_q.exp()).abs().sum(-1) + (1 - p.sum(-1))), -(p * log_q).sum(-1)

    def _at(self, model: Any, sequences: list[list[int]], places: list[tuple[int, int]]) -> torch.Tensor:
        """Logits at places (row, index): the head sees no others."""
        longest = max(map(len, sequences))
        device = model.device
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences], device=device)
        states = model.model(input_ids=ids).last_hidden_state  # what is padded stands behind and is not seen
        at = torch.tensor(places, device=device)
        logits: torch.Tensor = model.lm_head(states[at[:, 0], at[:, 1]])
        return logits


def shrunk(target: Any, layers: int, kept: Sequence[int]) -> Any:
    """The target with its first layers and its last one, and these rows of its embedding."""
    source = target.config
    config = LlamaConfig(
        **{**source.to_dict(), "num_hidden_layers": layers, "vocab_size": len(kept), "dtype": "float32"}
    )
    for name in ("bos", "eos", "pad"):
        old = getattr(source, f"{name}_token_id")
        setattr(config, f"{name}_token_id", kept.index(old) if old in kept else None)
    state = target.state_dict()
    chosen = [*range(layers - 1), source.num_hidden_layers - 1]
    taken = {"model.norm.weight": state["model.norm.weight"]}
    taken["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][torch.tensor(kept, device=target.device)]
    for ours, theirs in enumerate(chosen):
        mark = f"model.layers.{theirs}."
        taken |= {f"model.layers.{ours}.{name[len(mark) :]}": v for name, v in state.items() if name.startswith(mark)}
    drafter: Any = LlamaForCausalLM(config)
    drafter.load_state_dict(taken, strict=False)  # the head is tied
    return drafter.float().to(target.device)


def fit(
    both: Distillation, drafter: Any, examples: Sequence[Example], budget_s: float, batch: int, seed: int
) -> dict[str, Any]:
    """Train until the time is spent; returns what is to be told."""
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    held = examples[: min(HELD_OUT, len(examples) // 8)]
    learnt = list(examples[len(held) :])
    rng = random.Random(seed)
    began, step, seen, smooth = time.monotonic(), 0, 0, math.nan
    told = {"overlap_before": overlap(both, held)}
    while (share := (time.monotonic() - began) / budget_s) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * min(1.0, 1.3 * (1 - share)))
        chosen = rng.sample(learnt, min(batch, len(learnt)))
        variation, entropy = both.losses(chosen)
        hard = min(1.0, max(0.0, (share - 0.15) / 0.2))  # total variation has no slope where q is nowhere near p
        loss = (hard * 2 * variation + (1 - 0.9 * hard) * entropy).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seen = step + 1, seen + len(variation)
        now = 1 - variation.mean().item()
        smooth = now if math.isnan(smooth) else 0.95 * smooth + 0.05 * now
        if step % 20 == 0:
            print(f"step {step}, {share:.0%} of the time, overlap {smooth:.3f}, {seen} tokens", flush=True)
    return told | {"steps": step, "tokens_seen": seen, "overlap_after": overlap(both, held)}


@torch.no_grad()
def overlap(both: Distillation, examples: Sequence[Example]) -> float | None:
    """Mean of 1 - TV over held-out answers: the acceptance that any rule could reach. None without examples."""
    if not examples:
        return None
    found = [1 - both.losses([example])[0] for example in examples]
    return round(torch.cat(found).mean().item(), 4)


def make(
    target_folder: Path, output: Path, budget_s: float, *, device: str, layers: int, vocabulary: int, batch: int,
    answer_tokens: int, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """All of it; returns what `training.json` says."""
    began = time.monotonic()
    target: Any = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    target.to(device).eval()
    torch.set_float32_matmul_precision("high")  # of a GPU; CPUs have no other
    target.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    whole: dict[str, Any] = json.loads((target_folder / "tokenizer.json").read_text(encoding="utf-8"))
    writer = Writer(target, tokenizer, batch, seed)
    size = len(whole["model"]["vocab"])  # some models have more rows than tokens
    written = writer.examples(budget_s * DATA_SHARE, answer_tokens)
    examples = [e for e in written if len(e.tokens) > e.answer_at and max(e.tokens) < size]
    tokens = sum(len(e.tokens) - e.answer_at for e in examples)
    print(f"the target wrote {len(examples)} answers, {tokens} tokens", flush=True)
    used = itertools.chain.from_iterable(e.tokens for e in examples)
    trimmed = trim(whole, used, min(vocabulary, size))
    kept = rows(whole, trimmed)
    drafter: Any = shrunk(target, layers, kept)
    print(f"drafter: {drafter.num_parameters() / 1e6:.1f} M parameters, {len(kept)} tokens", flush=True)
    both = Distillation(target, drafter, kept, spellings(whole, trimmed))
    told = fit(both, drafter, examples, budget_s - (time.monotonic() - began), max(2, batch // 4), seed)
    folder = output / "drafter"
    drafter.to(torch.bfloat16).save_pretrained(folder)
    named = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(trimmed)), **named)
    fast.chat_template = tokenizer.chat_template
    fast.save_pretrained(folder)
    sizes = {"onnx": size_bytes(export("onnx", folder, output / "drafter-onnx"))}
    if importlib.util.find_spec("llama_cpp"):
        sizes["gguf"] = size_bytes(export("gguf", folder, output / "drafter.gguf"))
    told = {"budget_s": budget_s, "answers": len(examples), "tokens_written": tokens, "bytes": sizes} | told
    (output / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="transformers folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--budget-s", type=float, default=540.0, help="wall-clock time (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="of the drafter (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of the drafter (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=24, help="conversations at a time (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=128, help="at most (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    told = make(
        args.target, args.output, args.budget_s, device=args.device, layers=args.layers, vocabulary=args.vocabulary,
        batch=args.batch, answer_tokens=args.answer_tokens,
    )  # fmt: skip
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
