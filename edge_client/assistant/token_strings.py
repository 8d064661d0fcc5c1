"""What token ids spell, for log-probabilities: the target's vocabulary, asked for once per target."""

from __future__ import annotations

from dataclasses import dataclass

from speculation.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenString:
    """A token as people and programs read it. octets: None for a token that stands for no text."""

    text: str
    octets: list[int] | None


@dataclass(frozen=True)
class TokenStrings:
    """Ids into text and bytes."""

    vocabulary: Vocabulary

    def __call__(self, token_id: int) -> TokenString:
        """Half a character spells U+FFFD, as in OpenAI's answers; a special token its name."""
        if token_id >= len(self.vocabulary.strings):  # a model may have more ids than its tokenizer
            return TokenString("", None)
        if token_id in self.vocabulary.special:
            return TokenString(self.vocabulary.strings[token_id], None)
        octets = self.vocabulary.spellings[token_id]
        return TokenString(octets.decode("utf-8", "replace"), list(octets))
