"""What another vocabulary costs: two drafters alike but for their tokenizer, drafting for the demo target.

They come from `python -m models.demo.train_vocabularies` and an export to ONNX. Two things are measured, greedy and at
T = 0.8, the drafters taking turns:

- guesses: along answers that the target wrote, each drafter drafts lines of at most eight tokens, as on a device.
  Counted are right guesses, the model's evaluations per guess, and accepted characters per second of drafting if an
  evaluation takes as long as it does here (a tenth of a millisecond) or as long as that of a device's model.
- sessions: real ones, over an emulated link, with drafters as slow as a device's. Characters accepted per second of the
  answer, and milliseconds per answered character; plain streaming runs beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import report
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Candidates, Drafter
from edge_client.drafters.vocabulary.strategy import match
from models.demo.evaluate import answer
from netlab.console import print_whole
from netlab.experiments import rig
from netlab.experiments.drafters import Slowed
from netlab.link_settings import LinkSettings
from netlab.prompts import OPENINGS
from netlab.race import chat
from speculation.sampling import Guess, SamplingParams
from speculation.vocabulary.correspondence import Way
from speculation.vocabulary.vocabulary import Vocabulary

PARAMS = {"greedy": SamplingParams(temperature=0.0), "t0.8": SamplingParams(temperature=0.8)}
LINE_TOKENS = 8
ANSWER_TOKENS = 48
DEVICE_MS = (2.0, 10.0)  # of a small model's token on a good laptop, on a telephone


class Told(Slowed):
    """A drafter as slow as a device's that tells its vocabulary and counts its evaluations."""

    def __init__(self, drafter: Drafter, draft_ms: float = 0.0) -> None:
        super().__init__(drafter, draft_ms)
        self.evaluations = 0

    def feed(self, tokens: Sequence[int]) -> None:
        """One evaluation."""
        self.evaluations += 1
        super().feed(tokens)

    def vocabulary(self) -> Vocabulary | None:
        """The drafter's."""
        return self._drafter.vocabulary()


@dataclass
class Tally:
    """Of one drafter at one temperature. seconds: of drafting, on this machine."""

    guesses: int = 0
    right: int = 0
    characters: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """As they go into the table."""
        per_evaluation = self.characters / max(1, self.evaluations)
        rates = {
            f"accepted_characters_per_s_at_{ms:g}_ms": round(
                self.characters / (self.seconds + self.evaluations * ms / 1e3), 1
            )
            for ms in DEVICE_MS
        }
        return {
            "acceptance": round(self.right / self.guesses, 4),
            "accepted_characters_per_guess": round(self.characters / self.guesses, 3),
            "evaluations_per_guess": round(self.evaluations / self.guesses, 3),
            "accepted_characters_per_evaluation": round(per_evaluation, 3),
            "drafting_ms_per_guess": round(1e3 * self.seconds / self.guesses, 3),
            "accepted_characters_per_s_as_fast_as_here": round(self.characters / self.seconds, 1),
            **rates,
        }


def ride(drafter: Drafter, prompt: list[int], tokens: list[int], guess: Guess, target: Vocabulary) -> Iterator[bytes]:
    """Lines of guesses along an answer, each until the first wrong guess. Gives b"" for that, else what was right."""
    drafter.rollback(0)
    drafter.feed(prompt)
    at = 0
    while at < len(tokens):
        for _ in range(LINE_TOKENS):
            found: Candidates = drafter.candidates()
            drawn = guess(len(prompt) + at, *found)[0] if len(found.ids) else -1
            right = drawn == tokens[at]
            yield target.spellings[drawn] or b"." if right else b""
            drafter.feed([tokens[at]])
            at += 1
            if not right or at == len(tokens):
                break


