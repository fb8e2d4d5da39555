"""Reading and writing protobuf messages as bytes, field by field.

A message is a sequence of fields, each with a number, a wire type and a value. Fields that aren't needed are skipped,
so that the time to read a message does not depend on their size.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final, Union

from surgeon.errors import InvalidArgument

Buffer = Union[bytes, mmap.mmap]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_FIELDS: Final = 2_000_000


def fields(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start and end of the value) of the fields of a message."""
    position, count = start, 0
    while position < end:
        key, position = varint(buffer, position)
        number, kind = key >> 3, key & 7
        count += 1
        if not number or count > _FIELDS:
            raise InvalidArgument(f"not an ONNX model (no field, or too many, at byte {position})")
        if kind == VARINT:
            low, high = position, varint(buffer, position)[1]
        elif kind == BYTES:
            length, low = varint(buffer, position)
            high = low + length
        elif kind in (FIXED64, FIXED32):
            low, high = position, position + (8 if kind == FIXED64 else 4)
        else:
            raise InvalidArgument(f"not an ONNX model (wire type {kind} at byte {position})")
        if high > end:
            raise InvalidArgument(f"not an ONNX model (cut off at byte {end})")
        yield number, kind, low, high
        position = high


def nested(buffer: Buffer, start: int, end: int, *path: int) -> Iterator[tuple[int, int]]:
    """The spans of the messages that a path of field numbers leads to."""
    for number, kind, low, high in fields(buffer, start, end):
        if (number, kind) == (path[0], BYTES):
            if len(path) == 1:
                yield low, high
            else:
                yield from nested(buffer, low, high, *path[1:])


def varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while shift < 70:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise InvalidArgument(f"not an ONNX model (an endless number at byte {position})")


def integers(buffer: Buffer, kind: int, low: int, high: int) -> list[int]:
    """The values of a repeated signed integer in one field: a single one, or several packed."""
    if kind == VARINT:
        return [_signed(varint(buffer, low)[0])]
    values = []
    while low < high:
        value, low = varint(buffer, low)
        values.append(_signed(value))
    return values


def text(buffer: Buffer, low: int, high: int) -> str:
    return bytes(buffer[low:high]).decode("utf-8")


def field(number: int, value: int | bytes | str) -> bytes:
    """The bytes of a field: an integer, or text, bytes or another message with its length.

    >>> field(1, 300), field(2, "ab")
    (b'\\x08\\xac\\x02', b'\\x12\\x02ab')
    """
    if isinstance(value, int):
        return _encode(number << 3 | VARINT) + _encode(value)
    content = value.encode() if isinstance(value, str) else value
    return _encode(number << 3 | BYTES) + _encode(len(content)) + content


def _encode(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
