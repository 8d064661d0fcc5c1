"""Train the demo pair: tokenizer and target on dialogues, then the drafter on the target's own distribution.

::

    python -m models.demo.train target  --data DIALOGUES --out WORK --minutes 60
    python -m models.demo.train drafter --data DIALOGUES --out WORK --minutes 40

Both stages take a wall-clock budget: the learning rate follows the elapsed share of it, so the same recipe runs on a
laptop and on a GPU. A checkpoint is written every few minutes. `models/demo/README.md` says what was run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo.data import (
    ASSISTANT,
    BEGIN,
    DEV_FILES,
    END,
    TRAIN_FILES,
    USER,
    VOCAB_SIZE,
    Corpus,
    Message,
    encode,
    load_dialogues,
    train_tokenizer,
)

WINDOW_TOKENS = 512
CHECKPOINT_SECONDS = 300.0
Batch = tuple[torch.Tensor, torch.Tensor]  # tokens [B, T+1] int64, assistant mask [B, T+1] bool


def llama(layers: int) -> LlamaConfig:
    """Target and drafter differ in depth only, so the drafter can start from the target's own layers."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=0,
    )


class Windows:
    """Random windows of a corpus; window starts are uniform over tokens."""

    def __init__(self, corpus: Corpus, batch: int, window: int, seed: int) -> None:
        self.corpus, self.batch, self.window = corpus, batch, window
        self.rng = np.random.default_rng(seed)

    def __call__(self) -> Batch:
        starts = self.rng.integers(0, len(self.corpus.tokens) - self.window - 1, self.batch)
        rows = starts[:, None] + np.arange(self.window + 1)[None]
        return torch.from_numpy(self.corpus.tokens[rows]), torch.from_numpy(self.corpus.assistant[rows])


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms (Jordan et al., 2024)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def fit(
    model: LlamaForCausalLM,
    loss_of: Callable[[Batch, float], torch.Tensor],
    batches: Callable[[], Batch],
    minutes: float,
    save_to: Path,
) -> int:
    """Optimise until the time is spent; returns the number of tokens seen. Log lines go to standard output."""
    opts = optimizers(model)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    began = saved = time.monotonic()
    step = seen = 0
    smooth = math.nan
    while (share := (time.monotonic() - began) / (minutes * 60)) < 1:
        scale = min(1.0, (step + 1) / 100) * (0.05 + 0.95 * min(1.0, 1.4 * (1 - share)))
        for opt, rates in zip(opts, base, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        batch = batches()
        loss = loss_of(batch, share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step, seen = step + 1, seen + batch[0].shape[0] * (batch[0].shape[1] - 1)
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        now = time.monotonic()
        if step % 50 == 0:
            print(f"step {step} loss {smooth:.4f} tokens {seen} {seen / (now - began):.0f}/s", flush=True)
        if now - saved > CHECKPOINT_SECONDS:
            model.save_pretrained(save_to)
            saved = now
    model.save_pretrained(save_to)
    return seen


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, corpus: Corpus, windows: int = 120) -> dict[str, float]:
    """Dev-set perplexity over the first `windows` windows, of all tokens and of the assistant's own."""
    total = own = 0.0
    count = own_count = 0
    for start in range(0, windows * WINDOW_TOKENS, WINDOW_TOKENS):
        tokens = torch.from_numpy(corpus.tokens[start : start + WINDOW_TOKENS + 1])
        mask = torch.from_numpy(corpus.assistant[start + 1 : start + WINDOW_TOKENS + 1])
        losses = functional.cross_entropy(model(input_ids=tokens[None, :-1]).logits[0], tokens[1:], reduction="none")
        total, count = total + losses.sum().item(), count + len(losses)
        own, own_count = own + losses[mask].sum().item(), own_count + int(mask.sum())
    return {"perplexity": math.exp(total / count), "assistant_perplexity": math.exp(own / own_count)}


def train_target(data: Path, out: Path, minutes: float, compiled: bool) -> None:
    """Train tokenizer and target on the dialogues; the assistant's words weigh most."""
    dialogues = load_dialogues(data, TRAIN_FILES)
    tokenizer = train_tokenizer(dialogues)
    tokenizer.save_pretrained(out / "target")
    tokenizer.save_pretrained(out / "drafter")
    corpus = encode(tokenizer, dialogues, shuffle_seed=0)
    model = LlamaForCausalLM(llama(layers=8))
    print(f"target {model.num_parameters() / 1e6:.2f} M parameters, corpus {len(corpus.tokens)} tokens", flush=True)

    def loss_of(batch: Batch, _share: float) -> torch.Tensor:
        tokens, own = batch
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1]).logits
        losses = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        weight = 0.4 + 0.6 * own[:, 1:].flatten().float()  # the assistant's words are what the target is for
        return (losses * weight).sum() / weight.sum()

    seen = fit(
        model,
        torch.compile(loss_of) if compiled else loss_of,
        Windows(corpus, batch=8, window=WINDOW_TOKENS, seed=1),
        minutes,
        out / "target",
    )
    dev = encode(tokenizer, load_dialogues(data, DEV_FILES), shuffle_seed=0)
    report = {"minutes": minutes, "tokens_seen": seen, **perplexity(model.eval(), dev)}
    (out / "target_report.json").write_text(json.dumps(report, indent=1))
    print(report, flush=True)


