"""Changes that make a right message a nearly right one, by what the contract says of its fields, or byte by byte."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

FEW, MANY = 40, 4000  # entries of a repeated field, bytes of a text
NUMBERS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2, 63, 64, 65, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 3, 4, 99, 2**31 - 1, -1),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-45, 3e38, math.nan, math.inf, -math.inf),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
TEXTS = ("", "a", "ab", "\0", "<|user|>", "<|end|>", "e\u0301\u200d\U0001f419", "{{ 7 * 7 }}", "\u202e", "\ufffd")


def mutate(message: Message, rng: random.Random) -> None:
    """Change one field of a message, at any depth, in place."""
    present = [value for field, value in message.ListFields() if _is_message(field) and not field.is_repeated]
    if present and rng.random() < 0.6:
        mutate(rng.choice(present), rng)
        return
    if not message.DESCRIPTOR.fields:
        return
    fields: list[FieldDescriptor] = [*message.DESCRIPTOR.fields]
    field = rng.choice(fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif _is_message(field):
        _mutate_composite(message, field, rng)
    elif field.is_repeated:
        entries = getattr(message, field.name)
        for _ in range(rng.choice((1, 2, FEW, FEW, MANY)) if rng.random() < 0.1 else rng.randint(1, 4)):
            entries.append(_scalar(field, rng))
    else:
        setattr(message, field.name, _scalar(field, rng))


def _is_message(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE


def _mutate_composite(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    entry = field.message_type
    assert entry is not None
    value = getattr(message, field.name)
    if entry.GetOptions().map_entry:
        key, mapped = entry.fields
        for _ in range(rng.randint(1, 3)):
            value[_scalar(key, rng)] = _scalar(mapped, rng)
    elif field.is_repeated:
        added = value.add()
        if rng.random() < 0.8:
            mutate(added, rng)
    else:
        value.SetInParent()
        mutate(value, rng)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.randint(0, FEW))
        text = rng.choice(TEXTS)
        return text * rng.choice((1, FEW, MANY)) if rng.random() < 0.05 else text
    return rng.choice(NUMBERS[field.cpp_type])


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randint(0, len(data)) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 9)), b"\xff" * 10, b"\x0b", b"\x0c", b"\x80" * 11))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randint(0, len(data))
    data += data[at : at + rng.randint(1, 40)]


BYTEWISE: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _truncate, _insert, _repeat)


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Bytes that were a message."""
    mangled = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        rng.choice(BYTEWISE)(mangled, rng)
    return bytes(mangled)
