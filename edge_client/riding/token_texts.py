"""Which token of a commit brought which text."""

from __future__ import annotations

import itertools

from outrider.v1 import verifier_pb2 as pb


def texts_of(commit: pb.Commit) -> list[str]:
    """One text for every token of a commit; together they are its text.

    A verifier that does not tell the lengths, or tells lengths that cannot be, gets all text laid to the first token.
    """
    count = len(commit.tokens)
    encoded = commit.text.encode()
    if len(commit.text_lengths) == count and sum(commit.text_lengths) == len(encoded):
        ends = [0]
        for length in commit.text_lengths:
            ends.append(ends[-1] + length)
        try:
            return [encoded[start:end].decode() for start, end in itertools.pairwise(ends)]
        except UnicodeDecodeError:  # a length that ends within a character
            pass
    return [commit.text, *[""] * (count - 1)][:count]
