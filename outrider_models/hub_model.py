"""How a model of the Hugging Face hub is named: ``hf:ORG/REPO[@REV][:CHOICE]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from outrider_models.errors import ModelFileError

HUB = "hf:"
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?(:(?P<choice>.+))?")


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub. revision: a branch, tag or commit. choice: a quantization's name or a file's path."""

    repo: str
    revision: str | None = None
    choice: str | None = None

    def __str__(self) -> str:
        """As it is written in a spec."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.choice}" if self.choice else "")


def parse_hub(text: str) -> HubModel:
    """The model that a text names, which begins with `HUB`. Raises ModelFileError."""
    match = _HUB.fullmatch(text, len(HUB))
    if match is None:
        raise ModelFileError(f"{text!r} names no model of the hub; expected hf:ORG/REPO[@REVISION][:CHOICE]")
    return HubModel(match["repo"], match["revision"], match["choice"])
