"""`ghmdet report`: one or several runs as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ghmdet.errors import GhmdetError
from ghmdet.files import write_atomic
from ghmdet.report.inspection import inspect_run
from ghmdet.report.run_files import read_json, read_run, require_run, short_names
from ghmdet.report.sections import Sections, learning, sections
from ghmdet.report.summary import percent
from ghmdet.report.training_spectrum import PULLERS


def write_report(
    runs: Sequence[Path],
    /,
    *,
    out: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Write what runs did, saw and get wrong as one HTML page that opens anywhere (docs/report.md).

    A run whose `inspection/` is missing or older than its `best.pt` is inspected first: a pass over the data.

    Args:
        runs: Folders of training runs, finished or not; several are put side by side.
        out: The file; by default `report.html` in the run's folder, or in the current one for several runs.
        data: Data set to inspect the best checkpoint on; by default the one it was trained on.
        split: Part of the data set; by default the one it was validated on.
        device: auto, cpu or cuda, for the inspection.
        say: Takes each line meant for the user.

    Returns:
        The file.

    Raises:
        GhmdetError: a folder that is no run, a file in it that cannot be read, or `data` or `split` that cannot be
            used. Without those two, an inspection that fails is told in the report.
    """
    paths = list(dict.fromkeys(Path(run).resolve() for run in runs))
    if not paths:
        raise GhmdetError("no run is given: name at least one folder of `ghmdet train`")
    if out is None:
        out = paths[0] / "report.html" if len(paths) == 1 else Path("report.html")
    for path in paths:
        require_run(path)
    parts = []
    for number, (path, name) in enumerate(zip(paths, short_names(paths), strict=True), start=1):
        why_not = _inspect(path, data, split, device, say)
        parts.append(sections(read_run(path, name), f"r{number}", why_not))
    write_atomic(out, _render(parts))
    say(f"written: {out}")
    return out


def _inspect(run: Path, data: Path | None, split: str | None, device: str, say: Callable[[str], None]) -> str:
    """Inspect a run's best checkpoint unless that was done; why it could not be, or nothing."""
    checkpoint, found = run / "best.pt", run / "inspection" / "findings.json"
    if not checkpoint.is_file():
        return "The run has no best.pt yet: it is written at the first validation that finds an object."
    if found.is_file() and found.stat().st_mtime >= checkpoint.stat().st_mtime:
        made = read_json(found) or {}
        if data in (None, Path(made.get("data", ""))) and split in (None, made.get("split")):
            return ""
    try:
        inspect_run(run, data=data, split=split, device=device, say=say)
    except GhmdetError as error:
        if data is not None or split is not None:
            raise
        say(f"{run}: not inspected: {error}")
        return f"The best checkpoint could not be inspected: {error}."
    return ""


def _render(parts: Sequence[Sections]) -> str:
    environment = Environment(
        loader=PackageLoader("ghmdet", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["pullers"] = PULLERS
    environment.filters |= {"score": _score, "percent": percent, "number": _number}
    folder = resources.files("ghmdet.report")
    inlined = {name: Markup((folder / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    drawing = Markup((folder / "spectrum.js").read_text(encoding="utf-8"))
    template = environment.get_template("page.html.jinja")
    return template.render(
        parts=parts, together=_together(parts) if len(parts) > 1 else None, drawing=drawing, **inlined
    )


def _together(parts: Sequence[Sections]) -> dict[str, Any]:
    """The runs side by side: their curves, and the classes of any."""
    scores = {part.files.name: part.files.scores["AP"] for part in parts if "AP" in part.files.scores}
    losses = {part.files.name: part.files.losses["whole"] for part in parts if "whole" in part.files.losses}
    return {
        "learning": learning(scores, losses, "together"),
        "classes": list(dict.fromkeys(name for part in parts for name in part.classes)),
    }


def _score(value: float | None) -> str:
    """A figure in 0..1 to three decimals, as in tables: .600, 1.000, or – for none."""
    return "–" if value is None or value != value else f"{value:.3f}".removeprefix("0")


def _number(value: float) -> str:
    return f"{value:,}"
