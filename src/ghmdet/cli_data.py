"""The commands of `ghmdet data`: they only parse and call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from ghmdet.data.make import SynthConfig
from ghmdet.errors import GhmdetError

data_app = App(name="data", help="Look at data sets and make new ones.")

# Lines are never wrapped: what is printed can be searched, and an error stays one line.
console = Console(soft_wrap=True, highlight=False, markup=False)


@data_app.command
def synth(
    out: Path,
    /,
    *,
    config: Annotated[SynthConfig, Parameter(name="*")] = SynthConfig(),  # noqa: B008 - frozen
) -> None:
    """Draw a deterministic set of scenes, with dials for imbalance, hard examples and wrong labels.

    Parameters
    ----------
    out
        Folder of the new data set; one that `synth` made before is replaced.
    """
    from ghmdet.data.make import synthesize

    console.print(str(synthesize(out, config)))


@data_app.command(name="check")
def check(data: Path, /, *, split: str | None = None) -> int:
    """List every problem of a data set; exits with 1 if any is an error.

    Parameters
    ----------
    data
        Folder of the data set, or a COCO annotations file.
    split
        The one part to check; all parts by default.
    """
    from ghmdet.data import check_data, format_problems, has_errors
    from ghmdet.engine.progress import counting

    with counting("pictures", None) as advance:
        problems = check_data(data, split, progress=lambda done, total: advance(1))
    console.print(format_problems(problems))
    return int(has_errors(problems))


@data_app.command
def thin(
    data: Path,
    out: Path,
    /,
    *,
    keep: list[str],
    how: Literal["images", "erase"] = "images",
    split: str = "train",
    seed: int = 0,
) -> None:
    """Make a long-tailed set of another: chosen classes keep a share of their boxes in one part.

    No visible object loses its label: pictures are left out, or objects are erased from them.

    Parameters
    ----------
    data
        Folder of the data set, or a COCO annotations file.
    out
        Folder of the new one; one that `thin` made before is replaced.
    keep
        CLASS=SHARE, the share above 0 and up to 1; once for each class.
    how
        images: leave pictures out. erase: fill in objects that hardly overlap others, then leave pictures out.
    split
        Part to thin; the others are copied.
    seed
        Decides between objects, and between pictures that are equally good.
    """
    from ghmdet.data.make import thin as run
    from ghmdet.engine.progress import counting

    with counting("pictures", None) as advance:
        console.print(str(run(data, out, _shares(keep), how=how, split=split, seed=seed, progress=advance)))


def _shares(keep: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for each in keep:
        name, _, share = each.rpartition("=")
        if name in shares:
            raise GhmdetError(f"--keep {each}: class '{name}' is there twice: give one share")
        try:
            shares[name] = float(share)
        except ValueError:
            name = ""
        if not name:
            raise GhmdetError(f"--keep {each}: give CLASS=SHARE, as in --keep car=0.1")
    return shares


@data_app.command
def anchors(
    data: Path,
    /,
    *,
    split: str = "train",
    model: str = "nano",
    size: int | None = None,
    anchor_base: float | None = None,
    anchor_ratios: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None,
) -> None:
    """Say which boxes no anchor can match, and which anchors would match more.

    Parameters
    ----------
    data
        Folder of the data set, or a COCO annotations file.
    split
        Part of the data set to look at.
    model
        Preset: nano, r18, r50 or r50_v2.
    size
        Longest side of a training picture in pixels; the preset's own by default.
    anchor_base
        Side of the smallest anchor in strides of its level; the preset's own by default.
    anchor_ratios
        Shapes of the anchors, height over width; the preset's own by default.
    """
    from ghmdet.data import read_data
    from ghmdet.engine.anchor_fit import fit_anchors
    from ghmdet.engine.progress import counting
    from ghmdet.models import preset

    config = preset(model, size=size, anchor_base=anchor_base, anchor_ratios=anchor_ratios)
    read = read_data(data, split)
    console.print(read.describe())
    with counting("pictures", None) as advance:
        fit = fit_anchors(read, config, progress=advance)
    console.print(fit.table())
