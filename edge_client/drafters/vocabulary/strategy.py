"""How a drafter can speak a target's tokens, in the cheapest way that there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edge_client.drafters.base import Drafter
from edge_client.drafters.vocabulary.renumbered import RenumberedDrafter
from edge_client.drafters.vocabulary.translated import TranslatedDrafter
from speculation.vocabulary.correspondence import Correspondence, Way
from speculation.vocabulary.vocabulary import Vocabulary


class Match(NamedTuple):
    """sentence: the way, for people. speaking: gives what drafts for the target; None if nothing does.

    Calling `speaking` is cheap. What it gives shares its model with the drafter it was made of: use one of them at a
    time, and close either.
    """

    way: Way
    sentence: str
    speaking: Callable[[], Drafter] | None


def same_vocabulary(drafter: Drafter) -> Match:
    """Nothing is to be done."""
    return Match(Way.EQUAL, f"{drafter.info.name} has {Way.EQUAL.value} as the target", lambda: drafter)


def match(drafter: Drafter, target: Vocabulary, size: int) -> Match:
    """The drafter as seen by a target with this vocabulary and `size` ids, padding included.

    Takes about a second for vocabularies of 150,000 tokens. Raises what reading the drafter's own vocabulary raises.
    """
    name = drafter.info.name
    if drafter.info.vocabulary_fingerprint == target.fingerprint:
        return same_vocabulary(drafter)
    own = drafter.vocabulary()
    if own is None:
        return Match(Way.NONE, f"{name} has another vocabulary than the target and does not tell which", None)
    tokens = Correspondence(own, target)
    way = tokens.way()
    shared = f"shares {tokens.shared:,} of the target's {len(target.strings):,} tokens"
    if way is Way.NONE:
        return Match(way, f"{name} {shared} and cannot spell the others: {way.value}", None)

    def wrap(model: Drafter) -> Drafter:
        if way is Way.TRANSLATED:
            return TranslatedDrafter(model, target, size, tokens, own.opening)
        return RenumberedDrafter(model, target, size, tokens)

    return Match(way, f"{name} {shared}; it drafts as {way.value}", lambda: drafter.with_model(wrap))
