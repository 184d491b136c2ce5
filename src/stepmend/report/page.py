"""The page: one self-contained HTML file, drawn section by section; it opens offline."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic_core import to_jsonable_python

from stepmend.report import summary
from stepmend.report.sections import (
    accuracy,
    behaviour,
    blame,
    bullets,
    controls,
    effects,
    examples,
    kinds,
    margins,
    moves,
    noise,
    regularities,
    restoring,
    rounds,
    run_card,
    verdict,
    warnings,
)  # fmt: skip
from stepmend.report.summary import Found
from stepmend.rundir import write_text


class Section(Protocol):
    """A module of ``sections``; the template of its name beside it draws its figures."""

    def figures(self, found: Found) -> Any:
        """What the section shows, as plain or frozen values; empty or None where there is nothing to show."""
        ...


HEADER: dict[str, Section] = {"verdict": verdict, "warnings": warnings}
BODY: dict[str, Section] = {
    "accuracy": accuracy, "noise": noise, "moves": moves, "behaviour": behaviour, "kinds": kinds, "regularities": regularities,
    "margins": margins, "examples": examples, "restoring": restoring, "effects": effects, "controls": controls, "blame": blame,
    "rounds": rounds, "bullets": bullets, "run_card": run_card,
}  # fmt: skip


def write(found: Found, file: Path) -> None:
    """Write the page of a run, whole or not at all."""
    write_text(file, html(found))


def html(found: Found) -> str:
    """The page of a run. Its figures are in it as JSON too, by section."""
    figures = {name: section.figures(found) for name, section in (HEADER | BODY).items()}
    drawn = {name: _draw(f"{name}.html.j2", of=of) if of else "" for name, of in figures.items()}
    header = "".join(drawn[name] for name in HEADER)
    body = "\n".join(drawn[name].strip("\n") + "\n" if drawn[name] else "" for name in BODY)
    blob = {"title": f"{found.recipe.model} on {found.recipe.benchmark}", "figures": summary.figures(found), **to_jsonable_python(figures)}
    return render(blob, "page.html.j2", header=Markup(header), body=Markup(body))


def write_blob(blob: dict[str, Any], template: str, file: Path) -> None:
    """Write the page that a template draws from a blob, whole or not at all."""
    write_text(file, render(blob, template))


def render(blob: dict[str, Any], template: str, **parts: Markup) -> str:
    """A page's HTML, with the blob in it as JSON."""
    # '<' is escaped so that no text of a trace can end the script element.
    inlined = Markup(json.dumps(blob).replace("<", "\\u003c"))
    return _draw(template, **{**blob, **parts, "blob": inlined})


def _draw(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("stepmend.report", "templates"), PackageLoader("stepmend.report", "sections")
    made = Environment(loader=ChoiceLoader(loader), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"percent": summary.percent, "points": summary.points, "words": lambda name: name.replace("_", " ")}
    made.filters |= {"nats": restoring.nats, "change": restoring.change}
    return made
