"""What experiments ask. The demo pair is asked openings of the kind that it was trained on; other models have sets.

A set is a TOML file: `description`, `licence`, and under `[tasks]` a list of prompts for each kind of work. `tasks` is
bundled; a file of your own works too.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

OPENINGS = (
    "I'd like to book a table for two at an Italian restaurant in San Jose this Friday evening.",
    "Can you find me a bus from Sacramento to Los Angeles for tomorrow morning?",
    "I need a hotel in Chicago for three nights, something with at least four stars.",
    "What will the weather be like in Portland on Saturday?",
    "Play me some rock music, something from last year.",
    "I'm looking for an apartment to rent in Oakland with two bedrooms.",
    "Please find a dentist in Berkeley who has time next Monday.",
    "Are there any good concerts in New York next weekend?",
    "Rent me a car in Seattle from the 8th to the 12th of March.",
    "Send 50 dollars from my checking account to Maria.",
    "Is there a comedy I could watch tonight in Fremont?",
    "I want to fly from Atlanta to Phoenix on the first of March, economy class.",
)
DEMO, TASKS = "demo", "tasks"  # sets by name
FOLDER = Path(__file__).resolve().parent / "prompt_sets"
SUFFIX = ".toml"


class PromptSetError(ValueError):
    """A set of prompts that is not there or cannot be used. The message is a sentence without its full stop."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order in which they are asked: one of each task, then the next of each. tasks: of each prompt."""

    prompts: tuple[str, ...]
    tasks: tuple[str, ...]

    def first(self, count: int) -> PromptSet:
        """So many of them, again from the first when there are no more: an answer has a seed of its own."""
        at = [index % len(self.prompts) for index in range(count)]
        return PromptSet(tuple(self.prompts[i] for i in at), tuple(self.tasks[i] for i in at))


def openings(count: int) -> tuple[str, ...]:
    """So many of the demo pair's."""
    return find(DEMO).first(count).prompts


def find(name_or_path: str) -> PromptSet:
    """The set `demo` or `tasks`, or that of the TOML file at this path. Raises PromptSetError."""
    if name_or_path == DEMO:
        return PromptSet(OPENINGS, ("booking",) * len(OPENINGS))
    if name_or_path == TASKS:
        return _read(FOLDER / f"{TASKS}{SUFFIX}")
    if name_or_path.endswith(SUFFIX):
        return _read(Path(name_or_path))
    raise PromptSetError(
        f"there is no set of prompts {name_or_path!r}; there are {DEMO} and {TASKS}, or the path of a {SUFFIX} file"
    )


def _read(path: Path) -> PromptSet:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptSetError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise PromptSetError(f"{path} is no TOML: {error}") from error
    tasks = content.get("tasks")
    if not isinstance(tasks, dict) or not any(tasks.values()):
        raise PromptSetError(f"{path}: expected the table [tasks] with a list of prompts for each task")
    for task, prompts in tasks.items():
        if not isinstance(prompts, list) or not all(isinstance(text, str) and text.strip() for text in prompts):
            raise PromptSetError(f"{path}: expected a list of texts for the task {task}")
    columns = [[(task, text) for text in prompts] for task, prompts in tasks.items()]
    ordered = [pair for pair in chain.from_iterable(zip_longest(*columns)) if pair is not None]
    return PromptSet(tuple(text for _, text in ordered), tuple(task for task, _ in ordered))
