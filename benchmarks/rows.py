"""Results as lines of JSON: the last line of a key counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def last(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """The last row of each value of `key`; none where there is no file yet."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row[key]: row for row in rows}
