"""JSON files that surgeon wrote: read and validated.

>>> import json, tempfile
>>> from pathlib import Path
>>> from surgeon.errors import PlanError
>>> shopping = Document("list", "shopping-list", 1, PlanError, "write it again")
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "list.json"
...     _ = path.write_text(json.dumps({"format": "shopping-list", "version": 1, "eggs": 6}))
...     shopping.entry(shopping.read(path), "eggs", int)
6
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from surgeon.errors import SurgeonError
from surgeon.support.opening import Unfit, read_bytes
from surgeon.support.strict_json import loads

#: The metadata of an ONNX file that holds the shapes of its inputs to run it at, as JSON, by input.
EXAMPLE: Final = "surgeon.example"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Document:
    """A kind of file: its name in messages, its "format" entry, its newest version, its error class, and the remedy."""

    name: str
    format: str
    version: int
    error: type[SurgeonError]
    remedy: str

    def read(self, path: str | os.PathLike[str], parse: Callable[[dict[str, Any]], _T] = dict) -> _T:  # type: ignore[assignment]
        """What `parse` returns for the file's entries; its errors get the path in front.

        Raises the document's error if the file is missing, of another kind, or of a newer version.
        """
        try:
            content = read_bytes(path)
        except Unfit as error:
            raise self.error(f"{path} can't be read: {error}") from error
        try:
            data = loads(content)
        except Unfit as error:
            raise self.error(f"{path} is not a {self.name}, or was cut short: {error}; {self.remedy}") from error
        try:
            return parse(self._checked(data))
        except self.error as error:
            raise type(error)(f"{path}: {error}") from error

    def entry(self, data: Mapping[str, Any], key: str, kind: type[_T], place: str = "") -> _T:
        """The entry of this name, which must be of exactly this type: True does not count as an int."""
        if key not in data:
            raise self.error(f'{place}the entry "{key}" is missing')
        value = data[key]
        if type(value) is not kind:
            raise self.error(f'{place}"{key}" must be {kind.__name__}, not {type(value).__name__}')
        return value

    def _checked(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or data.get("format") != self.format:
            raise self.error(f'this is not a {self.name}: the entry "format" must be "{self.format}"')
        version = self.entry(data, "version", int)
        if version > self.version:
            raise self.error(
                f"the {self.name} is of version {version}, this surgeon reads up to {self.version}; update surgeon"
            )
        if version < 1:
            raise self.error(f"version {version} does not exist")
        return data
