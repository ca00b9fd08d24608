"""What a spectrum says, in numbers; and the sentences that words.jinja makes of numbers."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup, escape

from ghmdet.evaluation.score import ScoreUse
from ghmdet.report.reweighting import gradient_shares
from ghmdet.spectrum import OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

WRONG = REGIONS - 1  # the last region of g, where the detector is nearly certain, and wrong
FAR_OFF = 27  # the region of gr from which a coordinate is off by twice μ or more


class Summary(NamedTuple):
    """Numbers by name, ready for JSON, and what they mean, a sentence each."""

    numbers: dict[str, Any]
    sentences: list[str]


def summarize(spectrum: SpectrumCounts, scores: ScoreUse | None = None) -> Summary:
    """The last epoch of a spectrum in numbers and sentences; `scores`: those of the detections, if there are any."""
    examples, gradient = spectrum.examples[-1], spectrum.gradient[-1]  # [2, K, L, M]
    by_region = examples.sum(axis=(0, 1, 2))
    boxes = spectrum.boxes[-1].sum(axis=(0, 1))
    classes = _split(spectrum.classes, examples.sum(axis=(2, 3)), gradient.sum(axis=(0, 2, 3)))
    levels = _split(spectrum.strides, examples.sum(axis=(1, 3)), gradient.sum(axis=(0, 1, 3)))
    numbers = {
        "pictures": int(spectrum.pictures[-1]),
        "examples": _kinds(examples.sum(axis=(1, 2, 3))),
        "share_of_gradient": {
            "regions_of_g": _shares(gradient.sum(axis=(0, 1, 2))),
            "objects_by_loss": {
                loss: float(shares[OBJECTS].sum()) for loss, shares in gradient_shares(spectrum).items()
            },
        },
        "few_with_most": few_with_most(spectrum),
        "all_but_certainly_wrong": _kinds(examples[..., WRONG].sum(axis=(1, 2))),
        "classes": classes,
        "levels": levels,
        "box_coordinates": int(boxes.sum()),
        "box_coordinates_far_off": int(boxes[FAR_OFF:].sum()),
        "scores": scores,
    }
    if not by_region.sum():
        return Summary(numbers, ["Nothing was measured: there are no pictures."])
    objects = max(int(examples[OBJECTS].sum()), 1)
    above = {name: one["gradient"] - one["objects"] / objects for name, one in classes.items()}
    most = max(above, key=above.__getitem__)
    sentences = words(
        "spectrum",
        it=numbers,
        wrong=int(by_region[WRONG]),
        emptiest=int(by_region[1:WRONG].min()),
        most=most if above[most] > 0 else None,
        absent=[name for name, one in classes.items() if not one["objects"]],
        level=max(levels, key=lambda stride: levels[stride]["gradient"]),
    )
    return Summary(numbers, sentences)


def few_with_most(spectrum: SpectrumCounts) -> dict[str, float] | None:
    """The hardest regions of g whose share of the gradient is furthest above their share of the examples.

    From which g on they are, and both shares; None where there is no gradient.
    """
    counts = (each[-1].sum(axis=(0, 1, 2)) for each in (spectrum.examples, spectrum.gradient))
    examples, gradient = (each[::-1].cumsum()[::-1] / max(each.sum(), 1e-300) for each in counts)
    start = int((gradient - examples).argmax())
    if not gradient[0]:
        return None
    return {
        "from": start / REGIONS,
        "examples": float(examples[start]),
        "gradient": float(gradient[start]),
    }


def words(macro: str, **values: Any) -> list[str]:
    """The sentences that a macro of words.jinja makes of such values."""
    said = str(getattr(templates().get_template("words.jinja").module, macro)(**values))
    return [line for line in said.splitlines() if line.strip()]


@cache
def templates() -> Environment:
    """The report's templates, with filters for numbers, and `code` for text; what runs lack is empty in them."""
    environment = Environment(
        loader=PackageLoader("ghmdet", "report"),
        autoescape=lambda name: str(name).endswith(".html.jinja"),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "percent": percent, "number": number, "code": code}
    return environment


def script_json(value: object) -> Markup:
    """A value as compact JSON for a <script> of a page."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def score(value: object) -> str:
    """A number in 0..1 to three decimals, as in tables: .600, 1.000, or – for none."""
    return f"{value:.3f}".removeprefix("0") if isinstance(value, (int, float)) and value == value else "–"


def number(value: object) -> str:
    """A whole number with its thousands apart: 12,345, or – for none."""
    return f"{value:,}" if isinstance(value, int) else "–"


def code(text: str) -> Markup:
    """Text as markup, with what stands between backticks as code.

    >>> code("give `--size 640` & wait")
    Markup('give <code>--size 640</code> &amp; wait')
    """
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts)
    )


def percent(share: float) -> str:
    """A share as a percentage with two figures.

    >>> percent(0.714), percent(0.0042), percent(1.0)
    ('71 %', '0.42 %', '100 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def _split(names: Sequence[Any], examples: Ints, gradient: Floats) -> dict[str, dict[str, Any]]:
    """By name: examples of background and of objects [2, n], and the share of the gradient [n]."""
    shares = _shares(gradient)
    return {str(name): {**_kinds(examples[:, i]), "gradient": shares[i]} for i, name in enumerate(names)}


def _kinds(counts: Ints) -> dict[str, int]:
    return dict(zip(("background", "objects"), counts.tolist(), strict=True))


def _shares(values: Floats) -> list[float]:
    shares: list[float] = (values / (values.sum() or 1.0)).tolist()
    return shares
