"""How well the demo drafter guesses the demo target, on dialogues that neither was trained on.

::

    python -m models.demo.evaluate --data DIALOGUES --target models/demo/target --drafter models/demo/drafter \
        --also models/demo/drafter-onnx --json FILE

For each prompt (a dev dialogue cut before an assistant turn) the target answers alone; then every token of the answer
is guessed from what stands before it, as a drafter on the path would. Reported: acceptance greedy and at T = 0.8 with
shared noise; beside it, from the full distributions, what rejection sampling with all of q could reach (1 - TV) and
what one-hot drafts reach (p of q's favourite); and P(first j guesses right), which is what decides how far riding ahead
pays.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from edge_client.drafters import load_drafter
from models.demo.data import ASSISTANT, BEGIN, DEV_FILES, load_dialogues, render
from speculation.noise import Noise
from speculation.sampling import Guess, SamplingParams, filtered

ANSWER_TOKENS = 48
SURVIVAL_DEPTH = 8
TOP_CANDIDATES = 64


@dataclass(frozen=True)
class Answer:
    """What the target wrote. prompt, tokens: ids. log_p: shape [len(tokens), V], at T = 1."""

    prompt: list[int]
    tokens: list[int]
    log_p: np.ndarray[Any, np.dtype[np.float64]]


def prompts(tokenizer: PreTrainedTokenizerFast, data: Path, count: int) -> list[list[int]]:
    """Dev dialogues, each cut before a random assistant turn."""
    rng = np.random.default_rng(1)
    dialogues = load_dialogues(data, DEV_FILES)
    chosen = []
    for index in rng.choice(len(dialogues), count, replace=False):
        messages = dialogues[index]
        cut = 2 * int(rng.integers(0, len(messages) // 2)) + 1
        text = BEGIN + render(messages[:cut]) + ASSISTANT
        chosen.append(tokenizer.encode(text, add_special_tokens=False)[-400:])
    return chosen


@torch.inference_mode()
def answer(target: LlamaForCausalLM, prompt: list[int], params: SamplingParams, seed: int) -> Answer:
    """The target alone, token by token, under the shared noise."""
    noise = Noise(seed)
    everything = np.arange(target.config.vocab_size)
    tokens: list[int] = []
    rows = []
    inputs, past = torch.tensor([prompt]), None
    while len(tokens) < ANSWER_TOKENS and (not tokens or tokens[-1] != target.config.eos_token_id):
        out = target(input_ids=inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        logits = out.logits[0, -1].double().numpy()
        rows.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        scores = logits
        if not params.greedy:
            scores = filtered(logits, params) + noise.gumbel(len(prompt) + len(tokens), everything)
        tokens.append(int(scores.argmax()))
        inputs = torch.tensor([[tokens[-1]]])
    return Answer(prompt, tokens, np.stack(rows))


@torch.inference_mode()
def drafter_log_q(drafter: LlamaForCausalLM, given: Answer) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The drafter's distribution at every position of the answer, shape [n, V]."""
    ids = torch.tensor([given.prompt + given.tokens])
    logits = drafter(input_ids=ids).logits[0, len(given.prompt) - 1 : -1]
    return np.asarray(logits.double().log_softmax(-1).numpy())


def hits(given: Answer, log_q: np.ndarray[Any, np.dtype[np.float64]], params: SamplingParams, seed: int) -> list[bool]:
    """Whether the guess at each position is the target's token."""
    guess = Guess(params, seed)
    right = []
    for offset, (row, token) in enumerate(zip(log_q, given.tokens, strict=True)):
        top = np.argsort(-row)[:TOP_CANDIDATES]
        right.append(guess(len(given.prompt) + offset, top, row[top])[0] == token)
    return right


def exported_hits(spec: str, answers: list[Answer], params: SamplingParams, seeds: list[int]) -> list[list[bool]]:
    """The same with an exported drafter, run by the product's own code."""
    drafter = load_drafter(spec)
    assert drafter is not None
    result = []
    for given, seed in zip(answers, seeds, strict=True):
        guess = Guess(params, seed)
        drafter.rollback(0)
        drafter.feed(given.prompt)
        right = []
        for offset, token in enumerate(given.tokens):
            candidates = drafter.candidates()
            right.append(guess(len(given.prompt) + offset, *candidates)[0] == token)
            drafter.feed([token])
        result.append(right)
    drafter.close()
    return result


def survival(sequences: list[list[bool]]) -> list[float]:
    """P(first j guesses right) for j = 1..8, over every position where j guesses fit into the answer."""
    rates = []
    for depth in range(1, SURVIVAL_DEPTH + 1):
        windows = [all(s[i : i + depth]) for s in sequences for i in range(len(s) - depth + 1)]
        rates.append(round(float(np.mean(windows)), 4))
    return rates


def rate(sequences: list[list[bool]]) -> float:
    """Share of right guesses over all positions."""
    return round(float(np.mean([hit for s in sequences for hit in s])), 4)


def evaluate(data: Path, target_dir: Path, drafter_dir: Path, also: list[str], count: int) -> dict[str, Any]:
    """All figures, as a JSON-ready dictionary."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target_dir)
    target = LlamaForCausalLM.from_pretrained(target_dir, dtype=torch.float32).eval()
    drafter = LlamaForCausalLM.from_pretrained(drafter_dir, dtype=torch.float32).eval()
    chosen = prompts(tokenizer, data, count)
    seeds = list(range(1000, 1000 + count))
    report: dict[str, Any] = {"prompts": count}
    for name, params in (("greedy", SamplingParams(temperature=0.0)), ("t0.8", SamplingParams(temperature=0.8))):
        answers = [answer(target, prompt, params, seed) for prompt, seed in zip(chosen, seeds, strict=True)]
        log_qs = [drafter_log_q(drafter, given) for given in answers]
        sequences = [hits(a, q, params, s) for a, q, s in zip(answers, log_qs, seeds, strict=True)]
        figures: dict[str, Any] = {
            "tokens": sum(map(len, sequences)),
            "acceptance": rate(sequences),
            "first_j_right": survival(sequences),
            "by_answer_position": [
                round(float(np.mean([s[i] for s in sequences if len(s) > i])), 4) for i in range(SURVIVAL_DEPTH)
            ],
        }
        if not params.greedy:
            optimal, one_hot = [], []
            for given, log_q in zip(answers, log_qs, strict=True):
                p, q = (np.exp(rows / params.temperature) for rows in (given.log_p, log_q))
                p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
                optimal += np.minimum(p, q).sum(-1).tolist()
                one_hot += p[np.arange(len(p)), log_q.argmax(-1)].tolist()
            figures |= {
                "optimal_with_all_of_q": round(float(np.mean(optimal)), 4),
                "one_hot_drafts": round(float(np.mean(one_hot)), 4),
            }
        for spec in also:
            figures[f"acceptance_{Path(spec).name}"] = rate(exported_hits(spec, answers, params, seeds))
        report[name] = figures
    return report


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz dialogue files")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--drafter", type=Path, required=True, help="the drafter's transformers folder")
    parser.add_argument("--also", nargs="*", default=[], help="exported drafters to measure too")
    parser.add_argument("--prompts", type=int, default=80)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = evaluate(args.data, args.target, args.drafter, args.also, args.prompts)
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
