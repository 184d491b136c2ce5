"""The page: one self-contained HTML file, drawn from one JSON blob by templates; it opens offline."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stepmend.report import data, restoring, summary
from stepmend.report.summary import Found
from stepmend.rundir import write_text


def write(found: Found, file: Path) -> None:
    """Write the page of a run, whole or not at all."""
    write_blob(data.blob(found), "page.html.j2", file)


def write_blob(blob: dict[str, Any], template: str, file: Path) -> None:
    """Write the page that a template draws from a blob, whole or not at all."""
    write_text(file, render(blob, template))


def render(blob: dict[str, Any], template: str = "page.html.j2") -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("stepmend.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": summary.percent, "points": summary.points, "words": lambda name: name.replace("_", " ")}
    environment.filters |= {"nats": restoring.nats, "change": restoring.change}
    # '<' is escaped so that no text of a trace can end the script element.
    inlined = Markup(json.dumps(blob).replace("<", "\\u003c"))
    return environment.get_template(template).render(blob=inlined, **blob)
