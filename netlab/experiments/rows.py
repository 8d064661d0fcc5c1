"""What an experiment writes down: one row per answer, the same columns whether it was simulated or real."""

from __future__ import annotations

from dataclasses import dataclass

SIMULATED, REAL = "simulated", "real"


@dataclass(frozen=True)
class Row:
    """One answer under one policy in one cell.

    mode: simulated or real. commit: of the code that ran. pair: what drafter and target were. answer: its number within
    the cell; the same number is the same prompt for every policy. candidate: which of the policy's paces this was, the
    best of the cell. ms_per_token: mean over the tokens after the first. total_over_streaming: of the same answer.
    target_forwards: that this session took part in. lookahead_tokens: see `Diary`. verifier_ms_per_token,
    verifier_steps_per_token: of the engine, for all answers of the cell and policy together; None where it cannot be
    known from outside.
    """

    cell: str
    mode: str
    commit: str
    policy: str
    candidate: str
    rtt_ms: float
    jitter_ms: float
    profile: str | None
    pair: str
    draft_ms: float
    step_ms: float
    devices: int
    seed: int
    answer: int
    tokens: int
    ttft_ms: float
    total_ms: float
    ms_per_token: float
    total_over_streaming: float
    target_forwards: int
    target_forwards_per_token: float
    drafted_tokens: int
    verified_tokens: int
    accepted_tokens: int
    lookahead_tokens: float | None
    uplink_bytes: int
    downlink_bytes: int
    verifier_ms_per_token: float | None
    verifier_steps_per_token: float | None
    same_words: bool


@dataclass(frozen=True)
class Origin:
    """What all rows of a run have in common."""

    mode: str
    commit: str
