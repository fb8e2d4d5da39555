"""A self-contained HTML page, and figures, about a folder that `surgeon shrink` wrote."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgeon.cost.target import percent
from surgeon.device.clock import CPU_TIME, WALL_TIME, Clock
from surgeon.device.explain import BlockingWidth, Explanation, LostBlockedLayout
from surgeon.device.layout import Convolution
from surgeon.device.operator_times import shares
from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.groups.coupling import without_place
from surgeon.reporting import figures, milliseconds
from surgeon.reporting.report import PINNED
from surgeon.support.arguments import cpus
from surgeon.support.documents import Document
from surgeon.support.files import StrPath, find, replace_many
from surgeon.support.progress import stage

FORMAT = "surgeon-report"
VERSION = 1
PAGE = "report.html"
_GROUPS = 10_000

_DOCUMENT = Document("report", FORMAT, VERSION, InvalidArgument, "write it again with surgeon shrink -o")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#24292f;margin:0;background:#fff}
main{max-width:900px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:17px;margin:38px 0 8px}
p.lead{color:#57606a;margin:4px 0 22px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tile{border:1px solid #d8dee4;border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:23px;line-height:1.25}.tile span{color:#57606a;font-size:13px}
table{border-collapse:collapse;font-size:14px}
td,th{padding:3px 18px 3px 0;text-align:left;font-weight:400;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}th{color:#57606a}
pre{background:#f6f8fa;border-radius:6px;padding:12px 14px;font-size:13px;overflow-x:auto;white-space:pre-wrap}
svg{max-width:100%;height:auto}section{overflow-x:auto}
@media (max-width:600px){main{padding:18px 12px 40px}td,th{padding-right:10px}table{font-size:13px}}
@media (prefers-color-scheme:dark){
body{color:#e6edf3;background:#0d1117}p.lead,.tile span,th{color:#9198a1}.tile{border-color:#3d444d}
pre{background:#151b23}svg{background:#fff;border-radius:6px;padding:8px;box-sizing:border-box}}
"""



def write_page(
    folder: StrPath,
    *,
    others: Sequence[StrPath] = (),
    accuracy: Mapping[str, float] | None = None,
    threads: int | None = None,
    runs: int = 30,
) -> tuple[Path, ...]:
    """Write report.html and pictures: latency.png and widths.png, of a budget in milliseconds operators.png, and
    budget.png of several latencies.

    `folder` was written by `surgeon shrink -o`: it holds report.json, and base.onnx and slim.onnx, whose operators are
    timed by onnxruntime's profiler (`runs` runs with `threads` threads, by default those of the benchmark), scaled to
    the latency in the report. `others` are more folders of the same model, shrunk to other latencies: measured latency
    is plotted over requested latency. `accuracy` maps names to shares from 0 to 1; by default it is the report's own,
    if it has any. The page is self-contained.

    Returns the paths of the files.

    Raises:
        InvalidArgument: the folder holds no report, or matplotlib is not installed (the extra "plot").
        BenchmarkError: an ONNX file can't be run.
        OutputError: the files can't be written; what was there is intact.
    """
    place = Path(folder)
    report = _read(find(place, "report.json"))
    figures.need_matplotlib()
    reports = [report, *(_read(find(other, "report.json")) for other in others)]
    with _understood(place):
        pictures = _pictures(place, report, _points(reports), threads, runs)
        page = _page(report, pictures, accuracy if accuracy is not None else report.get("accuracy") or {})
    with replace_many(place) as scratch:
        (scratch / PAGE).write_text(page, encoding="utf-8")
        for name, figure in pictures.items():
            (scratch / f"{name}.png").write_bytes(figures.png(figure))
    return (place / PAGE, *(place / f"{name}.png" for name in pictures))


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """Turn the errors that malformed entries of the report cause into InvalidArgument."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        if isinstance(error, SurgeonError):
            raise
        cause = f"{type(error).__name__}: {error}"
        raise InvalidArgument(
            f"{folder / 'report.json'} holds an entry of another kind than surgeon shrink writes ({cause}); "
            "write it again with surgeon shrink"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if path.parent.suffix == ".onnx":
        raise InvalidArgument(
            f"{path.parent} is an ONNX file, which tells nothing of a cut; give the FOLDER that `surgeon shrink "
            f"{path.parent} -o FOLDER` writes"
        )
    if not path.exists():
        raise InvalidArgument(f"{path} is missing; name a folder of surgeon shrink -o")
    report: dict[str, Any] = _DOCUMENT.read(path)
    missing = {"model", "macs", "params", "groups", "budget", "requested", "reached"} - report.keys()
    if missing:
        raise InvalidArgument(f"{path} lacks {', '.join(sorted(missing))}; write it again with surgeon shrink")
    return report


def _points(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The requested, measured and predicted latency of each report that has a measured one."""
    found = [report.get("latency") or {} for report in reports]
    names = ("requested", "measured", "predicted")
    points = [{name: float(each[name]) for name in names} for each in found if each.get("measured")]
    return sorted(points, key=lambda point: point["requested"])


