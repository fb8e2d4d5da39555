"""The results of `benchmarks.latency` in Markdown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def table(rows: dict[str, Row], threads: int = 1) -> str:
    """All results so far, measured with so many threads."""
    kinds: dict[str, dict[str, Row]] = {}
    for key, row in rows.items():
        kind, _, name = key.partition(":")
        kinds.setdefault(kind, {})[name] = row
    parts = {
        "predict": _predict, "land": _land, "equal_macs": _equal_macs, "efficiency": _efficiency, "align": _align,
        "int8": _int8, "shapes": _shapes, "aa": _aa, "kit": _kit,
    }
    found = ["\n".join(part(kinds[kind])) for kind, part in parts.items() if kind in kinds]
    clock = f"{threads} threads, wall time" if threads > 1 else "one thread's CPU time"
    head = (
        f"onnxruntime, {clock}, float32 unless said, one image; random weights; what is compared runs interleaved."
    )
    return "\n\n".join([head, *found]) + "\n"


def _lines(head: str, columns: str, cells: list[list[str]]) -> list[str]:
    names = columns.split(" | ")
    rows = [names, ["---"] * len(names), *cells]
    return [head, "", *(f"| {' | '.join(row)} |" for row in rows)]


def _predict(rows: dict[str, Row]) -> list[str]:
    head = (
        "**Predicted against measured latency**, relative to the whole model, of random plans: each group keeps 30 to "
        "100 %, a third of the plans at multiples of 16, a third at any width, a third at odd ones. Rank: Spearman's "
        "correlation. MACs: what they alone would predict. Profile: seconds to take it, and to export the model first. "
        "Again: measurements repeated because the base took over 8 % more or less than when it was profiled."
    )
    columns = (
        "model | plans | mean error | worst | at 16 | any | odd | rank | by MACs: mean | rank | profile, s | again"
    )
    cells = [
        [
            name, str(len(row["plans"])), f"**{row['mean']:.1%}**", f"{row['worst']:.1%}",
            *(f"{value:.1%}" for value in row["mean_by_mode"].values()), f"{row['rank']:.3f}",
            f"{row['macs_mean']:.0%}", f"{row['macs_rank']:.3f}",
            f"{row['profile_seconds']:.0f} + {row['export_seconds']:.0f}",
            str(sum(plan.get("again", 0) for plan in row["plans"])),
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _land(rows: dict[str, Row]) -> list[str]:
    head = (
        '**A budget in milliseconds**: `shrink(model, 1 - asked, budget="latency")`, which profiles, measures and '
        "corrects at most once. Landed: measured again beside the base, over what was asked for. Bound: how much more "
        "damage than the best widths the chosen ones may do, by the profile."
    )
    columns = (
        "model | asked | landed | interval | by shrink itself | outcome | noise | corrections | MACs removed | bound "
        "| ms | seconds"
    )
    cells = [
        [
            name.partition(":")[0], f"{row['requested']:g}", f"**{row['ratio']:.3f}**",
            f"{row['low']:.3f}–{row['high']:.3f}", _number(row["within"], ".3f"), row.get("outcome", "–"),
            f"{row['noise']:.1%}", str(row["corrections"]),
            f"{row['removed']:.1%}", _number(row["gap"], ".1%"), f"{row['base_ms']:.1f} → {row['slim_ms']:.1f}",
            f"{row['seconds']:.0f}",
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _equal_macs(rows: dict[str, Row]) -> list[str]:
    head = (
        "**Against Torch-Pruning at equal MACs**: it is asked for half the MACs, a latency budget is bisected until "
        "surgeon's plan has the MACs that it landed at. Faster: its milliseconds over surgeon's."
    )
    columns = "model | system | MACs left: peer | surgeon | surgeon is faster | interval | ms: peer | surgeon"
    cells = [
        [
            name, system, f"{row['left']:.1%}", f"{row['left'] * row['macs'][1] / row['macs'][0]:.1%}",
            f"**{row['ratio']:.2f}×**", f"{row['low']:.2f}–{row['high']:.2f}",
            f"{row['base_ms']:.1f}", f"{row['slim_ms']:.1f}",
        ]
        for name, found in rows.items()
        for system, row in found["peers"].items()
    ]
    return _lines(head, columns, cells)


def _efficiency(rows: dict[str, Row]) -> list[str]:
    head = (
        "**How much of a reduction in MACs arrives on the clock**, at about 3.6 times fewer. Uniform: the same share "
        "of every group, at multiples of 16."
    )
    columns = "model | MACs ÷ | speed-up | interval | speed-up ÷ reduction | uniform | ms"
    cells = [
        [
            name, f"{row['reduction']:.2f}", f"{row['speedup']:.2f}×", f"{row['low']:.2f}–{row['high']:.2f}",
            f"**{row['ratio']:.2f}**", f"{row['uniform']['speedup'] / row['uniform']['reduction']:.2f}",
            f"{row['base_ms']:.1f} → {row['slim_ms']:.1f}",
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _align(rows: dict[str, Row]) -> list[str]:
    head = "**Odd plans made fast**: random plans at odd widths after `Plan.align`, over themselves."
    columns = "model | plans | latency | best and worst | MACs | groups with fewer channels"
    cells = [
        [
            name, str(len(row["plans"])), f"**{row['ratio']:.2f}×**", f"{row['best']:.2f}–{row['worst']:.2f}",
            f"{row['macs']:+.0%}", str(row["fewer"]),
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _int8(rows: dict[str, Row]) -> list[str]:
    head = (
        "**Pruned and int8 together**, over the whole model in float32. Weights are random: the deviation of the "
        "outputs from float32's is no accuracy."
    )
    columns = "model | MACs ÷ | pruned | pruned and int8 | interval | int8 alone | kept | deviation | ms"
    cells = [
        [
            name, f"{row['reduction']:.2f}", f"{row['pruned']:.2f}×", f"**{row['ratio']:.2f}×**",
            f"{row['low']:.2f}–{row['high']:.2f}", _number(row["step"], ".2f") + ("×" if row["step"] else ""),
            "int8" if row["accepted"] else "float32", _number(row["deviation"], ".3f"),
            f"{row['base_ms']:.1f} → {row['slim_ms']:.1f}",
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _shapes(rows: dict[str, Row]) -> list[str]:
    head = (
        "**Plans for other runs**: half the latency of the run that a plan is for; the share of the whole model's time "
        "that it takes on each."
    )
    runs = list(next(iter(rows.values()))["left"])
    columns = " | ".join(["model", "plan for", "MACs removed", *(f"on {run}" for run in runs), "noise"])
    cells = [
        [
            name, plan, f"{row['plans'][plan]['macs']:.1%}",
            *(f"**{share:.3f}**" if run == plan else f"{share:.3f}" for run, share in found.items()),
            f"{row['plans'][plan]['noise']:.1%}",
        ]
        for name, row in rows.items() for plan, found in row["left"].items()
    ]
    return _lines(head, columns, cells)


def _aa(rows: dict[str, Row]) -> list[str]:
    row = rows[""]
    counts = ", ".join(f"{name} {count}" for name, count in row["verdicts"].items())
    return [
        f"**Verdicts on equal models**: of {row['trials']} measurements of a model against a copy of itself, "
        f"**{row['called']:.1%}** were called faster or slower ({counts})."
    ]


def _kit(rows: dict[str, Row]) -> list[str]:
    head = (
        "**The kit** in a fresh environment that holds numpy and onnxruntime: groups that get the same width for half "
        "the latency by its profile as by one taken here, by two taken here, and in two whole runs of `surgeon.plan`, "
        "which measure and correct; and how far the latencies that the two profiles predict for these plans are apart."
    )
    columns = "model | kit and here | here twice | `surgeon.plan` | apart | whole model, ms | MACs left | seconds"
    cells = [
        [
            name, f"**{row['same']:.0%}**", f"{row['control']:.0%}", f"{row['plans_same']:.0%}", f"{row['off']:.1%}",
            " and ".join(f"{ms:.2f}" for ms in row["ms"]), " and ".join(f"{left:.1%}" for left in row["macs"][:2]),
            f"{row['seconds']:.0f}",
        ]
        for name, row in rows.items()
    ]
    return _lines(head, columns, cells)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
