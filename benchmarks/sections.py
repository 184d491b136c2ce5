"""A results page that benchmarks write section by section: `## title` and what stands under it."""

from collections.abc import Iterable
from pathlib import Path


def write(page: Path, head: str, text: str, order: Iterable[str] | None = None) -> None:
    """Put a section into the page, in place of an older one of the same title; in the order of titles, or backwards by them."""
    parts = [f"## {part.strip()}\n" for part in page.read_text().split("\n## ")[1:]] if page.exists() else []
    kept = {_title(part): part for part in (*parts, text)}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(head + "\n".join(kept[title] for title in order or sorted(kept, reverse=True) if title in kept))


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("## ")
