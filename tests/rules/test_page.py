"""docs/add-a-rule.md, followed to the letter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from surgeon.errors import NothingToPrune
from surgeon.rules import RULES
from testbed.operators import Row
from tests.rules.test_rules import test_units_are_pruned_through_the_operator as pruned_through

PAGE = Path(__file__).parents[2] / "docs" / "add-a-rule.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def rules() -> Iterator[None]:
    """The rules as they are, whatever the page adds."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("rules")
def test_the_page_makes_a_pinned_layer_prunable(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    network, schema, rule, seen = (code for language, code in BLOCKS if language == "python")
    printed, row = (text for language, text in BLOCKS if not language)
    exec(network, names)
    assert "nanmedian: surgeon has no rule for this operator" in capsys.readouterr().out
    with pytest.raises(NothingToPrune):
        surgeon.shrink(names["net"], 0.5, example_inputs=names["x"])
    exec(schema, names)
    assert capsys.readouterr().out.strip() == printed.strip()
    exec(rule, names)
    exec(seen, names)
    assert "group up: 32 units" in capsys.readouterr().out
    assert names["slim"].up.out_channels == 16 and names["report"].certificate.deviation < 1e-9
    pruned_through(*eval(row.strip(), {"Row": Row, "torch": torch}))
