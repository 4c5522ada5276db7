"""Chromium, and pages opened in it from their files."""

from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def launched():
    """A Chromium; without one, the tests that need it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        installed = [Path("/usr/bin/chromium"), Path(driver.chromium.executable_path)]
        executable = next((path for path in installed if path.is_file()), None)
        if executable is None:
            pytest.skip("chromium is not installed")
        browser = driver.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=60_000,
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1280, scheme="light", address="", **options):
    """A page opened from its file, offline; in the end there must be no console message and no request."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True, reduced_motion="reduce", **options
    )
    page, said, requested = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.resolve().as_uri() + address)
    yield page
    context.close()
    assert said == []
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []
