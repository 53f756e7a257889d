"""Open a page or an unzipped report in headless Chromium and note what it asks for and complains about."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
)


@dataclass
class Visit:
    """What a page showed, asked the network for, and complained about."""

    text: str = ""
    external: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


def visit(
    started: Any,
    path: Path,
    act: Callable[[Any], Any] | None = None,
    width: int = 1280,
    picture: Path | None = None,
) -> Visit:
    """Open a local page, do `act(page)`, and return what is visible with all external requests and complaints.

    A request is external unless it goes to a file, a data URL or a blob; it is noted and refused.
    """
    seen = Visit()
    page = started.new_page(viewport={"width": width, "height": 900})

    def route(found: Any) -> None:
        if found.request.url.startswith(("file:", "data:", "blob:", "about:")):
            found.continue_()
        else:
            seen.external.append(found.request.url)
            found.abort()

    def console(message: Any) -> None:
        if message.type == "error":
            seen.complaints.append(message.text)

    page.route("**/*", route)
    page.on("console", console)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(path.resolve().as_uri(), wait_until="load")
    if act is not None:
        act(page)
    seen.text = "\n".join(
        frame.evaluate("document.documentElement.innerText ?? ''") for frame in page.frames
    )
    if picture is not None:
        page.screenshot(path=picture, full_page=True)
    page.close()
    return seen
