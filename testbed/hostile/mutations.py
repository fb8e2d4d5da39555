"""Files that were good: bytes flipped, moved and cut, and values in their JSON replaced by others."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from random import Random
from typing import Any

import onnx

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, -(10**9), 1 << 31, 1 << 63, 10**40, 0.5, -0.0, 1e308, "", "x", "NaN",
    "../x", "as_int", "s0", "torch.ops.aten.relu.default", [], {}, [0], [[]], {"as_int": 10**9}, {"as_none": True},
    {"as_expr": {"expr_str": "s0**9", "hint": None}}, "a\nb", "\u0000", "é" * 100,
)  # fmt: skip


def mutate(content: bytes, random: Random) -> bytes:
    """One of the mutations that fit what the content is."""
    if content[:2] == b"PK" and random.random() < 0.7:
        return _archive(content, random)
    if content[:1] in (b"{", b"[") and random.random() < 0.6:
        return _document(content, random)
    if content[8:9] == b"{" and random.random() < 0.6:  # safetensors: the header's length, and JSON
        (size,) = struct.unpack("<Q", content[:8])
        header = _document(content[8 : 8 + size], random)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    if content[:1] == b"\x08" and random.random() < 0.6:  # a model of ONNX: its version comes first
        return _network(content, random)
    return _bytes(content, random)


def _network(content: bytes, random: Random) -> bytes:
    """Fields of messages removed, doubled, or given another's value."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _fields(model, places)
        holder, each = random.choice(places)
        other, value = random.choice([(message, field) for message, field in places if field.type == each.type])
        made = getattr(other, value.name)
        one = random.choice(made) if value.is_repeated and made else made
        match random.randrange(4):
            case 0:
                holder.ClearField(each.name)
            case 1 if each.is_repeated:
                del getattr(holder, each.name)[random.randrange(len(getattr(holder, each.name)))]
            case _ if each.message_type is not None:
                target = getattr(holder, each.name)
                if type(one) is type(target.add() if each.is_repeated else target):
                    twin = type(one)()  # for one that is inside of the other, or around it
                    twin.CopyFrom(one)
                    (target[-1] if each.is_repeated else target).CopyFrom(twin)
            case 2 if each.type == each.TYPE_INT64:
                drawn = random.choice([number for number in VALUES if type(number) is int and abs(number) < 1 << 63])
                _give(holder, each, drawn)
            case _:
                _give(holder, each, one)
    return bytes(model.SerializeToString())


def _give(holder: Any, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(holder, field.name).append(value)
    elif field.type != field.TYPE_ENUM:
        setattr(holder, field.name, value)


def _fields(message: Any, places: list[tuple[Any, Any]]) -> None:
    for field, value in message.ListFields():
        places.append((message, field))
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                _fields(each, places)


def _archive(content: bytes, random: Random) -> bytes:
    """One member is another, under the right checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        # what is parsed is of more interest than numbers are
        parsed = [name for name in names if name.endswith((".json", ".pt", ".npy", ".pkl"))]
        chosen = random.choice(parsed if parsed and random.random() < 0.8 else names)
        for name in names:
            member = old.read(name)
            new.writestr(name, mutate(member, random) if name == chosen else member)
    return buffer.getvalue()


def _document(content: bytes, random: Random) -> bytes:
    try:
        data = json.loads(content)
    except ValueError:
        return _bytes(content, random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _collect(data, places)
        if not places:
            break
        holder, key = random.choice(places)
        other, at = random.choice(places)
        match random.randrange(5):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 0 | 1:
                holder[key] = json.loads(json.dumps(other[at]))
            case 2 if isinstance(holder, dict):
                holder[str(random.choice(VALUES))[:50]] = holder.pop(key)
            case 3 if isinstance(holder[key], str) and holder[key]:
                holder[key] = _bytes(holder[key].encode(), random).decode("latin1")
            case _:
                holder[key] = random.choice(VALUES)
    return json.dumps(data).encode()


def _collect(data: Any, places: list[tuple[Any, Any]]) -> None:
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        places.append((data, key))
        _collect(value, places)


def _bytes(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        if not changed:
            break
        at = random.randrange(len(changed))
        end = min(len(changed), at + random.choice((1, 2, 4, 8, 64, 512)))
        old = bytes(changed[at:end])
        match random.randrange(7):
            case 0:
                new = bytes([old[0] ^ 1 << random.randrange(8)]) + old[1:]
            case 1:
                new = random.randbytes(len(old))
            case 2:
                new = b""
            case 3:
                new = old * 2
            case 4:
                new = random.randbytes(random.randrange(1, 9)) + old
            case 5:
                new = b"\xff" * len(old)
            case _:
                new = bytes(len(old))
        changed[at:end] = new
    return bytes(changed[: random.randrange(len(changed) + 1)] if random.random() < 0.05 else changed)
