"""What groups and reports show in a notebook."""

from html.parser import HTMLParser

import torch
from torch import nn

import surgeon


class Balanced(HTMLParser):
    """The elements that are open at the end of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_groups_and_reports_show_themselves() -> None:
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(2, 8)
    groups = Balanced(surgeon.inspect(net, x)._repr_html_())
    assert groups.open == [] and "an input of the model" in groups.text and "0.weight axis 0" in groups.text
    _, report = surgeon.shrink(net, 0.5, example_inputs=x, compensate=False, return_report=True)
    shown = Balanced(report._repr_html_())
    assert shown.open == [] and "MACs" in shown.text and "node by node" in shown.text


def test_names_are_escaped() -> None:
    net = nn.Sequential()
    net.add_module("<b>", nn.Linear(8, 32))
    net.add_module("last", nn.Linear(32, 4))
    groups = surgeon.inspect(net, torch.randn(2, 8))
    assert "<b>." not in groups._repr_html_() and "&lt;b&gt;" in groups._repr_html_()
