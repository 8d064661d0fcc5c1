"""`text_offset` of log-probabilities: where in the text a token begins, in characters."""

from __future__ import annotations

from edge_client.assistant.responses import CompletionShape
from edge_client.assistant.token_strings import TokenStrings
from edge_client.types import TokenLogprob
from speculation.vocabulary.vocabulary import Vocabulary
from tests.other_vocabularies import byte_level


def offsets(vocabulary: Vocabulary, tokens: list[int], cut: int) -> list[int]:
    """Told in two pieces, as a stream is."""
    shape = CompletionShape("m", include_usage=False, spelling=TokenStrings(vocabulary))
    parts = [shape.part(0, "", [TokenLogprob(token, -1.0) for token in some]) for some in (tokens[:cut], tokens[cut:])]
    logprobs = [part["choices"][0]["logprobs"] or {"text_offset": []} for part in parts]
    return [offset for told in logprobs for offset in told["text_offset"]]


def test_half_a_character_begins_where_the_character_does() -> None:
    vocabulary = byte_level()
    ids = {spelled: token for token, spelled in enumerate(vocabulary.spellings)}
    bytes_of = [bytes([byte]) for byte in "aé🦉 b".encode()]
    tokens = [ids[byte] for byte in bytes_of]
    for cut in range(len(tokens) + 1):
        assert offsets(vocabulary, tokens, cut) == [0, 1, 1, 2, 2, 2, 2, 3, 4]


def test_special_tokens_are_none_of_the_text() -> None:
    vocabulary = Vocabulary(("a", "<|im_end|>", "bcd"), frozenset({1}))
    assert offsets(vocabulary, [0, 1, 2, 1, 7, 0], 3) == [0, 1, 1, 4, 4, 4]