def _pictures(
    folder: Path, report: Mapping[str, Any], points: Sequence[Mapping[str, float]], threads: int | None, runs: int
) -> dict[str, Any]:
    pictures: dict[str, Any] = {}
    files = find(folder, "base.onnx"), find(folder, "slim.onnx")
    if all(file.is_file() for file in files):
        measured = report.get("benchmark")
        if threads is None and measured:
            threads = min(measured["threads"], cpus())
        with stage("profile operators"):
            example = _example(report)
            base, slim = (shares(file, threads=threads, runs=runs, example=example) for file in files)
        if measured:
            latencies = measured["base"]["low"], measured["slim"]["low"]
        else:
            latencies = sum(each.us for each in base) / 1e3, sum(each.us for each in slim) / 1e3
        pictures["latency"] = figures.operators(base, slim, latencies, _clock(measured) if measured else WALL_TIME)
    latency = report.get("latency") or {}
    if operators := milliseconds.rows(latency):
        pictures["operators"] = milliseconds.figure(operators, latency)
    groups = {name: (pair["before"], pair["after"]) for name, pair in report["groups"].items()}
    if len(groups) > _GROUPS or not all(type(n) is int and 0 <= n < 1 << 48 for pair in groups.values() for n in pair):
        raise ValueError("groups")
    if any(before != after for before, after in groups.values()):
        pictures["widths"] = figures.widths(groups)
    if len(points) > 1:
        pictures["budget"] = figures.budgets(points)
    return pictures


