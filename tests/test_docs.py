"""README.md and docs/: every block runs as it stands, every link leads somewhere, every pin has its entry."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from surgeon.errors import Infeasible
from surgeon.groups import states
from surgeon.scoring import CRITERIA, GRADIENT_CRITERIA
from surgeon.scoring.activation_criteria import ACTIVATION_CRITERIA
from tests.cli.commands import call

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
#: Pages whose commands are followed by another test.
ELSEWHERE = {
    "add-a-rule.md": "tests/rules/test_page.py",
    "how-to-onnx-file.md": "tests/cli/test_how_to.py",
    "onnx-files.md": "tests/cli/test_onnx_file.py",
}
#: What a command begins with; an indented block that begins otherwise is no command.
PROGRAMS = ("surgeon", "python", "make", "pip", ".venv/bin/pytest")
BUSY, TRIES = "let nothing else run meanwhile", 4
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block, or an indented one, of the language "sh"; `line` is where it begins."""

    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """The blocks of a page in their order.

    >>> [each.language for each in blocks("a\\n\\n```python\\nx\\n```\\n\\n    make demo\\n\\nb")]
    ['python', 'sh']
    """
    found: list[Block] = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        fence = re.match(r"```(\{?[\w-]*\}?)$", lines[index])
        if fence:
            end = lines.index("```", index + 1)
            found.append(Block(fence[1], "\n".join(lines[index + 1 : end]) + "\n", index + 1))
            index = end + 1
        elif lines[index].startswith("    ") and not lines[index - 1].strip():
            end = next((at for at in range(index, len(lines)) if not lines[at].startswith("    ")), len(lines))
            text = "\n".join(line[4:] for line in lines[index:end]) + "\n"
            if text.split()[0] in PROGRAMS:
                found.append(Block("sh", text, index + 1))
            index = end
        else:
            index += 1
    return found


def prose(text: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as the current one, from which modules can be imported that are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    criteria = dict(CRITERIA)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    CRITERIA.clear()
    CRITERIA.update(criteria)


RUN = [page for page in PAGES if page.name not in ELSEWHERE and blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_run_as_they_stand(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    printed = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        match block.language:
            case "python":
                title = re.match(r"# (\w+\.py)\n", block.text)
                if title:
                    (folder / title[1]).write_text(block.text)
                    continue
                capsys.readouterr()
                patiently(lambda: exec(compile(block.text, where, "exec"), names))  # noqa: B023  (called at once)
                printed = capsys.readouterr().out
            case "sh":
                printed = "".join(command(line, where) for line in block.text.splitlines())
            case "":
                both = block.text, printed
                wanted, found = map(_numberless, both) if page.name == "README.md" else both
                good = doctest.OutputChecker().check_output(wanted, found, FLAGS)
                assert good, f"{where} prints\n{printed}"
            case "json" | "{eval-rst}" | "{surgeon-commands}":
                continue
            case other:
                pytest.fail(f"{where}: nothing is known of blocks of {other}")


def _numberless(text: str) -> str:
    """What was printed, where numbers are those of the machine."""
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text)


def patiently(act: Callable[[], T]) -> T:
    """What `act` returns, tried again where a latency was not met because something else ran meanwhile."""
    for _ in range(TRIES - 1):
        try:
            found = act()
        except Infeasible as error:
            if BUSY not in str(error):
                raise
        else:
            if BUSY not in getattr(found, "stderr", ""):
                return found
    return act()


def command(line: str, where: str) -> str:
    """Run a command of a page, or see that there is what it names; returns what it prints."""
    words = shlex.split(line, comments=True)
    match words:
        case []:
            return ""
        case ["surgeon", *arguments]:
            result = patiently(lambda: call(*arguments))
            assert result.exit_code == 0, f"{where}: {line}\n{result.output}"
            return result.stdout
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{where}: {line}"
        case ["python", *arguments]:
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
            return done.stdout
        case ["make", *targets]:
            known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), f"{where}: {line}"
        case ["pip", "install", *given]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for extras in re.findall(r"\[([\w,]+)\]", " ".join(given)):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"{where}: {line}"
        case [".venv/bin/pytest", path, *_]:
            assert (ROOT / path).exists(), f"{where}: {line}"
        case _:
            pytest.fail(f"{where}: {line}: a command that this test does not know")
    return ""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}: no such heading"


def test_every_page_is_two_clicks_from_the_readme() -> None:
    def linked(page: Path) -> set[Path]:
        targets = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        return {(page.parent / target).resolve() for target in targets if "://" not in target}

    first = linked(ROOT / "README.md")
    assert {page.resolve() for page in DOCS.glob("*.md")} <= first.union(*map(linked, first))


