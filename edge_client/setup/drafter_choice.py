"""Which drafter: what is tried, what the hub would have, and what the person at the terminal says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console

from edge_client.drafters.errors import DrafterError
from edge_client.drafters.sources.model_search import LeftOut, search
from edge_client.drafters.sources.spec import CHAIN, LocalModel, parse
from edge_client.setup import tables
from edge_client.setup.drafter_trial import NONE, Tried
from edge_client.setup.hub_suggestions import family_of, suggestions
from edge_client.setup.measurement import Measuring, choose
from edge_client.setup.proposals import SHARE, Candidate, candidates
from outrider_models.hub_model import HubModel
from outrider_models.memory_check import available_bytes, readable


@dataclass
class Choice:
    """What was tried so far. left_out: what was not, or cannot be used. on_hub: what could be downloaded."""

    tried: list[Tried] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    on_hub: list[HubModel] = field(default_factory=list)

    def add(self, tried: Sequence[Tried]) -> None:
        """Keep what can be used apart from what cannot; the latest trial of a drafter counts."""
        again = {one.spec for one in tried}
        self.tried = [one for one in self.tried if one.spec not in again] + [one for one in tried if not one.trouble]
        self.left_out += [LeftOut(one.label, one.trouble) for one in tried if one.trouble]


def named(measuring: Measuring, drafters: Sequence[str]) -> Choice:
    """Of the drafters that somebody named. Models of the hub are downloaded: naming them is asking for it."""
    choice = Choice()
    choice.add(_tried(measuring, drafters))
    return choice


def found(measuring: Measuring, folders: Sequence[Path]) -> Choice:
    """Of what is free, and of what lies on this device. folders: where to look besides the usual places."""
    reference = measuring.reference
    models, unusable = search(folders)
    by_memory = reference is not None and measuring.accelerator == NONE  # which may be faster than that
    step_ms = reference.step_ms if reference is not None and by_memory else None
    worth, left_out = candidates(models, measuring.most_threads, step_ms)
    choice = Choice(left_out=[*unusable, *left_out])
    choice.add(measuring.all(worth))
    choice.add(measuring.chain(choice.tried))
    if reference is not None:
        family = family_of(reference.model, reference.vocabulary.strings if reference.vocabulary else ())
        here = " ".join(model.label for model in models)
        choice.on_hub = [model for model in (family.drafters if family else ()) if model.repo not in here]
    return choice


def offer_downloads(measuring: Measuring, choice: Choice) -> None:
    """Ask whether what the hub has is worth its size, and try what is."""
    try:
        offers = suggestions(choice.on_hub)
    except DrafterError as error:
        click.echo(f"The hub may have a drafter of the target's family, {choice.on_hub[0]}, but: {error}")
        return
    free_bytes = available_bytes()
    for model, size_bytes in offers:
        if free_bytes is not None and size_bytes > SHARE * free_bytes:
            choice.left_out.append(
                LeftOut(str(model), f"it takes {readable(size_bytes)}, and {readable(free_bytes)} are free")
            )
        elif click.confirm(
            f"The hub has {model}, of the target's family: download {readable(size_bytes)} and measure it?"
        ):
            choice.add(_tried(measuring, [str(model)]))


def ask_which(console: Console, measuring: Measuring, choice: Choice) -> Tried | None:
    """Show the table and ask; None for no drafter."""
    while True:
        best = choose(choice.tried)
        rows = tables.in_order(choice.tried, best)
        tables.show(console, rows, choice.left_out, measuring.reference)
        said = str(click.prompt("Which one? Its number, the name or file of another, or none", default="1")).strip()
        if said == "none":
            return None
        if said.isdecimal() and 1 <= int(said) <= len(rows):
            return rows[int(said) - 1]
        choice.left_out = []  # they were told
        choice.add(_tried(measuring, [spec.strip() for spec in said.split(",") if spec.strip()]))


def _tried(measuring: Measuring, drafters: Sequence[str]) -> list[Tried]:
    """Trials of what was named, with paths that hold from any folder."""
    ready, broken = [], []
    for spec in drafters:
        try:
            ready.append(Candidate(_settled(spec), spec))
        except DrafterError as error:
            broken.append(Tried(spec, spec, trouble=str(error)))
    return [*measuring.all(ready), *broken] if ready else broken


def _settled(spec: str) -> str:
    """The spec with absolute paths, models of the hub downloaded. Raises DrafterError."""
    if not parse(spec):
        raise DrafterError("it names no drafter")
    texts = [spec] if len(parse(spec)) == 1 else spec.split(CHAIN)
    return CHAIN.join(_settled_part(text) for text in texts)


def _settled_part(text: str) -> str:
    match parse(text)[0]:
        case LocalModel(path):
            return str(path.absolute())
        case HubModel() as model:
            from outrider_models.hub import fetch

            return str(fetch(model))
        case _:
            return text
