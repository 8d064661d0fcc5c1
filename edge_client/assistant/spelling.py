"""What token ids spell, for log-probabilities: the target's vocabulary, asked for once per target."""

from __future__ import annotations

from dataclasses import dataclass

from speculation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Spelled:
    """A token as people and programs read it. octets: None for a token that stands for no text."""

    text: str
    octets: list[int] | None


@dataclass(frozen=True)
class Spelling:
    """Ids into text and bytes."""

    vocabulary: Vocabulary

    def __call__(self, token_id: int) -> Spelled:
        """Half a character spells U+FFFD, as in OpenAI's answers; a special token its name."""
        if token_id >= len(self.vocabulary.strings):  # a model may have more ids than its tokenizer
            return Spelled("", None)
        if token_id in self.vocabulary.special:
            return Spelled(self.vocabulary.strings[token_id], None)
        octets = self.vocabulary.spellings[token_id]
        return Spelled(octets.decode("utf-8", "replace"), list(octets))
