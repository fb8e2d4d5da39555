"""Hostile .npy and .npz files, each with a word on what it tries."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from testbed.hostile.files import Case, content_of
from testbed.hostile.payloads import CANARY, Runs
from testbed.hostile.targets import Target


def _npy(head: str, data: bytes = b"", version: bytes = b"\x01\x00", size: int | None = None) -> bytes:
    text = head.encode("latin1") + b"\n"
    form = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, len(text) if size is None else size) + text + data


def _head(descr: str = "'<f4'", shape: str = "(2,)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def headers() -> dict[str, bytes]:
    """Arrays of numpy's."""
    data = bytes(8)
    evil = f"__import__('builtins').exec({CANARY!r})"
    objects = io.BytesIO()
    np.save(objects, np.array([Runs()], dtype=object), allow_pickle=True)
    return {
        "objects": objects.getvalue(),
        "a shape of 10^12": _npy(_head(shape="(1000000000000,)"), data),
        "a shape that overflows": _npy(_head(shape="(4294967296, 4294967296)"), data),
        "a negative shape": _npy(_head(shape="(-2,)"), data),
        "a shape of text": _npy(_head(shape="('2',)"), data),
        "no shape": _npy("{}", data),
        "code": _npy(evil, data),
        "code for a type": _npy(_head(descr=evil), data),
        "code for a shape": _npy(_head(shape=f"({evil},)"), data),
        "a type of records": _npy(_head(descr="[('a', '<f4')]"), data),
        "a type of texts": _npy(_head(descr="'<U2'"), data),
        "a type of times": _npy(_head(descr="'<M8[s]'"), data),
        "an unknown type": _npy(_head(descr="'evil'"), data),
        "a type of nothing": _npy(_head(descr="'V0'"), data),
        "a type of types": _npy(_head(descr="'(1000000,1000000)f4'"), data),
        "a header 10,000 deep": _npy("(" * 10_000),
        "a header of 4 GB": _npy("{}", version=b"\x02\x00", size=(1 << 32) - 1),
        "a header of 1 MB": _npy(" " * 10**6, version=b"\x02\x00"),
        "a version to come": _npy(_head(), data, version=b"\x09\x00"),
        "too few numbers": _npy(_head(), b""),
        "no magic": b"evil",
        "an order of text": _npy(_head(order="'F'"), data),
        "a true shape": _npy(_head(shape="(True,)"), data),
        "empty, of 2^62": _npy(_head(shape="(0, 4611686018427387904)")),
        "99 axes": _npy(_head(shape=f"({'1,' * 99})"), data),
        "a number of 5000 digits": _npy(_head(shape=f"({'9' * 5000},)")),
        "a null byte": _npy(_head(descr="'<f4\x00'"), data),
        "a scalar": _npy(_head(shape="()"), bytes(4)),
    }


def arrays(target: Target) -> Iterator[Case]:
    """.npy files, and the same inside of .npz files, which are archives too."""
    for word, content in headers().items():
        if target.name.endswith(".npy"):
            yield Case(f"{target.name}: {word}", target, content_of(content))
            continue
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.npy", content)
        yield Case(f"{target.name}: {word}", target, content_of(buffer.getvalue()))
    if target.name.endswith(".npz"):
        yield from _packed(target)


def _packed(target: Target) -> Iterator[Case]:
    def archive(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as made, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in members:
                made.writestr(name, content)
        return buffer.getvalue()

    def patched(content: bytes, *changes: tuple[int, bytes]) -> bytes:
        changed, central = bytearray(content), content.index(b"PK\x01\x02")
        for at, value in changes:
            changed[central + at : central + at + len(value)] = value
        return bytes(changed)

    array = _npy(_head(), bytes(8))
    zeros = _npy(_head("'|u1'", "(200000000,)"), bytes(200_000_000))
    small = archive(("a.npy", array), kind=zipfile.ZIP_DEFLATED)
    for word, content in {
        "200 MB in 200 KB": archive(("a.npy", zeros), kind=zipfile.ZIP_DEFLATED),
        "200 MB in bzip2": archive(("a.npy", zeros), kind=zipfile.ZIP_BZIP2),
        "a terabyte, it says": archive(("a.npy", _npy(_head("'|u1'", f"({1 << 40},)"), bytes(8)))),
        "a member of 4 GB": patched(small, (24, b"\xfe\xff\xff\xff")),
        "an encrypted member": patched(small, (8, b"\x01\x00")),
        "an unknown method": patched(small, (10, b"\x5f\x00")),
        "a wrong checksum": patched(small, (16, b"\x00\x00\x00\x00")),
        "a member elsewhere": patched(small, (42, b"\xff\xff\xff\x7f")),
        "a member twice": archive(("a.npy", array), ("a.npy", array)),
        "no members": archive(),
        "a member that is no array": archive(("a.npy", b"evil")),
        "a text": archive(("a.txt", b"evil")),
        "half a file": small[: len(small) // 2],
        "a pickle": pickle.dumps(Runs(), protocol=2),
        "zlib": zlib.compress(b"evil"),
        "arrays of two lengths": archive(("a.npy", array), ("b.npy", _npy(_head(shape="(1,)"), bytes(4)))),
        "20,000 members": archive(*((f"{n}.npy", b"") for n in range(20_000))),
    }.items():
        yield Case(f"{target.name}: {word}", target, content_of(content))
