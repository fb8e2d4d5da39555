"""A zip archive whose members are stored plainly: none is compressed, encrypted, duplicated or overlapping."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from surgeon.support.opening import Unfit

_MEMBERS: Final = 100_000
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True)
class Members:
    """The members of an open archive, by their names inside of its single folder."""

    archive: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]

    def size(self, name: str) -> int:
        """The number of bytes of a member; raises Unfit if it is missing."""
        if name not in self.entries:
            raise Unfit(f"the member {name} is missing")
        return self.entries[name].file_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The content of a member; raises Unfit if it is missing, larger than `limit` or damaged."""
        size = self.size(name)
        if limit is not None and size > limit:
            raise Unfit(f"the member {name} has {size:,} bytes; at most {limit:,} are read")
        try:
            content = self.archive.read(self.entries[name])
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise Unfit(f"the member {name} is damaged: {error}") from error
        if len(content) != size:
            raise Unfit(f"the member {name} is cut short")
        return content


@contextmanager
def members(file: BinaryIO, size: int) -> Iterator[Members]:
    """The members of the archive in `file`, which is `size` bytes long.

    Raises:
        Unfit: it is not such an archive; the message names the member.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield Members(archive, _checked(archive.infolist(), size))
    # zipfile raises many kinds of errors for a damaged directory
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, OverflowError) as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit(f"it is not a zip archive: {error}") from error


def _checked(entries: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    if not entries:
        raise Unfit("it is an empty archive")
    if len(entries) > _MEMBERS:
        raise Unfit(f"it has {len(entries):,} members; at most {_MEMBERS:,} are read")
    root = entries[0].filename.partition("/")[0]
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        first, slash, name = entry.filename.partition("/")
        shown = f"the member {entry.filename[:200]!r}"
        if not slash or first != root or root in ("", ".", ".."):
            raise Unfit(f"{shown} is not in the archive's single folder")
        if any(part in ("", ".", "..") for part in name.split("/")) or not entry.filename.isprintable():
            raise Unfit(f"{shown} has a name that leads elsewhere")
        if "\\" in entry.filename or entry.orig_filename != entry.filename:
            raise Unfit(f"{shown} has a name that leads elsewhere")
        if name in found:
            raise Unfit(f"{shown} is there twice")
        if entry.flag_bits & _ENCRYPTED:
            raise Unfit(f"{shown} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Unfit(f"{shown} is compressed, which torch.export.save does not do")
        found[name] = entry
    _check_places(list(found.values()), size)
    return found


def _check_places(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Make sure that no two members share bytes of the file."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            raise Unfit(f"the members {before!r} and {entry.filename!r} overlap")
        end, before = entry.header_offset + len(entry.filename) + entry.file_size, entry.filename
    if end > size:
        raise Unfit(f"the member {before!r} claims more bytes than the file has")