#: What newcomers ask, and the place that answers it.
QUESTIONS = {
    "How do I install it?": "README.md#install",
    "How do I make a first cut?": "docs/tutorial.md",
    "Why wasn't my layer pruned?": "docs/pinned.md",
    "I have a file, not a model": "docs/onnx-files.md",
    "It must take so many milliseconds": "docs/how-to-milliseconds.md",
    "I have no data": "docs/how-to-no-data.md",
    "My accuracy fell": "docs/explain-recovery.md#my-accuracy-fell",
    "Can I open a stranger's file?": "docs/security.md",
}


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_two_clicks_away(start: str, question: str) -> None:
    def clicked(places: set[str]) -> set[str]:
        """The places that the pages of these link to, as paths below the repository."""
        return {
            f"{path}{'#' + anchor if anchor else ''}"
            for page in {ROOT / place.partition("#")[0] for place in places} if page.suffix == ".md"
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))) if "://" not in target
            for link, _, anchor in [target.partition("#")]
            for path in [(page.parent / link).resolve().relative_to(ROOT).as_posix() if link else page.name]
        }

    page, _, anchor = QUESTIONS[question].partition("#")
    assert not anchor or anchor in anchors(ROOT / page)
    first = clicked({start})
    assert page == start or QUESTIONS[question] in first | clicked(first)


def test_every_criterion_has_its_row() -> None:
    page = (DOCS / "criteria.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert listed == {*CRITERIA, *ACTIVATION_CRITERIA, *GRADIENT_CRITERIA, "reconstruction"}


# The methods that take a reason, and at which place.
REASONS = {
    "pin": 1, "pin_all": 1, "pinned": 1, "fresh": 1, "broadcast": 1, "sized": 2, "unify": 2, "divide": 2, "cut": 2,
}
SPACE = "surgeon/ir/space.py"


def reasons() -> set[str]:
    """Every reason for a pin that the code can give, "…" for what it puts in; read off the source.

    Reasons are the arguments of the methods in `REASONS`, their defaults, and what names given there are assigned.
    """
    found = {each.format(verb="…") for each in (states.REASON,)}
    for path in [*sorted((ROOT / "surgeon" / "rules").glob("*.py")), ROOT / "surgeon/groups/coupling.py",
                 ROOT / "surgeon/groups/gains.py", ROOT / SPACE]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            defaults = {argument.arg: value for argument, value in zip(
                reversed(function.args.args), reversed(function.args.defaults), strict=False)}
            if isinstance(defaults.get("why"), ast.Constant):
                found |= written(defaults["why"], tree, tree)
            for called in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                name = getattr(called.func, "attr", getattr(called.func, "id", ""))
                if name in REASONS and len(called.args) > REASONS[name]:
                    found |= written(called.args[REASONS[name]], function, tree)
            if function.name == "failed":
                found |= {text for node in ast.walk(function) if isinstance(node, ast.JoinedStr)
                          for text in written(node, function, tree)}
    return found


def written(node: ast.expr, function: ast.AST, tree: ast.AST) -> set[str]:
    """The texts that an expression stands for; a name, for all that it is assigned in the function or the file."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr():
            texts = {""}
            for part in node.values:
                if isinstance(part, ast.Constant):
                    more = {str(part.value)}
                elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                    more = written(part.value, function, tree) or {"…"}
                else:
                    more = {"…"}
                texts = {start + end for start in texts for end in more}
            return {text.rpartition(": ")[2] for text in texts}  # the place goes, as in reports
        case ast.IfExp():
            return written(node.body, function, tree) | written(node.orelse, function, tree)
        case ast.Name(id=name):
            values = [
                each.value for scope in (function, tree) for each in ast.walk(scope)
                if isinstance(each, ast.Assign) and any(ast.unparse(target) == name for target in each.targets)
                and (scope is function or each in getattr(tree, "body", ()))
            ]
            return {text for value in values for text in written(value, function, tree)}
    return set()


def test_every_reason_for_a_pin_has_its_entry() -> None:
    page = (DOCS / "pinned.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"`([^`\n]+)`", page))
    given = reasons()
    assert len(given) > 70
    missing = {
        text for text in given
        if not any(re.fullmatch(re.escape(text).replace("…", ".+"), entry) for entry in entries)
    }
    assert not missing, f"docs/pinned.md has no entry for {sorted(missing)}"