@torch.no_grad()
def continuations(
    target: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[list[Message]],
    tokens_wanted: int,
    seed: int,
) -> Corpus:
    """Dialogues that the target goes on with itself from a real opening, greedy and sampled in equal parts.

    A drafter is only ever asked about what the target writes, so that is what it should see (Zhou et al.,
    DistillSpec, 2310.08461).
    """
    rng = np.random.default_rng(seed)
    token_id = tokenizer.backend_tokenizer.token_to_id
    roles = {token_id(USER): False, token_id(ASSISTANT): True}
    end, begin = token_id(END), token_id(BEGIN)
    single = encode(tokenizer, dialogues, shuffle_seed=seed)
    starts = np.flatnonzero(single.tokens == begin)
    opening, length, batch = 48, 256, 64
    starts = starts[np.diff(np.append(starts, len(single.tokens))) > opening]
    tokens: list[int] = []
    own: list[bool] = []
    while len(tokens) < tokens_wanted:
        rows = np.stack([single.tokens[s : s + opening] for s in rng.choice(starts, batch)])
        temperature = 0.8 if rng.random() < 0.6 else 0.0
        past = None
        inputs = torch.from_numpy(rows)
        pieces = [inputs]
        for _ in range(length):
            out = target(input_ids=inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, logits = out.past_key_values, out.logits[:, -1].float()
            if temperature:
                inputs = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                inputs = logits.argmax(-1, keepdim=True)
            pieces.append(inputs)
        for row in torch.cat(pieces, 1).tolist():
            mine = False
            for token in row:
                mine = False if token == begin else roles.get(token, mine)
                tokens.append(token)
                own.append(mine and token not in roles)
                mine = mine and token != end
        print(f"continuations {len(tokens)} tokens", flush=True)
    return Corpus(np.array(tokens, dtype=np.int64), np.array(own))


def train_drafter(data: Path, out: Path, minutes: float, sample_tokens: int, compiled: bool) -> None:
    """Distil the drafter from the target, on people's words and on the target's own."""
    target = LlamaForCausalLM.from_pretrained(out / "target", dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "target")
    dialogues = load_dialogues(data, TRAIN_FILES)
    corpus = encode(tokenizer, dialogues, shuffle_seed=0)
    own_words = continuations(target.to(torch.bfloat16), tokenizer, dialogues, sample_tokens, seed=5)
    target.float()
    drafter = LlamaForCausalLM(llama(layers=2))
    state = target.state_dict()
    first, last = 0, target.config.num_hidden_layers - 1
    kept = {k: v for k, v in state.items() if ".layers." not in k}
    for ours, theirs in ((0, first), (1, last)):
        mark = f".layers.{theirs}."
        kept |= {k.replace(mark, f".layers.{ours}."): v for k, v in state.items() if mark in k}
    drafter.load_state_dict(kept)
    print(f"drafter {drafter.num_parameters() / 1e6:.2f} M parameters", flush=True)
    sources = (Windows(corpus, 4, WINDOW_TOKENS, 2), Windows(own_words, 8, 256, 3))
    turn = 0

    def batches() -> Batch:
        nonlocal turn
        turn += 1
        return sources[turn % 3 == 0]()  # one batch of the target's words to two of people's, which are many more

    def divergence(tokens: torch.Tensor, own: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                p_logits = target(input_ids=tokens[:, :-1]).logits
            q_logits = drafter(input_ids=tokens[:, :-1]).logits
        p_logits, q_logits = p_logits.float(), q_logits.float()
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        # Acceptance is 1 - TV (Leviathan et al., 2211.17192), so TV at the demo's temperature is the loss that counts
        # once KL has brought the two close (Goel et al., 2403.00858).
        tv = 0.5 * ((p_logits / 0.8).softmax(-1) - (q_logits / 0.8).softmax(-1)).abs().sum(-1)
        weight = 0.4 + 0.6 * own[:, 1:].float()
        loss: torch.Tensor = (((1.0 - 0.8 * hard) * kl + 2.0 * hard * tv) * weight).sum() / weight.sum()
        return loss

    compiled_divergence = torch.compile(divergence) if compiled else divergence

    def loss_of(batch: Batch, share: float) -> torch.Tensor:
        return compiled_divergence(*batch, torch.tensor(min(1.0, max(0.0, (share - 0.3) / 0.3))))

    seen = fit(drafter, loss_of, batches, minutes, out / "drafter")
    dev = encode(tokenizer, load_dialogues(data, DEV_FILES), shuffle_seed=0)
    report = {"minutes": minutes, "tokens_seen": seen, **perplexity(drafter.eval(), dev)}
    (out / "drafter_report.json").write_text(json.dumps(report, indent=1))
    print(report, flush=True)


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["target", "drafter"])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz dialogue files")
    parser.add_argument("--out", type=Path, required=True, help="work folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock budget (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--sample-tokens", type=int, default=300_000, help="drafter: tokens the target writes first")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss: 1.4x faster on 2 CPU cores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "target":
        train_target(args.data, args.out, args.minutes, args.compile)
    else:
        train_drafter(args.data, args.out, args.minutes, args.sample_tokens, args.compile)


if __name__ == "__main__":
    main()
