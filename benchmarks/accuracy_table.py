"""The results of `benchmarks.accuracy` in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.accuracy_rows import COMPARED, PARTS

#: Networks of published weights: the name, what is scored, and how that is written.
PUBLISHED = {
    "crepe_full": ("CREPE, full", "pitch", "{:.1%}"),
    "crepe_tiny": ("CREPE, tiny", "pitch", "{:.1%}"),
    "lite0": ("EfficientNet-Lite0", "top-1", "{:.1%}"),
    "lite1": ("EfficientNet-Lite1", "top-1", "{:.1%}"),
    "lite2": ("EfficientNet-Lite2", "top-1", "{:.1%}"),
    "minilm": ("all-MiniLM-L6-v2", "cosine", "{:.3f}"),
    "resemblyzer": ("Resemblyzer", "cosine", "{:.3f}"),
    "pnet": ("MTCNN, P-Net", "kept", "{:.1%}"),
    "rnet": ("MTCNN, R-Net", "kept", "{:.1%}"),
    "onet": ("MTCNN, O-Net", "kept", "{:.1%}"),
}

Row = dict[str, Any]
Cells = list[str]
#: The rows of one kind by (network, share of the MACs removed), one a seed.
Seeds = dict[tuple[str, float], list[Row]]


def table(rows: dict[str, Row]) -> str:
    """All results so far."""
    kinds: dict[str, Seeds] = {}
    for key, row in rows.items():
        kind, *names, ratio, _ = key.split(":")
        kinds.setdefault(kind, {}).setdefault((names[0] if names else kind, float(ratio)), []).append(row)
    sections: dict[str, Callable[[dict[str, Seeds]], list[str]]] = {
        "free": _untrained, "noise": _noise, "parts": _parts, "peer": _criteria, "tune": _tuned,
    }
    found = [make(kinds) for kind, make in sections.items() if kind in kinds]
    if told := [row for kind in kinds.values() for seeds in kind.values() for each in seeds for row in _told(each)]:
        found.append(_guesses(told))
    published = {key: rows[key] for name in PUBLISHED for key in sorted(rows) if key.startswith(f"{name}:")}
    if published:
        found.append(_published(published))
    return "\n\n".join(map("\n".join, found)) + "\n"


def _told(row: Row) -> list[Row]:
    """The row, and those inside of it, that hold the agreement that `shrink` told and the true one."""
    inside = [each for value in row.values() if isinstance(value, dict) for each in _told(value)]
    return [row, *inside] if {"predicted", "agreement"} <= row.keys() else inside


def _guesses(rows: list[Row]) -> list[str]:
    head = (
        "**Agreement that `shrink` tells**, on inputs that nothing was fitted to, against that on the 10,000 test "
        "images: the share that get the network's own class. Error: points, the mean over rows. Rank: Spearman's "
        "correlation over rows."
    )
    given = [row for row in rows if "images" in row]
    made = [row for row in rows if "images" not in row]
    cells = []
    for name, some in (("unlabeled images", given), ("noise or synthesized", made), ("all", rows)):
        if some:
            error = 100 * statistics.mean(abs(row["predicted"] - row["agreement"]) for row in some)
            cells.append([name, str(len(some)), f"{error:.1f}", _rank_correlation(some)])
    return _lines(head, "inputs | rows | error | rank", cells)


def _rank_correlation(rows: list[Row]) -> str:
    ranks: list[np.ndarray] = []
    for name in ("predicted", "agreement"):
        values = np.array([row[name] for row in rows])
        low, high = (np.searchsorted(np.sort(values), values, side) for side in ("left", "right"))
        ranks.append(low + high)  # equal values share the mean of their ranks
    return f"{np.corrcoef(ranks)[0, 1]:.2f}" if all(len(set(each.tolist())) > 1 for each in ranks) else "–"


def _lines(head: str, columns: str, cells: Iterable[Cells]) -> list[str]:
    names = columns.split(" | ")
    return [head, "", *(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *cells])]


def _untrained(kinds: dict[str, Seeds]) -> list[str]:
    counts = {kind: max(map(len, kinds.get(kind, {}).values()), default=0) for kind in ("free", "fast", "nodata")}
    head = (
        "**Without labels**: top-1 on the 10,000 test images of Fashion-MNIST, mean ± half the range over seeds (at "
        f"most {counts['free']} at any width, {counts['fast']} at fast ones, {counts['nodata']} without data), from "
        "unlabeled images of the training set. Lost: percentage points. Fast: widths that are fast in "
        "onnxruntime, with the measured speed-up. No data: inputs synthesized from the network alone. Seconds: CPU, of "
        "one core. Torch-Pruning: the best of its criteria. Zeroed: `torch.nn.utils.prune.ln_structured`, the same "
        "share of each layer's channels, which makes nothing smaller."
    )
    columns = (
        "network (dense) | MACs left | images | any width | lost | seconds | fast | lost | speed-up | no data | lost "
        "| seconds | Torch-Pruning | zeroed"
    )
    return _lines(head, columns, [_untrained_row(place, kinds) for place in kinds["free"]])


def _untrained_row(place: tuple[str, float], kinds: dict[str, Seeds]) -> Cells:
    every = (kinds.get(kind, {}).get(place, []) for kind in ("free", "fast", "nodata", "peer"))
    free, fast, made_up, peer = map(_alike, every)
    dense = free[0]["dense"]
    return [
        f"{place[0]} ({dense:.2%})", f"{1 - place[1]:.0%}", f"{free[0].get('images', '–')}",
        f"**{_mean(free)}**", _lost(free, dense), _seconds(free),
        _mean(fast), _lost(fast, dense),
        f"{statistics.mean(row['ratio'] for row in fast):.2f}×" if fast else "–",
        _mean(made_up), _lost(made_up, dense), _seconds(made_up),
        f"{peer[0]['accuracy']:.2%} ({peer[0]['best']})" if peer and "best" in peer[0] else "–",
        f"{peer[0]['zeroed']:.2%}" if peer else "–",
    ]


def _noise(kinds: dict[str, Seeds]) -> list[str]:
    head = (
        "**Without any data**, at fast widths: top-1 of the plain cut (`compensate=False`), of the default, which "
        'makes 64 samples of noise for itself, and of `data="noise"` with 256, '
        f"mean ± half the range over {max(map(len, kinds['noise'].values()))} seeds. Seconds: CPU, of one core, of "
        "all of `shrink`."
    )
    columns = "network | MACs left | plain cut | seconds | default | seconds | 256 samples | seconds"
    cells = []
    for (network, ratio), rows in kinds["noise"].items():
        each = [[row[name] for row in rows] for name in ("plain", "64", "256")]
        shown = [cell for found in each for cell in (_mean(found), _seconds(found))]
        cells.append([network, f"{1 - ratio:.0%}", *shown])
    return _lines(head, columns, cells)


def _alike(rows: list[Row]) -> list[Row]:
    """The rows from as many images as the one from the most."""
    most = max((row.get("images", 0) for row in rows), default=0)
    return [row for row in rows if row.get("images", 0) == most]


def _parts(kinds: dict[str, Seeds]) -> list[str]:
    head = (
        "**What each part adds**: each switched off by itself, at any width, one seed. Without selection: the units "
        "with the largest weights, at the widths that the data ask for. Without allocation: the same share of every "
        "group. Without data: nothing but the weights tells what is cut, and nothing is made up for."
    )
    names = [f"without {name}" if index else name for index, name in enumerate(PARTS)]
    cells = [
        [place[0], f"{1 - place[1]:.0%}", *(_mean([seeds[0][name]] if name in seeds[0] else []) for name in PARTS)]
        for place, seeds in kinds["parts"].items()
    ]
    return _lines(head, " | ".join(["network", "MACs left", *names]), cells)


def _criteria(kinds: dict[str, Seeds]) -> list[str]:
    head = (
        "**Torch-Pruning's criteria**, without training, heads and tokens declared; ranked globally unless said. "
        f"Taylor and Hessian learn from labels. On the first {COMPARED:,} test images."
    )
    names = list(next(iter(kinds["peer"].values()))[0]["criteria"])
    cells = [
        [place[0], f"{1 - place[1]:.0%}", *(_score(seeds[0]["criteria"].get(name, {})) for name in names)]
        for place, seeds in kinds["peer"].items()
    ]
    return _lines(head, " | ".join(["network", "MACs left", *names]), cells)


def _tuned(kinds: dict[str, Seeds]) -> list[str]:
    rows = next(iter(kinds["tune"].values()))
    head = (
        f"**After one epoch** on {rows[0]['images']:,} labeled images, one seed: the same loop, the better of the "
        "same peak rates for each, chosen on images held back. Torch-Pruning: its best straight after the cut."
    )
    columns = (
        "network | MACs left | surgeon: straight | after the epoch | Torch-Pruning: straight | after the epoch | ahead"
    )
    cells = []
    for (network, ratio), (ours, *_) in kinds["tune"].items():
        theirs = kinds.get("tune_peer", {}).get((network, ratio), [{}])[0]
        cells.append([
            network, f"{1 - ratio:.0%}", f"{ours['straight']:.2%}", f"**{ours['accuracy']:.2%}**",
            *(
                (
                    f"{theirs['straight']:.2%} ({theirs['criterion']})", f"{theirs['accuracy']:.2%}",
                    f"{100 * (ours['accuracy'] - theirs['accuracy']):+.2f}",
                )
                if theirs else ("–", "–", "–")
            ),
        ])
    return _lines(head, columns, cells)


def _published(rows: dict[str, Row]) -> list[str]:
    head = (
        "**Published weights**, nothing trained on labels: what a smaller network scores on inputs that are held back. "
        "Pitch: right within 50 cents, of harmonic sounds whose pitch is known. Top-1: the original's, on crops of "
        "photographs. Cosine: of embeddings of sentences, or of who speaks, to the original's. Kept: the share of the "
        "variance of the original's outputs, on crops. With 256 unlabeled inputs, on noise, and from the weights "
        "alone, at widths that are fast in onnxruntime. Torch-Pruning: multiples of 16 as widths (MTCNN: any), batch "
        "norms have statistics of the same 256 inputs, and the criterion is the one that does best on what is held "
        "back. Seconds: CPU, of all of `shrink` with the inputs."
    )
    columns = (
        "network | score | original | MACs left | 256 inputs | seconds | noise | weights alone | Torch-Pruning"
    )
    cells = []
    for key, row in rows.items():
        name, ratio, _ = key.split(":")
        full, measure, form = PUBLISHED[name]
        data = row["data"]
        cells.append([
            full, measure, form.format(row["original"]), f"{1 - float(ratio):.0%}",
            f"**{_cell(data, form)}**", f"{data['seconds']:.0f}" if "seconds" in data else "–",
            _cell(row["noise"], form), _cell(row["plain"], form), _best(row["peer"], form),
        ])
    return _lines(head, columns, cells)


def _cell(row: Row, form: str) -> str:
    return form.format(row["score"]) if "score" in row else "fails"


def _best(peer: Row, form: str) -> str:
    """The best of the criteria, with its MACs where they are others than what is asked for."""
    ran = {name: each for name, each in peer.items() if "score" in each}
    if not ran:
        return "fails"
    name = max(ran, key=lambda each: ran[each]["score"])
    return f"{form.format(ran[name]['score'])} ({name})"


def _score(row: Row) -> str:
    return f"{row['score']:.1%}" if "score" in row else "fails"


def _seconds(rows: list[Row]) -> str:
    return f"{statistics.median(row['seconds'] for row in rows):.0f}" if rows else "–"


def _mean(rows: list[Row]) -> str:
    if not rows:
        return "–"
    values = [row["accuracy"] for row in rows]
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.2%}" + (f" ± {100 * spread:.2f}" if spread else "")


def _lost(rows: list[Row], dense: float) -> str:
    return f"{100 * (dense - statistics.mean(row['accuracy'] for row in rows)):.2f}" if rows else "–"
