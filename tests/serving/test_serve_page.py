"""The page of the service in Chromium: photos in, answers, attention, corrections, and no request elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.conftest import colors_run, photo, served

from resnetlab.serving.phone import network_address

DROP = """([content, kind]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "photo", { type: "image/png" }));
    const options = { bubbles: true, cancelable: true };
    const event = kind === "paste"
        ? new ClipboardEvent(kind, { ...options, clipboardData: data })
        : new DragEvent(kind, { ...options, dataTransfer: data });
    document.body.dispatchEvent(event);
}"""
DARKEST = """() => {
    const spot = document.getElementById("spot");
    const copy = new OffscreenCanvas(spot.width, spot.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(spot, 0, 0);
    return Math.max(...copy.getImageData(0, 0, spot.width, spot.height).data.filter((_, place) => place % 4 === 3));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        installed = [Path("/usr/bin/chromium"), Path(driver.chromium.executable_path)]
        executable = next((path for path in installed if path.is_file()), None)
        if executable is None:
            pytest.skip("chromium is not installed")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=executable, args=arguments, timeout=60_000)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, width: int = 1280, scheme: str = "light", **device: Any) -> Iterator[Any]:
    """A page of the service; in the end there must be no console message and no request elsewhere."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce", **device
    )
    page, said, requested = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.get_by_text("3 classes").wait_for()
    yield page
    context.close()
    assert said == []
    own = (url.partition("#")[0], "data:", "blob:")
    assert [url for url in requested if not url.startswith(own)] == []


def verdict(page: Any, name: str) -> str:
    page.locator("#verdict", has_text=name).wait_for(timeout=10_000)
    return page.locator("#verdict").text_content()


@pytest.mark.parametrize(
    ("width", "scheme", "touch"), [(390, "light", True), (390, "dark", True), (1280, "dark", False)]
)
def test_a_photo_is_chosen_and_answered(browser: Any, exported: Path, width: int, scheme: str, touch: bool):
    with (
        served(exported) as (_, server),
        opened(browser, f"{server.url}/", width, scheme, has_touch=touch, is_mobile=touch) as page,
    ):
        inputs = page.locator("#camera")
        assert inputs.get_attribute("capture") is not None
        inputs.set_input_files({"name": "photo.png", "mimeType": "image/png", "buffer": photo("blue", (40, 30))})
        assert "91" in verdict(page, "blue")
        assert page.locator("#bars li").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.getElementById('photo').width") == 40
        assert page.evaluate(DARKEST) == 0
        page.locator("#strength").fill("100")
        assert page.evaluate(DARKEST) > 200  # the crop leaves out both sides
        assert page.locator("#wrong").is_hidden()
        assert page.locator("#similar").is_hidden()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(browser: Any, exported: Path, kind: str):
    with served(exported) as (_, server), opened(browser, f"{server.url}/") as page:
        page.evaluate(DROP, [base64.b64encode(photo("green")).decode(), kind])
        assert verdict(page, "green")


def test_a_large_photo_is_sent_small(browser: Any, exported: Path):
    with served(exported, limits={"pixels": 1024 * 512}) as (_, server), opened(browser, f"{server.url}/") as page:
        file = {"name": "photo.png", "mimeType": "image/png", "buffer": photo("red", (3000, 1500))}
        page.locator("#camera").set_input_files(file)
        assert verdict(page, "red")
        assert page.evaluate("document.getElementById('photo').width") == 1024


def test_a_correction_is_saved_where_training_finds_it(browser: Any, tmp_path: Path, exported: Path):
    with served(exported, collect=True) as (client, server), opened(browser, f"{server.url}/") as page:
        page.keyboard.press("Tab")  # everything by keyboard, but the file itself
        assert page.evaluate("document.activeElement.id") == "camera"
        content = photo("red", (33, 21))
        page.locator("#camera").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": content})
        assert verdict(page, "red")
        page.locator("#strength").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate(DARKEST) > 0
        page.locator("#right").focus()
        page.keyboard.type("green")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.locator("#saved", has_text="green").wait_for()
        (saved,) = (exported.parent / "corrections" / "green").iterdir()
        assert saved.read_bytes() == content
        again = client.post("/v1/corrections?class=green", content=content)
        assert (again.status_code, again.json()["saved"]) == (201, f"green/{saved.name}")
        assert saved.stem == hashlib.sha256(content).hexdigest()[:32]
        moved = client.post("/v1/corrections?class=red", content=content)  # the last correction of a photo counts
        assert (moved.json()["saved"], saved.exists()) == (f"red/{saved.name}", False)
        for query, body in (("class=pink", content), ("", content), ("class=green", b"?"), ("class=..", content)):
            assert client.post(f"/v1/corrections?{query}", content=body).status_code == 422
        assert len(list((exported.parent / "corrections").glob("*/*"))) == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_similar_training_images_are_shown(browser: Any, tmp_path: Path, width: int):
    with served(colors_run(tmp_path / "run")) as (_, server), opened(browser, f"{server.url}/", width) as page:
        file = {"name": "p.png", "mimeType": "image/png", "buffer": photo("green")}
        page.locator("#camera").set_input_files(file)
        assert verdict(page, "green")
        assert page.locator("#similar").get_by_role("listitem").all_inner_texts() == ["green", "green", "blue"]
        assert page.evaluate("[...document.querySelectorAll('#known img')].map((one) => one.naturalWidth)") == [8] * 3
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_corrections_are_off_by_default(client: httpx.Client):
    assert client.post("/v1/corrections?class=red", content=photo()).status_code == 404


def test_an_uncertain_answer_says_so(browser: Any, exported: Path):
    with served(exported) as (_, server), opened(browser, f"{server.url}/") as page:
        gray = {"name": "p.png", "mimeType": "image/png", "buffer": photo("gray")}
        page.locator("#camera").set_input_files(gray)
        assert "Not sure" in verdict(page, "Not sure")
        page.locator("#camera").set_input_files({"name": "p.txt", "mimeType": "text/plain", "buffer": b"hello"})
        assert verdict(page, "not a photo")


def test_the_link_has_the_key(browser: Any, exported: Path):
    with served(exported, phone=True) as (client, server):
        assert client.get("/v1/model").status_code == 401
        key = server.key
        with opened(browser, f"{server.url}/#key={key}") as page:
            assert page.url == f"{server.url}/"  # the key is not left in the address
            page.reload()
            page.get_by_text("3 classes").wait_for()
        if (address := network_address()) is not None:
            there = f"http://{address}:{server.port}/v1/model"
            assert httpx.get(there, headers={"X-API-Key": key}, trust_env=False).status_code == 200
