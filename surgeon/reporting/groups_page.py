"""The coupled groups of a model, drawn over its tensors: one self-contained HTML page, to search and click."""

from __future__ import annotations

import html
import zlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from surgeon.groups.coupling import Group, Groups, Pinned
from surgeon.ir.axes import Axis
from surgeon.reporting.report import PINNED

_STYLE = """
:root{--ink:#24292f;--faint:#57606a;--line:#d8dee4;--page:#fff;--card:#f6f8fa;--light:86%;--deep:30%}
@media (prefers-color-scheme:dark){
:root{--ink:#e6edf3;--faint:#9198a1;--line:#3d444d;--page:#0d1117;--card:#151b23;--light:24%;--deep:82%}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0}
main{max-width:1100px;margin:0 auto;padding:24px 16px 60px}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:28px 0 8px}p{color:var(--faint);margin:4px 0 12px}
input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px 12px;
width:100%;box-sizing:border-box;position:sticky;top:8px}
.row{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline;border-bottom:1px solid var(--line);padding:4px 0}
.name{flex:0 1 300px;min-width:180px;overflow-wrap:anywhere;font-size:14px}
.axes{display:flex;flex-wrap:wrap;gap:4px}
.axis{font:13px ui-monospace,monospace;border:0;border-radius:5px;padding:2px 7px;
color:var(--ink);background:var(--card)}
button.axis{cursor:pointer;background:hsl(var(--hue) 70% var(--light));color:hsl(var(--hue) 60% var(--deep))}
.axis.pinned{border:1px dashed var(--faint);color:var(--faint)}
.why{flex-basis:100%;color:var(--faint);font-size:13px;overflow-wrap:anywhere}
.after{font-weight:600}.cut{text-decoration:line-through;opacity:.6}
.dim{opacity:.2}.chosen{outline:2px solid var(--ink)}[hidden]{display:none}
"""

# Clicking a group dims what has nothing of it; searching hides rows without the words.
_SCRIPT = """
const rows=[...document.querySelectorAll('.row')],all=[...document.querySelectorAll('[data-group]')];let chosen=null;
function choose(g){chosen=chosen===g?null:g;
for(const e of all)e.classList.toggle('chosen',chosen!==null&&e.dataset.group===chosen);
for(const r of rows)r.classList.toggle('dim',chosen!==null&&![...r.querySelectorAll('[data-group]')].some(
e=>e.dataset.group===chosen));}
for(const e of all)e.addEventListener('click',()=>choose(e.dataset.group));
document.querySelector('input').addEventListener('input',e=>{const words=e.target.value.toLowerCase().split(/\\s+/);
for(const r of rows)r.hidden=!words.every(w=>r.textContent.toLowerCase().includes(w));});
document.addEventListener('keydown',e=>{if(e.key==='Escape'&&chosen!==null)choose(chosen);});
"""


class Planned(Protocol):
    """A plan, as far as the page needs one."""

    def keep(self, groups: Groups) -> Mapping[int, Sequence[int]]:
        """The units that stay, by leaf."""


def groups_page(groups: Groups, title: str, plan: Planned | None = None) -> str:
    """The page: the groups, and the tensors with the group or the reason of each axis; with `plan`, widths after it.

    >>> import torch
    >>> from torch import nn
    >>> from surgeon.frontend.trace import trace
    >>> from surgeon.groups.coupling import couple
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> page = groups_page(couple(trace(net, torch.zeros(2, 8))), "Net")
    >>> 'data-group="0"' in page, "an input of the model" in page
    (True, True)
    """
    after = {leaf: len(kept) for leaf, kept in plan.keep(groups).items()} if plan is not None else {}
    pins = {(pin.tensor, pin.axis): pin for pin in groups.pinned}
    members = [_group(group, after) for group in groups]
    tensors = [_tensor(name, axes, groups, pins, after) for name, axes in groups.tensors.items() if axes]
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: groups</title>\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><main><h1>{name}</h1>\n<p>{len(groups)} groups of units that can only go together; "
        f"{len(groups.pinned)} pinned axes, which keep all of theirs. Click a group to see where it lives.</p>\n"
        '<input type="search" placeholder="Search groups, tensors and reasons" aria-label="Search">\n'
        f"<h2>Groups</h2>\n{''.join(members)}\n<h2>Tensors</h2>\n"
        f"<p>Dashed axes are pinned. What each reason means, and what to do: {PINNED}</p>\n{''.join(tensors)}\n"
        f"</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _group(group: Group, after: Mapping[int, int]) -> str:
    return (
        f'<div class="row"><span class="name">{_button(group.name, group.name)}</span>'
        f"<span>{_width(group.size, after.get(group.leaf.id, group.size))} units</span>"
        f"<span>{len(group.members)} tensors</span></div>\n"
    )


def _tensor(
    name: str, axes: Sequence[Axis], groups: Groups, pins: Mapping[tuple[str, int], Pinned], after: Mapping[int, int]
) -> str:
    parts, reasons = [], []
    for index, axis in enumerate(axes):
        text = groups.space.text(axis, groups.names)
        if after and (left := groups.space.width(axis, after)) != axis.size:
            text = f"{text} → {left}"
        inside = [groups.names[leaf.id] for leaf in groups.space.leaves(axis) if leaf.id in groups.names]
        pin = pins.get((name, index))
        if inside:
            parts.append(_button(inside[0], text))
        else:
            parts.append(f'<span class="axis{" pinned" if pin else ""}">{html.escape(text)}</span>')
        if pin is not None:
            reasons.append(f'<span class="why">axis {index}: {html.escape(pin.reason)}</span>')
    return (
        f'<div class="row"><span class="name">{html.escape(name)}</span><span class="axes">{"".join(parts)}</span>'
        f"{''.join(reasons)}</div>\n"
    )


def _button(group: str, text: str) -> str:
    """A part of the page that stands for a group; all of one group have one color."""
    hue = zlib.crc32(group.encode()) % 360
    name = html.escape(group, quote=True)
    return f'<button class="axis" style="--hue:{hue}" data-group="{name}">{html.escape(text)}</button>'


def _width(before: int, after: int) -> str:
    if before == after:
        return str(before)
    return f'<span class="cut">{before}</span> <span class="after">{after}</span>'
