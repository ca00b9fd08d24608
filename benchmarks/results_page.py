"""Draw docs/results.md from the measured rows in results/.

python benchmarks/results_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxy_table import section

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"

HEAD = """# Measured results

This page is drawn from the rows in `benchmarks/results/` by `python benchmarks/results_page.py`; nothing in it is
typed by hand. Each row is one run of `python benchmarks/real_data.py DATA_ROOT NAME --seed N`, which trains, then
scores the best checkpoint. The checkpoint, and all settings, are chosen on *val*; *test* is only reported. One seed is
one draw: differences of one or two points of AP between single runs mean nothing.

Data: `bccd` is the blood-cell set BCCD (MIT; 205 training pictures, classes 11 : 1 : 1), `cards` are photographs of
playing cards (Apache-2.0; 296 training pictures, six classes).
"""

TWO_RANKS = """`python benchmarks/two_ranks.py DATA` trains with `torchrun --nproc-per-node 2` and with one process at
the same global batch, and compares the losses. The first steps agree to 1e-6; then rounding grows, as it does between
two runs of one process with another number of threads.
"""


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")


def row_cells(row: dict[str, Any]) -> str:
    best = f" ({row['minutes_to_best']:.1f})" if "minutes_to_best" in row else ""
    cells = [row["run"], str(row["seed"]), f"{row['minutes']:.1f}{best}"]
    for part in ("val", "test"):
        cells += [figure(row[part][key]) if part in row else "" for key in ("AP", "AP50")]
    per_class = row["val"]["per_class"]
    cells.append(", ".join(f"{name} {figure(value)}" for name, value in per_class.items()))
    return "| " + " | ".join(cells) + " |"


COMPARED = """Each file `benchmarks/results/compare_*.json` is the `comparison.json` of one `ghmdet compare`: last
weights, the same seeds for every arm; differences from the first arm are paired, with 95 % intervals over pictures and
seeds.
"""


def comparison(path: Path) -> list[str]:
    """The table of one comparison."""
    result = json.loads(path.read_text())
    command, gone, base = result["made"]["command"].partition(" --anchor-base 2.5")
    then = " (anchors from 2.5 strides on, an option that has gone since)" if gone else ""
    lines = [f"\n`{command}{base}`{then}, {result['made']['started'][:10]}, seeds {result['seeds']}:\n"]
    lines.append("| arm | weight | AP | AP50 | difference | 95 % interval | P(better) | by class |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, arm in result["arms"].items():
        cells = [name, f"{arm['weight']:g}"]
        cells += [f"{figure(arm[key]['mean'])} ± {figure(arm[key]['std'])}" for key in ("AP", "AP50")]
        found = arm["difference"]
        if found:
            interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
            cells += [f"{found['mean']:+.3f}", interval, f"{found['probability_better']:.2f}"]
        else:
            cells += ["-", "-", "-"]
        cells.append(
            ", ".join(f"{label} {figure(value['AP']['mean'])}" for label, value in arm["per_class"].items())
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    rows = [json.loads(line) for line in (HERE / "results" / "real_data.jsonl").read_text().splitlines()]
    lines = [HEAD]
    lines.append("| run | seed | minutes | val AP | val AP50 | test AP | test AP50 | val AP by class |")
    lines.append("|---|---|---|---|---|---|---|---|")
    lines += [row_cells(row) for row in rows]
    lines.append(
        "\nMinutes are training and validation together, by the clock, in brackets those to the best checkpoint, which"
        " is what is judged. How each was made:\n"
    )
    for row in rows:
        lines.append(
            f"- {row['run']}, seed {row['seed']}: `{row['command']}`; {row['machine']}; {row['date']}"
        )
    lines += ["\n## Two processes against one\n", TWO_RANKS]
    for line in (HERE / "results" / "two_ranks.jsonl").read_text().splitlines():
        row = json.loads(line)
        ranks, threads = row["two_ranks"], row["two_threads"]
        lines.append(
            f"- `{row['command']}`, {row['date']}: over {row['steps']} steps (loss {row['first_loss']:.3f} to"
            f" {row['last_loss']:.3f}) the mean loss of an epoch differed by {ranks['epoch']:.1e} at most, the loss of"
            f" a step by {ranks['step']:.1e}. The control, one process with two threads in place of one, differed by"
            f" {threads['epoch']:.1e} and {threads['step']:.1e}."
        )
    compared = sorted((HERE / "results").glob("compare_*.json"))
    if compared:
        lines += ["\n## Losses compared, everything trained\n", COMPARED]
        for path in compared:
            lines += comparison(path)
    lines += section(sorted((HERE / "results").glob("proxy_*.jsonl")))
    PAGE.write_text("\n".join(lines) + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
