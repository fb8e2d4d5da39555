"""The site, built by Sphinx from the repository's Markdown: `make docs`.

Sphinx, because it makes the reference of the API from docstrings, checks every link inside of the site, and can be
installed from PyPI alone. The source folder is the repository, so that a link works here as it does in the repository.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import surgeon

project = "surgeon"
author = "the surgeon developers"
copyright = author
version = release = surgeon.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "benchmarks/results/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text says what an argument is; signatures of options would hide it
html_theme = "furo"
html_title = f"surgeon {release}"
html_show_copyright = False
html_copy_source = False
suppress_warnings = [
    "myst.header",  # tables of benchmarks have no title of their own
    "misc.highlighting_failure",  # JSON with … in place of what is left out
]
nitpicky = False


class Commands(SphinxDirective):
    """The options of every command, from the command line itself."""

    def run(self) -> list[nodes.Node]:
        import typer

        from surgeon.cli.main import app

        group: Any = typer.main.get_command(app)
        found: list[nodes.Node] = []
        for name, command in group.commands.items():
            section = nodes.section(ids=[f"surgeon-{name}"])
            section += nodes.title(text=f"surgeon {name}")
            section += nodes.paragraph(text=inspect.cleandoc(command.help or ""))
            usage = " ".join(
                each.metavar or each.name.upper() for each in command.params if each.param_type_name == "argument"
            )
            section += nodes.literal_block(text=f"surgeon {name} {usage} [OPTIONS]".replace("  ", " "))
            context = command.make_context(name, [], resilient_parsing=True)
            options = nodes.definition_list()
            for parameter in command.params:
                if parameter.param_type_name == "option" and not parameter.hidden:
                    options += _option(parameter, context)
            section += options
            found.append(section)
        return found


def _option(parameter: Any, context: Any) -> nodes.Node:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    metavar = "" if parameter.is_flag else f" {parameter.metavar or parameter.display_type(context)}"
    default = parameter.default
    told = "" if default in (None, False, True, [], ()) or callable(default) else f" Default: {_plain(default)}."
    item = nodes.definition_list_item()
    item += nodes.term("", "", nodes.literal(text=names + metavar))
    item += nodes.definition("", nodes.paragraph(text=(parameter.help or "") + told))
    return item


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(getattr(value, "value", value))


def _code_in_markdown(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write code as Markdown does, `like_this`: as reStructuredText, ``like_this``."""
    paragraphs = "\n".join(lines).split("\n\n")
    for index, text in enumerate(paragraphs):
        if not text.lstrip().startswith(">>>"):
            paragraphs[index] = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text.replace("|", "\\|"))
    lines[:] = "\n\n".join(paragraphs).split("\n")


#: The pages by what they are for, as the site lists them; the results of benchmarks come last.
_PAGES = {
    "Learn": "tutorial",
    "How to": "how-to-*|onnx-files",
    "Explanation": "explain-*|limits",
    "Reference": "pinned|options|data|reference-api|command-line|criteria|export|file-formats|plan-format"
    "|profile-format|glossary|security|benchmarks",
    "Extend": "add-*|../CONTRIBUTING",
    "Project": "../README|../CHANGELOG|../SECURITY|../benchmarks/results/*",
}


def _list_pages(app: Any, page: str, source: list[str]) -> None:
    """Give tables a title, and the first page the list of all others, which in the repository it is itself."""
    if page.startswith("benchmarks/results/"):
        source[0] = f"# Rows: {page.rpartition('/')[2]}\n\n{source[0]}"
    if page == root_doc:
        for caption, names in _PAGES.items():
            listed = names.replace("|", "\n")
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app: Any) -> None:
    """Registers what this file adds to Sphinx."""
    app.add_directive("surgeon-commands", Commands)
    app.connect("source-read", _list_pages)
    app.connect("autodoc-process-docstring", _code_in_markdown)
