"""The pictures of a run in the docs: its report page in headless Chromium, and what the terminal shows.

``python benchmarks/screenshots.py [RUN]`` writes all pictures to ``runs/screenshots`` and those that the docs use to ``docs/pictures``.
Without RUN, ``stepmend run --quick`` makes one in ``runs/quick``. With ``--front`` it also replaces ``docs/page.png``, the picture in
README: use it with the run of ``make demo``. Needs playwright, and a Chromium on the PATH.
"""

import argparse
import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import stepmend
from stepmend.cli.common import DEMO, show_figures
from stepmend.cli.watching import panel
from stepmend.progress import Update
from stepmend.store.progress import Progress

DOCS = Path(__file__).parents[1] / "docs"
OUT = Path("runs/screenshots")
SIZES = {"wide": (1200, 1320), "narrow": (400, 860)}
"""Width and height of the browser's window, in pixels."""
SCHEMES = ("light", "dark")
COLUMNS = (40, 80, 120)
"""Widths of the terminal, in characters."""
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
IN_DOCS = ("page-narrow-dark.png", "watch-80.svg")
"""Pictures that the docs show."""
WATCHED = Progress(
    update=Update("rtn-w3a16-g128: solve test", 412, 900, "problems", 24_700, now=412, seconds=20.0),
    lines=(
        "memory: about 0.21 GiB (model 0.01, optimizer 0.00, teacher 0.03, activations 0.15, logits 0.02); 19.1 GiB free",
        "codes: solving on 392 solutions (48,524 tokens)",
    ),
)
"""A running loop, as ``stepmend watch`` shows it."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()


def pages(run: Path, out: Path) -> None:
    """The report page: wide and narrow, light and dark; the top as a window shows it, and ``-full`` the whole page."""
    with chromium() as browser:
        for size, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                tab.goto((run / "report.html").resolve().as_uri())
                tab.screenshot(path=out / f"page-{size}-{scheme}.png")
                tab.screenshot(path=out / f"page-{size}-{scheme}-full.png", full_page=True)
                beyond = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                print(f"page-{size}-{scheme}: {beyond} pixels wider than the window")


def terminals(run: Path, out: Path) -> None:
    """``stepmend report`` and ``stepmend watch`` at each width."""
    running = WATCHED.model_copy(update={"written": time.time()})
    for width in COLUMNS:
        terminal(out / f"report-{width}.svg", f"stepmend report {run}", width, lambda screen: show_figures(run, screen))
        terminal(out / f"watch-{width}.svg", "stepmend watch runs/demo", width, lambda screen: screen.print(panel(DEMO, running)))


def terminal(file: Path, title: str, width: int, show: Callable[[Console], object]) -> None:
    """Write what is shown on a terminal of this width as an SVG, without the fonts that rich would load from elsewhere."""
    screen = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    show(screen)
    file.write_text(FONTS.sub("", screen.export_svg(title=title)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run")
    parser.add_argument("--front", action="store_true", help="also replace docs/page.png")
    given = parser.parse_args()
    run = given.run or Path(stepmend.run(out="runs/quick", quick=True).page).parent
    OUT.mkdir(parents=True, exist_ok=True)
    pages(run, OUT)
    terminals(run, OUT)
    for name in IN_DOCS:
        shutil.copyfile(OUT / name, DOCS / "pictures" / name)
    if given.front:
        shutil.copyfile(OUT / "page-wide-light.png", DOCS / "page.png")


if __name__ == "__main__":
    main()
