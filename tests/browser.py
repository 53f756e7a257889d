"""Open a page or an unzipped report in headless Chromium, and record its external requests and errors."""

import asyncio
import atexit
import functools
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
    """Visible text, external requests and error messages of a page."""

    text: str = ""
    external: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


# Requirements for a page at every width. Text in a drawing is measured at its displayed size.
SMALLEST = 11
FAULTS = """(smallest) => {
    const faults = [];
    const root = document.scrollingElement;
    if (root.scrollWidth > innerWidth) faults.push(`scrolls sideways: ${root.scrollWidth} px`);
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
        const around = node.parentElement;
        if (!node.data.trim() || !around.checkVisibility() || around.closest("script, style, title")) continue;
        const drawn = around.getScreenCTM?.();
        const size = parseFloat(getComputedStyle(around).fontSize) * (drawn ? Math.hypot(drawn.a, drawn.b) : 1);
        if (size < smallest - 0.05) faults.push(`${size.toFixed(1)} px: ${node.data.trim().slice(0, 60)}`);
    }
    for (const control of document.querySelectorAll("button, a[href], summary, input, select, textarea")) {
        const words = [control, ...(control.labels ?? [])].map((e) => e.textContent).join("");
        if (!words.trim() && !control.ariaLabel && control.checkVisibility()) {
            faults.push(`has no name: ${control.outerHTML.slice(0, 60)}`);
        }
    }
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    for (const id of new Set(ids.filter((id, place) => ids.indexOf(id) < place))) faults.push(`id ${id} twice`);
    return faults;
}"""


def faults(page: Any) -> list[str]:
    """List the faults of a page: horizontal scrolling, text that is too small, controls without a name."""
    return list(page.evaluate(FAULTS, SMALLEST))


def read_site(page: Any, nav: dict[str, str]) -> dict[str, str]:
    """Click through the site within Snakemake's first page; returns the text of each page."""
    frame, shown = page.wait_for_selector("iframe").content_frame(), {}
    for file, title in nav.items():
        frame.click(f"nav >> text={title}")
        frame.wait_for_url(f"**/{file}")
        shown[file] = frame.inner_text("body")
    return shown


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, started once in each process of the tests; skips the test where there is none."""
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    started, loop = _chromium()
    # playwright's event loop counts as running from its start, and other tests start one of their own
    asyncio._set_running_loop(loop)
    try:
        yield started
    finally:
        asyncio._set_running_loop(None)


@functools.cache
def _chromium() -> tuple[Any, Any]:
    from playwright.sync_api import sync_playwright

    driver = sync_playwright().start()
    started = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
    loop = asyncio._get_running_loop()

    def stop() -> None:
        asyncio._set_running_loop(loop)
        started.close()
        driver.stop()

    atexit.register(stop)
    return started, loop


@functools.cache
def _page(started: Any) -> Any:
    """The page in which all are opened in turn: a new one starts a process, which takes longer than most pages."""
    return started.new_page()


def visit(
    started: Any,
    path: Path,
    act: Callable[[Any], Any] | None = None,
    width: int = 1280,
    picture: Path | None = None,
) -> Visit:
    """Open a local page, call `act(page)`, and return the visible text, external requests and errors.

    A request is external unless it goes to a file, a data URL or a blob; it is recorded and blocked.
    """
    seen, page = Visit(), _page(started)

    def route(found: Any) -> None:
        if found.request.url.startswith(("file:", "data:", "blob:", "about:")):
            found.continue_()
        else:
            seen.external.append(found.request.url)
            found.abort()

    def console(message: Any) -> None:
        if message.type == "error":
            seen.complaints.append(message.text)

    def error(found: Any) -> None:
        seen.complaints.append(str(found))

    page.set_viewport_size({"width": width, "height": 900})
    page.route("**/*", route)
    page.on("console", console)
    page.on("pageerror", error)
    try:
        page.goto(path.resolve().as_uri(), wait_until="load")
        if act is not None:
            act(page)
        seen.text = "\n".join(
            frame.evaluate("document.documentElement.innerText ?? ''") for frame in page.frames
        )
        if picture is not None:
            page.screenshot(path=picture, full_page=True)
        # its requests and errors are of no other visit
        page.goto("about:blank")
    except BaseException:
        _page.cache_clear()
        page.close()
        raise
    page.remove_listener("console", console)
    page.remove_listener("pageerror", error)
    page.unroute("**/*", route)
    return seen