def guesses(folders: dict[str, Path], prompts: int) -> dict[str, Any]:
    """Rows by way and temperature."""
    torch.set_num_threads(1)
    folder = rig.DEMO / "target"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    target = Vocabulary(
        tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))),
        frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special),
    )
    opened = {name: Told(_opened(path)) for name, path in folders.items()}
    matches = {name: match(drafter, target, model.config.vocab_size) for name, drafter in opened.items()}
    tallies = {(name, sampling): Tally() for name in folders for sampling in PARAMS}
    for number in range(prompts):
        opening = chat(OPENINGS[number % len(OPENINGS)])
        text = tokenizer.apply_chat_template(opening, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        for sampling, params in PARAMS.items():
            if params.greedy and number >= len(OPENINGS):
                continue
            answered = answer(model, prompt, params, seed=number).tokens
            for name, drafter in opened.items():
                speaking = matches[name].speaking
                assert speaking is not None, matches[name].sentence
                tally, before = tallies[name, sampling], drafter.evaluations
                riding = ride(speaking(), prompt, answered, Guess(params, number), target)
                first = True
                while True:
                    began_s = time.thread_time()
                    hit = next(riding, None)
                    if not first:  # the first guess pays for reading the prompt
                        tally.seconds += time.thread_time() - began_s
                    else:
                        before = drafter.evaluations
                    first = False
                    if hit is None:
                        break
                    tally.guesses += 1
                    tally.right += bool(hit)
                    tally.characters += len(hit.decode("utf-8", "ignore"))
                tally.evaluations += drafter.evaluations - before
    for drafter in opened.values():
        drafter.close()
    return {
        name: {"way": matches[name].way.name, "sentence": matches[name].sentence}
        | {sampling: tallies[name, sampling].figures() for sampling in PARAMS}
        for name in folders
    }


def sessions(folders: dict[str, Path], rtt_ms: float, step_ms: float, draft_ms: float, rounds: int) -> dict[str, Any]:
    """Medians over answers, by drafter and temperature; "streaming" has none."""
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with rig.start(Path("demo"), step_ms) as bench:
        bench.link.configure(LinkSettings.of_rtt(rtt_ms))
        drafters: dict[str, Drafter | None] = {"streaming": None}
        drafters |= {name: Told(_opened(path), draft_ms) for name, path in folders.items()}
        clients = {name: EdgeClient(bench.address, drafter) for name, drafter in drafters.items()}
        for client in clients.values():  # warm, and matched
            client.generate(chat(OPENINGS[0]), SamplingParams(max_tokens=40, ignore_eos=True), seed=0)
        for number in range(rounds):
            for sampling, params in PARAMS.items():
                asked = SamplingParams(
                    temperature=params.temperature, max_tokens=ANSWER_TOKENS, ignore_eos=True, logprobs=None
                )
                words = set()
                for name, client in clients.items():
                    output = client.generate(chat(OPENINGS[number % len(OPENINGS)]), asked, seed=number)
                    words.add(output.token_ids)
                    seconds = output.metrics.total_ms / 1e3
                    share = output.metrics.accepted_tokens / len(output.token_ids)
                    row = (share * len(output.text) / seconds, output.metrics.total_ms / len(output.text))
                    figures.setdefault(name, {}).setdefault(sampling, []).append(row)
                assert len(words) == 1, "not the same words"
        for client in clients.values():
            client.close()
    return {
        name: {
            sampling: {
                "accepted_characters_per_s": round(statistics.median(accepted for accepted, _ in rows), 1),
                "ms_per_character": round(statistics.median(ms for _, ms in rows), 2),
                "answers": len(rows),
            }
            for sampling, rows in by_sampling.items()
        }
        for name, by_sampling in figures.items()
    }


def _opened(path: Path) -> Drafter:
    drafter = load_drafter(path)
    assert drafter is not None
    return drafter


@click.command(context_settings={"show_default": True})
@click.option("--same", type=click.Path(path_type=Path, exists=True), required=True, help="ONNX folder.")
@click.option(
    "--other",
    "others",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="ONNX folders.",
)
@click.option("--prompts", default=48, help="Answers to draft along.")
@click.option("--rounds", default=12, help="Sessions for every row; 0 leaves them out.")
@click.option("--rtt-ms", default=50.0)
@click.option("--step-ms", default=30.0, help="Of the target.")
@click.option("--draft-ms", default=5.0, help="Of an evaluation of the drafter's, in sessions.")
@report.json_option()
def main(  # noqa: D103 - click shows the module's text
    same: Path,
    others: tuple[Path, ...],
    prompts: int,
    rounds: int,
    rtt_ms: float,
    step_ms: float,
    draft_ms: float,
    json_file: Path | None,
) -> None:
    folders = {"same": same} | {other.name: other for other in others}
    result: dict[str, Any] = {"guesses": guesses(folders, prompts)}
    assert result["guesses"]["same"]["way"] == Way.EQUAL.name
    if rounds:
        conditions = {"rtt_ms": rtt_ms, "step_ms": step_ms, "draft_ms": draft_ms}
        result["sessions"] = conditions | sessions(folders, rtt_ms, step_ms, draft_ms, rounds)
    table = Table("what", "sampling", "figure", *folders, *(f"{other.name} / same" for other in others))
    for what, rows in result.items():
        for sampling in PARAMS:
            for figure in rows["same"][sampling]:
                values = [rows[name][sampling][figure] for name in folders]
                table.add_row(what, sampling, figure, *map(str, values), *(f"{v / values[0]:.2f}" for v in values[1:]))
    print_whole(Console(), table)
    report.write(json_file, result)


if __name__ == "__main__":
    main()
