"""Does all of it work together? The doctor's findings, and some answers with drafts beside the same without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_client.client import EdgeClient
from edge_client.doctor import Finding, examine
from edge_client.drafters.settings import DeviceSettings
from edge_client.errors import SessionError
from edge_client.setup.connection import Way
from edge_client.setup.reference_answers import ANSWER_TOKENS, TEMPERATURE, Answer, Reference
from edge_client.setup.speed_race import Race, ms_per_token
from edge_client.types import RequestOutput
from speculation.sampling import SamplingParams


@dataclass(frozen=True)
class Checked:
    """answers: those that came; none if there is something wrong, and then `trouble` or a finding says what.

    same_words: as without drafts; None if that is not known.
    """

    findings: list[Finding]
    answers: tuple[RequestOutput, ...] = ()
    same_words: bool | None = None
    trouble: str = ""

    @property
    def good(self) -> bool:
        """Whether answers came and nothing is missing."""
        return bool(self.answers) and all(finding.ok for finding in self.findings)

    @property
    def ms_per_token(self) -> float:
        """Of all answers together, after their first tokens."""
        return ms_per_token(self.answers)

    @property
    def guessed(self) -> float:
        """Share of their tokens that the device had guessed in time."""
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        return sum(answer.metrics.accepted_tokens for answer in self.answers) / max(1, tokens)


def check(
    way: Way,
    drafter: str,
    threads: int,
    device: DeviceSettings,
    reference: Reference | None,
    raced: Race | None = None,
) -> Checked:
    """Ask the verifier as an app would. raced: what has been asked already, with this very drafter."""
    findings = examine(
        verifier=way.verifier,
        drafter=drafter,
        model=way.model,
        threads=threads,
        device=device,
        security=way.security,
    )
    if not all(finding.ok for finding in findings):
        return Checked(findings)
    known = list(reference.answers) if reference else []
    if raced is not None:
        return Checked(findings, raced.drafted, _same_words(raced.drafted, known))
    known = [answer for answer in known if answer.seed == 1]
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=ANSWER_TOKENS)
    try:
        with EdgeClient(
            way.verifier, drafter, model=way.model, threads=threads, device=device, security=way.security
        ) as client:
            if not known:
                return Checked(findings, (client.generate([{"role": "user", "content": "Hello"}], params),))
            answers = tuple(client.generate(list(one.prompt), params, seed=one.seed) for one in known)
    except (SessionError, ValueError) as error:
        return Checked(findings, trouble=str(error))
    return Checked(findings, answers, _same_words(answers, known))


def _same_words(answers: Sequence[RequestOutput], known: Sequence[Answer]) -> bool:
    return all(came.token_ids == one.words for came, one in zip(answers, known, strict=True))
