"""From a case that fails to a shorter one that still does (delta debugging; Zeller and Hildebrandt, 2002)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError, Message
from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz.operations import Operation, Send

Case = Sequence[Operation]


def shrink(case: Case, fails: Callable[[Case], bool], most_tries: int = 400) -> list[Operation]:
    """The shortest case found that still fails: no operation can be left out of it, and no field of a message."""
    tries = iter(range(most_tries))
    best = list(case)
    better = True
    while better:
        better = False
        for candidate in _shorter(best):
            if next(tries, None) is None:
                return best
            if fails(candidate):
                best, better = candidate, True
                break
    return best


def _shorter(case: list[Operation]) -> Iterator[list[Operation]]:
    size = max(1, len(case) // 2)
    while True:
        for begin in range(0, len(case), size):
            yield case[:begin] + case[begin + size :]
        if size == 1:
            break
        size //= 2
    for index, operation in enumerate(case):
        if isinstance(operation, Send):
            for message in _simpler(operation.message):
                yield [*case[:index], replace(operation, message=message), *case[index + 1 :]]


def _simpler(data: bytes) -> Iterator[bytes]:
    try:
        message = pb.GenerateRequest.FromString(data)
    except DecodeError:
        return
    for path in _paths(message):
        changed = pb.GenerateRequest.FromString(data)
        parent: Message = changed
        for name in path[:-1]:
            parent = getattr(parent, name)
        parent.ClearField(path[-1])
        if (shorter := changed.SerializeToString()) != data:
            yield shorter


def _paths(message: Message) -> Iterator[tuple[str, ...]]:
    for field, value in message.ListFields():
        yield (field.name,)
        if isinstance(value, Message):
            for path in _paths(value):
                yield (field.name, *path)