def _example(report: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shapes of the example inputs by name, which an ONNX file of the user's does not tell itself."""
    checked = ((report.get("exports") or {}).get("base") or {}).get("shapes_checked") or [{}]
    shapes: dict[str, list[int]] = dict(checked[0])
    if not all(type(size) is int and 0 < size < 1 << 32 for shape in shapes.values() for size in shape):
        raise ValueError("shapes_checked")
    return shapes


def _page(report: Mapping[str, Any], pictures: Mapping[str, Any], accuracy: Mapping[str, float]) -> str:
    title = html.escape(str(report["model"]))
    possible = report.get("possible")
    most = f", {percent(possible, ' ')} possible" if possible is not None else ""
    asked = f"{percent(report['requested'], ' ')} asked{most}"
    finer = len(report.get("unaligned") or {})
    made = " · ".join(str(report[name]) for name in ("command", "date") if report.get(name))
    lead = (
        f"{percent(report['reached'], ' ')} of the {report['budget']} removed ({asked}); "
        f"{'the same class' if report.get('form') == 'module' else 'a GraphModule'}"
        + (f"; {finer} groups at finer widths than the default, to meet the budget" if finer else "")
    )
    sections = _sections(report, pictures)
    body = "\n".join(f"<section><h2>{html.escape(title)}</h2>\n{text}</section>" for title, text in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>\n'
        f'<body><main><h1>{title}</h1><p class="lead">{html.escape(lead)}'
        f"{'<br><code>' + html.escape(made) + '</code>' if made else ''}</p>\n"
        f"{_tiles(report, accuracy)}\n{body}\n</main></body></html>\n"
    )


def _tiles(report: Mapping[str, Any], accuracy: Mapping[str, float]) -> str:
    tiles: list[tuple[str, str]] = []
    measured = report.get("benchmark")
    if measured:
        ratio = measured["ratio"]
        tiles.append((f"{ratio['value']:.2f}×", f"speed-up, 95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}"))
        before, after = measured["base"]["low"], measured["slim"]["low"]
        tiles.append((f"{after:.3g} ms", f"{_clock(measured)}, from {before:.3g} ms"))
    if job := report.get("metric"):
        tiles.append((f"{job['after']['value']:.4g}", f"{job['name']}, from {job['before']['value']:.4g}"))
    for name, key in (("MACs", "macs"), ("parameters", "params")):
        before, after = report[key]["before"], report[key]["after"]
        tiles.append((_short(after), f"{name}, from {_short(before)}"))
    exports = report.get("exports") or {}
    if {"base", "slim"} <= exports.keys():
        before, after = (exports[side]["bytes"] / 1e6 for side in ("base", "slim"))
        tiles.append((f"{after:.2f} MB", f"ONNX file, from {before:.2f} MB"))
    if kept := report.get("agreement"):
        what = "get the original's class" if kept["classes"] else "mean cosine to the original's outputs"
        inputs = "samples of noise: a guess" if kept["noise"] else "inputs that nothing was fitted to"
        tiles.append((_percent(kept["share"]), f"{what}, of {kept['samples']} {inputs}"))
    tiles += [(_percent(value), f"accuracy, {name}") for name, value in accuracy.items()]
    cells = "".join(f'<div class="tile"><b>{html.escape(b)}</b><span>{html.escape(s)}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{cells}</div>'


def _sections(report: Mapping[str, Any], pictures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The titles of the sections and their HTML."""
    if measured := report.get("benchmark"):
        yield "Verdict", _verdict(measured)
    if job := report.get("metric"):
        yield "How good it is at its job", _job(job)
    titles = {
        "latency": "Where the time goes", "operators": "Milliseconds, and what no widths touch", "widths": "Widths",
        "budget": "Latency against the budget",
    }
    for name, figure in pictures.items():
        text = milliseconds.said(milliseconds.rows(report["latency"])) if name == "operators" else ""
        yield titles[name], (f"<p>{html.escape(text)}</p>" if text else "") + figures.svg(figure)
    if latency := report.get("latency"):
        yield "Milliseconds", _latency(latency)
    if recovery := report.get("recovery"):
        yield "Recovery", _recovery(recovery)
    if notes := report.get("notes"):
        yield "Notes", "".join(f"<p>{html.escape(str(note))}</p>" for note in notes)
    if certificate := report.get("certificate"):
        yield "Certificate", _certificate(certificate)
    if pinned := report.get("pinned"):
        reasons = Counter(without_place(axis["reason"]) for axis in pinned).most_common()
        rows = [(reason, str(count)) for reason, count in reasons]
        yield f"Pinned: {len(pinned)} axes keep their size", _table(("reason", "axes"), rows) + (
            f"<p>What each reason means, and what to do: {PINNED}</p>"
        )
    if seconds := report.get("seconds"):
        rows = [(name, f"{taken:.1f}") for name, taken in seconds.items()]
        yield "Seconds of each stage", _table(("", "s"), rows)


def _clock(measured: Mapping[str, Any]) -> str:
    """By what a verdict was measured; one without a clock is of when there was but one."""
    return str(measured.get("clock", CPU_TIME))


def _latency(found: Mapping[str, Any]) -> str:
    names = {
        "base": "original", "requested": "asked for", "predicted": "predicted by the profile", "measured": "measured",
    }
    rows = [(name, f"{found[key]:.3f}") for key, name in names.items() if found.get(key) is not None]
    place = ""
    if {"device", "threads"} <= found.keys():
        place = f"On {found['device']}, {Clock(found['threads'], _clock(found) != CPU_TIME)}."
    measured = "" if found.get("measured") is not None else " Not measured: it is for another CPU."
    parts = [
        (f"{part['shapes']}, {part['weight']:.0%} of all runs", *(
            "" if part.get(key) is None else f"{part[key]:.3f}" for key in ("base", "predicted", "measured")
        ))
        for part in found.get("parts") or ()
    ]
    shapes = _table(("a run, ms", "original", "predicted", "measured"), parts) if parts else ""
    return f"<p>{html.escape(place + measured)}</p>{_table(('', 'ms'), rows)}{shapes}"


def _recovery(found: Mapping[str, Any]) -> str:
    rows = [(each["name"], f"{each['before']:.3f}", f"{each['after']:.3f}") for each in found["layers"]]
    said = (
        f"Outputs deviate by {found['after']:.3f} instead of {found['before']:.3f}, relative to the original's, on "
        f"samples held back; {found['samples']} samples in all."
    )
    layers = _table(("layer", "deviation before", "after"), rows)
    more = f"<details><summary>{len(rows)} layer{'s' * (len(rows) > 1)}</summary>{layers}</details>" if rows else ""
    if moved := found.get("distilled"):
        steps = f"in {moved['steps']} steps" if moved["steps"] else "but that did not help, and was undone"
        more += f"<p>Then distilled {html.escape(steps)}.</p>"
    more += "".join(f"<p>{html.escape(str(note))}</p>" for note in found.get("notes") or ())
    return f"<p>{html.escape(said)}</p>{more}"


def _job(found: Mapping[str, Any]) -> str:
    def shown(estimate: Mapping[str, Any]) -> Iterator[str]:
        for end in ("value", "low", "high"):
            yield "–" if estimate.get(end) is None else f"{estimate[end]:.4g}"

    names = {"before": "before", "after": "after", "kept": "share kept"}
    rows = [(name, *shown(found[key])) for key, name in names.items() if found[key]]
    said = f"By {found['name']}, on {found['count']} {found['by']}, with 95 % intervals."
    notes = "".join(f"<p>{html.escape(str(note))}</p>" for note in found["notes"])
    return f"<p>{html.escape(said)}</p>{_table(('', 'value', 'from', 'to'), rows)}{notes}"


def _verdict(measured: Mapping[str, Any]) -> str:
    decision = measured["decision"]
    said = f"The slim model is {decision}." if decision in ("faster", "slower") else f"There is {decision}."
    rows: list[tuple[str, ...]] = [
        (name, f"{measured['base'][key]:.3f}", f"{measured['slim'][key]:.3f}")
        for name, key in (
            (f"{_clock(measured)}, 10th percentile, ms", "low"),
            (f"{_clock(measured)}, median, ms", "median"),
            *([("wall time, median, ms", "wall")] if _clock(measured) == CPU_TIME else []),
        )
    ]
    if any(peaks := measured.get("peak_memory") or ()):
        rows.append(("peak memory, MiB", *("–" if each is None else f"{each:.1f}" for each in peaks)))
    layouts = measured.get("layout") or {}
    if {"base", "slim"} <= layouts.keys():
        for name, keys in (
            ("blocked convolutions", ("blocked",)),
            ("plain convolutions", ("plain", "fused")),
            ("changes of layout", ("reorders_in", "reorders_out")),
        ):
            rows.append((name, *(str(sum(layouts[side][key] for key in keys)) for side in ("base", "slim"))))
    plural = "s" if measured["threads"] > 1 else ""
    note = (
        f"{measured['runs']} timings of each, interleaved, {measured['threads']} thread{plural}, {_clock(measured)}. "
        f"Measuring the base against itself differs by up to {_percent(measured['noise'])}: that is this machine's "
        "noise."
    )
    text = f"<p><b>{html.escape(said)}</b> {html.escape(note)}</p>{_table(('', 'base', 'slim'), rows)}"
    explanation = _explanation(measured.get("explanation") or {})
    return text + (f"<pre>{html.escape(str(explanation))}</pre>" if explanation else "")


def _explanation(found: Mapping[str, Any]) -> Explanation:
    fallen = tuple(
        LostBlockedLayout(
            tuple(each["names"]),
            Convolution(**each["convolution"]),
            tuple(BlockingWidth(**culprit) for culprit in each["culprits"]),
        )
        for each in found.get("fallen", ())
    )
    before = tuple((str(name), int(count)) for name, count in found.get("before", ()))
    return Explanation(fallen, int(found.get("added", 0)), before)


def _certificate(found: Mapping[str, Any]) -> str:
    whole = found.get("end_to_end")
    lines = [
        ("operators compared, in float64", f"{found['operators']}"),
        ("largest relative deviation of any", f"{found['deviation']:.1e}"),
        ("found in", str(found.get("worst") or "–")),
        ("end to end, with zeroed parameters", f"{whole:.1e}" if whole is not None else found["end_to_end_reason"]),
    ]
    statistics = found.get("statistics") or ()
    if statistics:
        lines.append(("statistics over kept units only", "; ".join(statistics)))
    return _table(("", ""), lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text; columns after the first are numbers."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *[' class="n"'] * (len(cells) - 1)]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    top = f"<tr>{row(head, 'th')}</tr>" if any(head) else ""
    rest = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{top}{rest}</table>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(count: float) -> str:
    """A number with three digits: 1.46 M.

    >>> _short(1459800), _short(950)
    ('1.46 M', '950')
    """
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}"
