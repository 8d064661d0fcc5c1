"""Cases by number: a few devices at once, honest, careless and hostile, their operations interleaved."""

from __future__ import annotations

import random
from collections.abc import Callable

from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz.callers import NAMES, REVOCABLE
from benchmarks.fuzz.mutations import mangle, mutate
from benchmarks.fuzz.operations import Cut, Draft, HalfClose, Identify, Listen, Operation, Resume, Revoke, Send, Wait
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.mock_engine import VOCABULARY_SIZE

LETTERS = "abcxyz"
MOST_STREAMS = 5
FLOOD = 300  # messages
HUGE_BYTES = 900_000


def with_callers(case: list[Operation], seed: int, number: int) -> list[Operation]:
    """The same case where a verifier knows keys: every device has a name, which may change, and keys are taken away."""
    rng = random.Random(f"{seed}/{number}/callers")
    crowd = rng.choice(REVOCABLE)
    changed = list(case)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        at = rng.randint(0, len(changed))
        change = (
            Revoke(rng.choice(REVOCABLE))
            if rng.random() < 0.3
            else Identify(rng.randrange(MOST_STREAMS), rng.choice(NAMES))
        )
        changed.insert(at, change)
    # Mostly several devices of one principal, or else no quota would ever be full.
    names = rng.choices((crowd, rng.choice(REVOCABLE), rng.choice(NAMES)), (6, 2, 1), k=MOST_STREAMS)
    return [*(Identify(stream, name) for stream, name in enumerate(names)), *changed]


def generate(seed: int, number: int) -> list[Operation]:
    """Case `number` of a seed."""
    rng = random.Random(f"{seed}/{number}")
    count = rng.randint(1, MOST_STREAMS)
    plans = [rng.choices(BEHAVIOURS, WEIGHTS)[0](stream, count, rng) for stream in range(count)]
    case: list[Operation] = []
    while any(plans):
        plan = rng.choice([plan for plan in plans if plan])
        several = rng.choice((1, 1, 2, 5))
        case += plan[:several]
        del plan[:several]
        if rng.random() < 0.3:
            case.append(Wait(rng.choice((1, 3, 10, 40))))
    return case


def _open(rng: random.Random) -> pb.Open:
    opened = pb.Open(protocol_version=1, seed=rng.randrange(8), want_prompt_ids=rng.random() < 0.5)
    opened.want_text = rng.random() < 0.5
    match rng.randrange(4):
        case 0:
            opened.text = "".join(rng.choices(LETTERS, k=rng.randint(1, 12)))
        case 1:
            opened.chat.messages.add(role="user", content=[pb.ContentPart(text=rng.choice(LETTERS))])
        case _:
            opened.prompt_ids.ids.extend(rng.choices(range(VOCABULARY_SIZE), k=rng.randint(1, 20)))
    sampling = opened.sampling
    sampling.max_tokens = rng.choice((1, 2, 8, 16, 30))
    sampling.temperature = rng.choice((0.0, 0.8, 1.0))
    if rng.random() < 0.2:
        sampling.stop.append(rng.choice(LETTERS))
        sampling.stop_ids.append(rng.randrange(VOCABULARY_SIZE))
    if rng.random() < 0.2:
        sampling.logprobs = rng.randint(0, 5)
        sampling.presence_penalty = 0.5
    if rng.random() < 0.6:
        opened.patience_ms = rng.choice((0, 1, 50, PATIENCE_UNLIMITED_MS, PATIENCE_UNLIMITED_MS))
    opened.objective = rng.choice((pb.OBJECTIVE_UNSPECIFIED, pb.OBJECTIVE_LATENCY, pb.OBJECTIVE_CAPACITY))
    opened.incremental = opened.seed % 2 == 1
    return opened


def _opening(stream: int, rng: random.Random) -> Operation:
    opened = _open(rng)
    if opened.seed == 7:
        piece = pb.OpenPiece(data=opened.SerializeToString(), last=opened.want_text)
        return Send(stream, pb.GenerateRequest(open_piece=piece).SerializeToString())
    return Send(stream, pb.GenerateRequest(open=opened).SerializeToString())


def _draft(stream: int, rng: random.Random) -> Draft:
    wrong = tuple(rng.choices(range(VOCABULARY_SIZE), k=rng.choice((0, 0, 1, 4))))
    right, start = rng.choice((0, 1, 3, 8)), rng.choice((0, 0, 0, -1, -3, 2, 5))
    more = pb.Draft(sent_at_us=rng.randrange(1, 2**40))
    if rng.random() < 0.3:
        more.confidence = rng.randbytes(right + len(wrong))
    if rng.random() < 0.3:
        more.parents.extend(rng.choices((0, 1, 2, 7, 2**32 - 1), (3, 6, 2, 1, 1), k=right + len(wrong)))
    if rng.random() < 0.1:
        more.patience_ms = rng.choice((0, 5, PATIENCE_UNLIMITED_MS))
    known = min(start, 0) if rng.random() < 0.2 else 0
    return Draft(stream, start, known, right, wrong, more.SerializeToString())


