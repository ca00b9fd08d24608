"""`ghmdet report`: one or several runs as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ghmdet.errors import GhmdetError
from ghmdet.files import write_atomic
from ghmdet.report.inspection import Inspection, inspect_run
from ghmdet.report.run_files import require_run, short_names
from ghmdet.report.sections import learning, plots, sections
from ghmdet.report.summary import templates
from ghmdet.report.training import PULLERS


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

    A run whose best checkpoint was not yet inspected on this data is inspected first: a pass over the data.

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
        GhmdetError: a folder that is no run, or `data` or `split` that cannot be used. Without those two, an inspection
            that fails is told in the report, and so is a file of the run that is damaged.
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
        parts.append(sections(path, name, f"r{number}", *_inspect(path, data, split, device, say)))
        for damage in parts[-1]["damage"]:
            say(damage)
    write_atomic(out, _render(parts))
    say(f"written: {out}")
    return out


def _inspect(
    run: Path, data: Path | None, split: str | None, device: str, say: Callable[[str], None]
) -> tuple[Inspection | None, str]:
    """What a run's best checkpoint does, and a note on it or why it could not be inspected."""
    if not (run / "best.pt").is_file():
        return None, "The run has no best.pt yet: it is written at the first validation that finds an object."
    try:
        inspection = inspect_run(run, data=data, split=split, device=device, say=say)
    except GhmdetError as error:
        if data is not None or split is not None:
            raise
        say(f"{run}: not inspected: {error}")
        return None, f"The best checkpoint could not be inspected: {error}."
    return inspection, inspection.note


def _render(parts: Sequence[dict[str, Any]]) -> str:
    folder = resources.files("ghmdet.report")
    css, js = (Markup((folder / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    together = _together(parts) if len(parts) > 1 else None
    template = templates().get_template("page.html.jinja")
    return template.render(parts=parts, together=together, pullers=PULLERS, css=css, js=js).lstrip()


def _together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs side by side: their curves, and the classes of any."""
    scores = {part["name"]: part["scores"]["AP"] for part in parts if "AP" in part["scores"]}
    losses = {part["name"]: part["losses"]["whole"] for part in parts if "whole" in part["losses"]}
    return {
        "learning": plots(learning(scores, losses), "together"),
        "classes": list(dict.fromkeys(name for part in parts for name in part["classes"])),
    }
