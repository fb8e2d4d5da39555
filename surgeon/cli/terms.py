"""Translates error messages from the Python API's terms into the command line's: `--ratio 1.5` for `ratio=1.5`.

Every error that a command prints goes through `in_terms`. The names of arguments come from the options of the commands
themselves; the table `PHRASES` holds what goes beyond names: calls for which there is a command, and remedies that
differ on the command line.

>>> table = Table.of("shrink", {"shrink": {"ratio": ("--ratio",)}, "sweep": {"amount": ("--amount",)}})
>>> in_terms("ratio=1.5: give the share; or amount=, as surgeon.sweep takes", table)
'--ratio 1.5: give the share; or --amount of `surgeon sweep`, as `surgeon sweep` takes'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

#: The options of a command by parameter; a flag also has the option that switches it off.
Names = Mapping[str, tuple[str, ...]]

#: Patterns and their replacements, applied in this order, before names are replaced.
PHRASES = (
    (r"Remedy: pass example_inputs= a tensor, a tuple, or a dict of keyword inputs for (\S.*?)\.?$",
     r"Remedy: give --shape once for each input of \1, or a SPEC whose factory returns the model and its inputs."),
    (r"Remedy: pass example_inputs= a tensor, a tuple, or a dict of keyword inputs that forward takes\.$",
     "Remedy: give --shape once for each input of forward, or a SPEC whose factory returns the model and its inputs."),
    (r"pass example_inputs= on which the model gives numbers",
     "give a SPEC whose factory returns the model and inputs on which it gives numbers"),
    (r"[;,] (?:pass|give) (?:a tensor, )?a tuple of positional inputs,? or a dict of keyword inputs",
     "; let the factory return a tensor, a tuple or a dict of inputs"),
    (r"give example_inputs=, or sizes= of its free axes to load_onnx", "give --shape"),
    (r"fix the input that decides it, fixed= of load_onnx", "fix the input that decides it, by --fixed INPUT=NUMBER"),
    (r"pass example_inputs=", "give --shape, or a SPEC whose factory returns the model and its inputs"),
    (r"\bexample_inputs is\b", "what SPEC gives as inputs is"),
    (r"\bexample_inputs holds\b", "what SPEC gives as inputs holds"),
    (r"\bexample_inputs\b", "the example inputs"),
    (r"pass the rotated model, or make a plan of this one, with project=False where shrink makes it",
     "make a plan of this one with `surgeon shrink --no-project`"),
    (r"as it was before surgeon\.project rotated it: pass that one", "as it was before it was rotated: give that one"),
    (r"\bthe model that surgeon\.project rotated", "the model that was rotated before the cut"),
    (r", or pass a function$", ""),
    (r"or (?:give )?what yields batches(?: of them)?$", "or name Python that yields batches, package.module:NAME"),
    (r", or None for the default", "; leave it out for the default"),
    (r"give the ratio to remove, latency_ms, min_agreement, or min_metric",
     "give --ratio, --latency-ms, --min-agreement or --min-metric"),
    (r"Remedy: (lower|change) ratio\b", r"Remedy: \1 --ratio"),
    (r"\basked by ignore\b", "asked by --ignore"),
    (r"save what surgeon\.shrink or Plan\.apply returned, or pass plan=", "make it with `surgeon shrink`"),
    (r"pass the model that the plan made", "give the FOLDER that `surgeon shrink` or `surgeon apply` wrote"),
    (r"pass model=", "give SPEC"),
    (r"\bplan\.apply\(model\)", "what `surgeon apply` makes of the plan"),
    (r", or merge it into this one", ""),
    (r"pass it in feeds", "the command line can only draw numbers"),
    (r"call fresh_model\.to_empty\(device='cpu'\) first", "build it on a device with values"),
    (r"pass fresh_model, a model of its architecture, or factory='[^']*', which makes one", "give SPEC"),
    (r": pass factory='[^']*' if you trust it, or fresh_model", "; give it as SPEC if you trust it"),
    (r"^give either fresh_model or factory=, not both", "give SPEC"),
    (r"\bfresh_model\b", "SPEC"),
    (r"\bpath='([^']*)'", r"-o \1"),
    (r"^dynamic: ", "--axis and --fix: "),
    (r"^shapes\b", "--shapes"),
)

#: The commands for Python functions of another name.
COMMANDS = {
    "plan": "shrink", "save": "shrink", "Plan.apply": "apply", "load": "apply",
    "benchmark": "bench", "prune_connections": "sweep --amount",
}  # fmt: skip

_VALUE = r"""(?:'[^'\n]*'|"[^"\n]*"|\([^)\n]*\)|\[[^\]\n]*\]|\{[^}\n]*\}|[^\s,;:.](?:[^\s,;:]*[^\s,;:.])?)"""


@dataclass(frozen=True)
class Table:
    """The options of the running command, and, for parameters that it lacks, those of other commands."""

    options: Names
    others: Mapping[str, str]
    commands: frozenset[str]

    @classmethod
    def of(cls, command: str, commands: Mapping[str, Names]) -> Table:
        """The table of `command`, given the options of all commands."""
        others: dict[str, str] = {}
        for name, options in commands.items():
            for parameter, given in options.items():
                others.setdefault(parameter, f"{given[0]} of `surgeon {name}`")
        return cls(commands.get(command, {}), others, frozenset(commands))

    def given(self, name: str, value: str | None = None) -> str | None:
        """`name=value` as written on the command line; None if no command has such a parameter."""
        if name not in self.options:
            return self.others.get(name)
        option, *off = self.options[name]
        if off:
            return off[0] if value == "False" else option
        if value in (None, "None", "True"):
            return option
        return f"{option} {value}"


_running: ContextVar[Table | None] = ContextVar("terms", default=None)


@contextmanager
def running(command: str, commands: Mapping[str, Any]) -> Iterator[None]:
    """A context in which `command`, one of typer's `commands`, runs, and `in_terms` uses its terms by default."""
    token = _running.set(Table.of(command, {name: options_of(each) for name, each in commands.items()}))
    try:
        yield
    finally:
        _running.reset(token)


def options_of(command: Any) -> dict[str, tuple[str, ...]]:
    """The options of a command by parameter; for a flag that can be switched off, both options."""
    found = {}
    for each in command.params:
        if each.param_type_name == "option" and each.name is not None and not each.hidden:
            found[each.name] = (next(name for name in each.opts if name.startswith("--")), *each.secondary_opts)
    return found


def in_terms(message: str, table: Table | None = None) -> str:
    """`message` in the terms of a command, by default the running one; unchanged if none is running."""
    table = table or _running.get()
    if table is None:
        return message
    for pattern, instead in PHRASES:
        message = re.sub(pattern, instead, message, flags=re.MULTILINE)

    def command(found: re.Match[str]) -> str:
        name = COMMANDS.get(found[1], found[1])
        return f"`surgeon {name}`" if name.split()[0] in table.commands else found[0]

    def argument(found: re.Match[str]) -> str:
        return table.given(found[1], found[2]) or found[0]

    def option(found: re.Match[str]) -> str:
        return table.given(found[1]) or found[0]

    message = re.sub(r"(?<![\w`.])surgeon\.((?:Plan\.)?\w+)(?![\w.(])", command, message)
    message = re.sub(rf"(?<![\w.-])([a-z_]+)=(?!=)({_VALUE})?", argument, message)
    message = re.sub(r"^([a-z_]+)(?=: )", option, message)
    return re.sub(r"(?<![\w.-])(\w+_\w+)(?![\w=(.])", option, message)
