"""Measure proposals one after the other, with a bar for whoever waits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge_client.drafters.sources.spec import CHAIN, LOOKUPS
from edge_client.errors import SessionError
from edge_client.link.security import Security
from edge_client.setup.connection import Way
from edge_client.setup.drafter_trial import ABOUT_EQUAL, NONE, Accelerator, Tried, best, try_drafter
from edge_client.setup.proposals import Candidate
from edge_client.setup.reference_answers import Reference, take_reference
from edge_client.setup.speed_race import Race, race

MOST_THREADS = 4
WORTH_THREADS_MS = 1.0  # a guess that takes less is not made quicker by more threads


class Measuring:
    """Trials on this device with one verifier. reference: None if it could not be asked."""

    def __init__(
        self,
        console: Console,
        threads: int | None,
        accelerator: Accelerator = NONE,
    ) -> None:
        """threads: of drafters; None tries one, and several where that may help."""
        self._console, self._threads, self.accelerator = console, threads, accelerator
        self.reference: Reference | None = None
        self.share = 1.0  # of a forecast's gain that is real here, as far as a race has told

    @property
    def most_threads(self) -> int:
        """That a drafter is tried with."""
        return self._threads or max(1, min(MOST_THREADS, os.cpu_count() or 1))

    def ask(self, verifier: str, model: str, security: Security) -> str:
        """Take the reference; returns why there is none, or nothing."""
        with self._bar("asking the verifier") as moved:
            try:
                self.reference = take_reference(verifier, model, security, moved)
            except (SessionError, ValueError) as error:
                return str(error)
        return ""

    def all(self, candidates: Sequence[Candidate]) -> list[Tried]:
        """Of each candidate its trial."""
        tried = []
        with self._bar("measuring") as moved:
            for done, candidate in enumerate(candidates):
                moved(done, len(candidates), candidate.label)
                tried.append(self.one(candidate))
        return tried

    def chain(self, tried: Sequence[Tried]) -> list[Tried]:
        """Of the best model a trial behind the lookup that costs nothing, if there is a best."""
        first = best(tried)
        if first is None or first.expected_ms is None or not _chains(first.spec):
            return []
        chain = Candidate(f"ngram{CHAIN}{first.spec}", f"ngram{CHAIN}{first.label}")
        with self._bar("measuring") as moved:
            moved(0, 1, chain.label)
            return [self._try(chain, first.threads)]

    def one(self, candidate: Candidate) -> Tried:
        """A trial, with several threads where one is slow and more are faster."""
        threads = self._threads or 1
        found = self._try(candidate, threads)
        slow = found.token_ms is not None and found.token_ms > WORTH_THREADS_MS
        if self._threads is not None or not slow or self.most_threads == 1:
            return found
        more = self._try(candidate, self.most_threads)
        quicker = more.token_ms is not None and more.token_ms < (found.token_ms or 0.0)
        return more if quicker else found

    def race(self, way: Way, drafter: Tried) -> Race | None:
        """Of answers drafted by it and the same ones streamed; None if it cannot be: the check says why."""
        if self.reference is None:
            return None
        with self._bar(f"racing {drafter.label} against streaming"), contextlib.suppress(SessionError, ValueError):
            return race(way, drafter.spec, drafter.threads, self.accelerator.device, self.reference)
        return None

    def correct(self, raced: Race, drafter: Tried, tried: Sequence[Tried]) -> list[Tried]:
        """The forecasts of all, and of those still to be tried, by what the one that has raced has gained."""
        if self.reference is not None and drafter.expected_ms is not None:
            self.share = raced.share(drafter.expected_ms, self.reference.step_ms)
        return [self._corrected(one) for one in tried]

    def _corrected(self, tried: Tried) -> Tried:
        if self.reference is None or tried.expected_ms is None:
            return tried
        step_ms = self.reference.step_ms
        return dataclasses.replace(tried, expected_ms=step_ms - self.share * (step_ms - tried.expected_ms))

    def _try(self, candidate: Candidate, threads: int) -> Tried:
        tried = try_drafter(
            candidate.spec, threads, self.reference, label=candidate.label, accelerator=self.accelerator
        )
        return self._corrected(tried)

    @contextlib.contextmanager
    def _bar(self, what: str) -> Iterator[Callable[..., None]]:
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            task = progress.add_task(what, total=1)

            def moved(done: int, of: int, label: str = "") -> None:
                progress.update(task, completed=done, total=of, description=f"{what} {label}".rstrip())

            yield moved


def choose(tried: Sequence[Tried]) -> Tried | None:
    """The best; behind a lookup where that costs next to nothing, for it gains much on texts that repeat themselves."""
    first = best(tried)
    if first is None or not _chains(first.spec):
        return first
    chain = next((one for one in tried if one.spec == f"ngram{CHAIN}{first.spec}" and not one.trouble), None)
    if chain is None or chain.expected_ms is None or first.expected_ms is None:
        return first
    return chain if chain.expected_ms <= ABOUT_EQUAL * first.expected_ms else first


def _chains(spec: str) -> bool:
    """Whether a lookup can go before it."""
    return spec not in LOOKUPS and CHAIN not in spec and spec != "none"