def _message(stream: int, rng: random.Random) -> Operation:
    if rng.random() < 0.75:
        return _draft(stream, rng)
    return Send(stream, pb.GenerateRequest(ping=pb.Ping(sent_at_us=rng.getrandbits(63))).SerializeToString())


def _ending(stream: int, rng: random.Random) -> list[Operation]:
    cancel = Send(stream, pb.GenerateRequest(cancel=pb.Cancel()).SerializeToString())
    endings: tuple[list[Operation], ...] = ([], [HalfClose(stream)], [Cut(stream)], [cancel], [cancel, cancel])
    return list(rng.choice(endings))


def honest(stream: int, _count: int, rng: random.Random) -> list[Operation]:
    """As a client would, if a fickle one."""
    plan = [_opening(stream, rng), Wait(20), *(_message(stream, rng) for _ in range(rng.randint(0, 20)))]
    if rng.random() < 0.1:
        plan[2:2] = [Listen(stream, False)]
        plan.append(Listen(stream, True))
    return [*plan, *_ending(stream, rng)]


def careless(stream: int, count: int, rng: random.Random) -> list[Operation]:
    """One message is changed as only the contract's types allow."""
    plan = honest(stream, count, rng)
    at = rng.choice([index for index, operation in enumerate(plan) if isinstance(operation, Send | Draft)])
    changed = plan[at]
    if isinstance(changed, Send):
        message = pb.GenerateRequest.FromString(changed.message)
        mutate(message, rng)
        plan[at] = Send(stream, message.SerializeToString())
    elif isinstance(changed, Draft):
        far = rng.choice((-(2**31), -40, 1, 60, 65, 2**31))
        start, known = rng.choice(((far, 0), (0, far), (far, far)))
        plan[at] = Draft(stream, start, known, changed.right, changed.wrong, changed.more)
        if rng.random() < 0.3:
            more = pb.Draft()
            mutate(more, rng)
            plan[at] = Draft(stream, 0, 0, rng.choice((0, 64, 65)), changed.wrong, more.SerializeToString())
    return plan


def hostile(stream: int, _count: int, rng: random.Random) -> list[Operation]:
    """Many fields of one Open are changed, and it writes on whatever it is told."""
    message = pb.GenerateRequest(open=_open(rng))
    for _ in range(rng.randint(1, 6)):
        mutate(message, rng)
    return [Send(stream, message.SerializeToString()), *(_message(stream, rng) for _ in range(rng.randint(0, 4)))]


def disorderly(stream: int, count: int, rng: random.Random) -> list[Operation]:
    """The right messages in a wrong order."""
    plan = [*honest(stream, count, rng), _opening(stream, rng)]
    rng.shuffle(plan)
    return plan


def resuming(stream: int, count: int, rng: random.Random) -> list[Operation]:
    """Takes over a session, its own neighbour's as likely as its own, and perhaps claims to know what it cannot."""
    known = rng.choice((0, 0, 0, 0, -1, -3, 1, -1000, 2**31))
    again = Resume(stream, rng.randrange(count), known)
    first: list[Operation] = [_opening(stream, rng), Wait(10), Cut(stream)] if rng.random() < 0.5 else [Wait(20)]
    return [*first, again, *(_message(stream, rng) for _ in range(rng.randint(0, 8))), *_ending(stream, rng)]


def garbled(stream: int, count: int, rng: random.Random) -> list[Operation]:
    """Bytes that were messages, and bytes that never were."""
    plan = honest(stream, count, rng)
    for at, operation in enumerate(plan):
        if isinstance(operation, Send) and rng.random() < 0.5:
            plan[at] = Send(stream, mangle(operation.message, rng))
    if rng.random() < 0.5:
        plan.insert(rng.randint(0, len(plan)), Send(stream, rng.randbytes(rng.randint(0, 200))))
    return plan


def flooding(stream: int, _count: int, rng: random.Random) -> list[Operation]:
    """More than anybody has to say, perhaps without reading a word."""
    quiet = [Listen(stream, False)] if rng.random() < 0.5 else []
    return [_opening(stream, rng), *quiet, *(_message(stream, rng) for _ in range(rng.randint(50, FLOOD)))]


def huge(stream: int, _count: int, rng: random.Random) -> list[Operation]:
    """Messages near the limit."""
    opened = _open(rng)
    match rng.randrange(4):
        case 0:
            opened.text = rng.choice(LETTERS) * HUGE_BYTES
        case 1:
            opened.prompt_ids.ids.extend([5] * (HUGE_BYTES // 2))
        case 2:
            opened.continue_from.extend([5] * (HUGE_BYTES // 2))
        case _:
            opened.sampling.stop.extend(["ab"] * (HUGE_BYTES // 8))
    return [Send(stream, pb.GenerateRequest(open=opened).SerializeToString()), *_ending(stream, rng)]


BEHAVIOURS: tuple[Callable[[int, int, random.Random], list[Operation]], ...] = (
    honest, careless, hostile, disorderly, resuming, garbled, flooding, huge,
)  # fmt: skip
WEIGHTS = (6.0, 4.0, 2.0, 1.0, 3.0, 2.0, 0.15, 0.02)
