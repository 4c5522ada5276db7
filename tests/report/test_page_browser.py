import itertools
import json
import shutil

import pandas as pd
import pytest
from tests.browsing import opened
from tests.report.pages import HOSTILE, add_exploration, make_data, make_run

from resnetlab import Run, evaluate, write_report
from resnetlab.report.sections.citations import WORKS

STATUS = "words => document.getElementById('chosen').textContent.startsWith(words)"
DRAWN = """() => {
    const made = document.querySelector("#thumbnails canvas");
    return made.getContext("2d").getImageData(0, 0, made.width, made.height).data.some((x) => x > 0 && x < 255);
}"""
SCHEMES = {"light": "rgb(253, 253, 251)", "dark": "rgb(21, 23, 26)"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_run, digits):
    """A trained network, evaluated, explored and reported on."""
    run = Run(shutil.copytree(digits_run.path, tmp_path_factory.mktemp("runs") / "trained"))
    evaluate(run, digits, explore=True)
    write_report(run, digits)
    return run, pd.read_parquet(run.evaluation() / "per_image.parquet")


def cell(page, row, column):
    """Where a cell of the confusion matrix is, in pixels from the corner of its picture."""
    picture = page.locator("#confusion svg")
    data = json.loads(page.locator("#confusion svg + script").text_content())
    left, top, width, _ = data["box"]
    scale = picture.bounding_box()["width"] / float(picture.get_attribute("viewBox").split()[2])
    side = width / len(data["support"])
    return {"x": (left + side * (column + 0.5)) * scale, "y": (top + side * (row + 0.5)) * scale}


OVERLAPS = """svg => {
    const texts = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    const found = [], frame = svg.getBoundingClientRect();
    texts.forEach(([text, box], at) => {
        if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
            box.bottom > frame.bottom + 1) found.push(text + " is outside");
        for (const [other, next] of texts.slice(at + 1))
            if (box.left + 1 < next.right && next.left + 1 < box.right && box.top + 2 < next.bottom &&
                next.top + 2 < box.bottom) found.push(text + " over " + other);
    });
    return found;
}"""


def overlaps(picture):
    """The texts of a picture that lie over each other or outside it."""
    return picture.evaluate(OVERLAPS)


def column(page, number):
    return page.locator(f".sortable tbody tr > :nth-child({number})").all_inner_texts()


def count(text):
    return int(text.split()[0].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_works_offline_in_a_browser(trained, browser, width, scheme):
    run, _ = trained
    with opened(browser, run.report, width, scheme) as page:
        pictures = page.locator("svg.picture")
        assert pictures.count() == 10 and all(picture.is_visible() for picture in pictures.all())
        assert all(overlaps(picture) == [] for picture in pictures.all())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == SCHEMES[scheme]

        page.get_by_role("button", name="Class", exact=True).click()
        assert column(page, 1) == [str(name) for name in range(10)]
        page.keyboard.press("Enter")  # the button keeps the focus
        assert column(page, 1) == [str(name) for name in reversed(range(10))]
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        page.get_by_role("button", name="F1").press("Space")
        assert [float(text) for text in column(page, 5)] == sorted(float(text) for text in column(page, 5))

        line = page.locator("#curves svg path[clip-path]").last
        color = line.evaluate("line => getComputedStyle(line).stroke")
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        assert line.evaluate("line => getComputedStyle(line).stroke") != color


CUT = """() => [...document.querySelectorAll("main *")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !element.closest(".scroll, .unseen, svg");
}).map(element => element.outerHTML.slice(0, 80))"""
WIDE = "() => [...document.querySelectorAll('.scroll')].map(box => box.scrollWidth > box.clientWidth + 1)"
HINTS = "() => [...document.querySelectorAll('.scroll')].map(box => box.previousElementSibling.offsetHeight > 0)"


def test_nothing_is_cut_off_on_a_phone_and_wide_tables_say_so(trained, browser):
    run, _ = trained
    with opened(browser, run.report, 390) as page:
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        page.wait_for_function("document.querySelectorAll('.hint:not([hidden])').length > 0")
        assert page.evaluate(CUT) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        wide = page.evaluate(WIDE)
        assert any(wide) and not all(wide) and page.evaluate(HINTS) == wide
        assert all(
            page.locator(".scroll").nth(at).get_attribute("tabindex") == "0"
            for at, is_wide in enumerate(wide)
            if is_wide
        )
    with opened(browser, run.report, 1280) as page:
        assert page.locator(".hint:not([hidden])").count() == 0


def test_changed_settings_come_first_and_the_others_are_folded(trained, browser):
    run, _ = trained
    with opened(browser, run.report) as page:
        first = page.locator("#provenance table").first
        assert "epochs" in first.inner_text() and first.is_visible()
        setting = page.locator("#provenance th", has_text="nesterov")
        assert setting.count() == 1 and not setting.is_visible()
        page.locator("#provenance details > summary").last.click()
        assert setting.is_visible()


def test_pointing_at_a_curve_shows_the_values_of_its_epoch(trained, browser):
    run, _ = trained
    rows = run.history_rows()
    with opened(browser, run.report) as page:
        picture, tip = page.locator("#curves svg").first, page.locator("#tip")
        data = json.loads(page.locator("#curves svg + script").first.text_content())
        _, top, _, height = data["box"]
        scale = picture.bounding_box()["width"] / float(picture.get_attribute("viewBox").split()[2])
        for row, (x, values, _) in zip(rows, data["marks"], strict=True):
            picture.hover(position={"x": x * scale + 2, "y": (top + height / 2) * scale})
            assert tip.is_visible()
            for fact in (f"epoch {row['epoch']}", f"{row['train_loss']:.4f}", f"{row['val_loss']:.4f}"):
                assert fact in tip.inner_text()
            dots = page.locator("#curves .guide circle")
            assert [float(dot.get_attribute("cy")) for dot in dots.all()] == values
        page.mouse.move(5, 5)
        assert not tip.is_visible() and page.locator(".guide circle").count() == 0


def test_pointing_at_a_bar_shows_its_figures(trained, browser):
    run, _ = trained
    blocks = pd.read_parquet(run.evaluation() / "blocks.parquet")
    with opened(browser, run.report) as page:
        picture = page.locator("#residual svg").first
        data = json.loads(page.locator("#residual svg + script").first.text_content())
        scale = picture.bounding_box()["width"] / float(picture.get_attribute("viewBox").split()[2])
        x, (y,), _ = data["marks"][2]
        picture.hover(position={"x": x * scale, "y": y * scale + 1})
        assert blocks["block"][2] in page.locator("#tip").inner_text()
        assert f"{blocks['ratio'][2]:.3f}" in page.locator("#tip").inner_text()


def test_a_cell_of_the_matrix_shows_its_images(trained, browser):
    run, table = trained
    pairs = table.loc[~table["correct"]].groupby(["label", "prediction"]).size().sort_values(ascending=False)
    label, prediction = pairs.index[0]
    with opened(browser, run.report) as page:
        status = page.locator("#chosen")
        wrong = int((~table["correct"]).sum())
        assert count(status.inner_text()) == wrong
        matrix, tip = page.locator("#confusion svg"), page.locator("#tip")
        matrix.scroll_into_view_if_needed()
        at = cell(page, int(label), int(prediction))
        matrix.hover(position=at)
        for fact in (f"true class {label}", f"predicted {prediction}", f"images: {pairs.iloc[0]}, "):
            assert fact in tip.inner_text()
        matrix.click(position=at)
        images = "image" if pairs.iloc[0] == 1 else "images"
        page.wait_for_function(STATUS, arg=f"{pairs.iloc[0]} {images} of class {label}")
        assert f"predicted as {prediction}" in status.inner_text() and status.get_attribute("role") == "status"
        items = page.locator("#thumbnails li")
        assert items.count() == min(pairs.iloc[0], 42)
        chosen = table.loc[(table["label"] == label) & (table["prediction"] == prediction)]
        first = chosen.sort_values("confidence", ascending=False).iloc[0]
        assert f"confidence {first['confidence']:.1%}" in items.first.inner_text()
        assert f"index {first['index']}" in items.first.inner_text()
        page.wait_for_function(DRAWN)
        assert page.evaluate("document.activeElement.id") == "images-title"
        page.get_by_role("button", name="Back to all mistakes").click()
        page.wait_for_function(
            "wrong => document.getElementById('chosen').textContent.startsWith(wrong)", arg=str(wrong)
        )


def test_tables_and_fields_choose_images_by_keyboard(trained, browser):
    run, table = trained
    with opened(browser, run.report, width=390) as page:
        status = page.locator("#chosen")
        button = page.locator(".confusion button.show").first
        number, says = button.inner_text(), button.get_attribute("aria-label")
        button.press("Enter")
        assert count(status.inner_text()) == int(number) and says.startswith(f"Show the {number} images of")
        row = page.locator(".sortable button.show").first
        number = int(row.inner_text())
        row.press("Space")
        assert count(status.inner_text()) == number and "misclassified" in status.inner_text()
        page.get_by_label("True class").select_option(label="3")
        page.get_by_label("Prediction").select_option(label="3")
        right = int(((table["label"] == "3") & table["correct"]).sum())
        assert count(status.inner_text()) == right and "classified correctly" in status.inner_text()
        page.get_by_label("True class").select_option(label="any class")
        page.get_by_label("Prediction").select_option(label="any class")
        assert count(status.inner_text()) == len(table) and page.locator("#thumbnails li").count() == 42
        page.get_by_role("button", name="Show more").click()
        assert page.locator("#thumbnails li").count() == 84


def test_the_map_shows_and_marks_images(trained, browser):
    run, table = trained
    pixels = "document.querySelector('#embedding-map canvas').toDataURL()"
    with opened(browser, run.report) as page:
        canvas, tip = page.locator("#embedding-map canvas"), page.locator("#tip")
        canvas.scroll_into_view_if_needed()
        canvas.focus()
        page.keyboard.press("ArrowRight")
        said = page.locator("#embedding-map [role=status]").inner_text()
        assert tip.is_visible() and "confidence" in said
        place = int(said.rpartition("index ")[2].rstrip("."))
        row = table.loc[table["index"] == place].iloc[0]
        assert f"confidence {row['confidence']:.1%}" in said and said.startswith(row["label"])
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "images-title"
        before = page.evaluate(pixels)
        page.get_by_role("button", name="By correct or wrong").click()
        assert page.locator(".key").inner_text().split() == ["correct", "wrong"]
        assert page.evaluate(pixels) != before
        page.get_by_role("button", name="By class").click()
        page.get_by_role("button", name="Back to all mistakes").click()
        entry, before = page.locator(".key button").nth(3), page.evaluate(pixels)
        entry.click()
        assert entry.get_attribute("aria-pressed") == "false" and page.evaluate(pixels) != before
        before = page.evaluate(pixels)
        page.get_by_role("button", name="PCA").click()
        assert page.get_by_role("button", name="PCA").get_attribute("aria-pressed") == "true"
        assert page.get_by_role("button", name="t-SNE").get_attribute("aria-pressed") == "false"
        assert page.evaluate(pixels) != before
        page.get_by_role("button", name="t-SNE").click()
        assert page.evaluate(pixels) == before
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_role("button", name="Whole map").click()
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        steps = [0.2 + 0.02 * step for step in range(31)]
        for down, right in itertools.product(steps[::3], steps):  # somewhere in the inner part there is a point
            page.mouse.move(box["x"] + box["width"] * right, box["y"] + box["height"] * down)
            if tip.is_visible():
                break
        assert tip.is_visible() and "confidence" in tip.inner_text()


def test_on_paper_everything_is_open_and_light(trained, browser):
    run, _ = trained
    with opened(browser, run.report, scheme="dark") as page:
        closed = page.locator("details:not([open])").count()
        assert closed > 0
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("#choice").is_visible() and page.locator("#embedding-map canvas").is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details:not([open])").count() == closed


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(tmp_path, browser):
    names = [HOSTILE, "<img src=x onerror=alert(1)>", "$a$", "<a href='https://example.org'>d</a>"]
    run = make_run(tmp_path / "run", data := make_data(names))
    add_exploration(run, data, blocks=("<b>a</b>", "$b$ <img src=x onerror=alert(1)>"))
    with opened(browser, write_report(run, data)) as page:
        texts = page.locator("svg.picture text").all_text_contents()
        assert {"$a$", HOSTILE[:17] + "…", "<b>a</b>"} <= set(texts)
        page.locator(".confusion button.show").first.click()
        assert page.locator("#thumbnails li").count() > 0
        page.locator("#embedding-map canvas").press("ArrowRight")
        assert page.locator("[onerror]").count() == 0 and page.locator("a[href^=http]").count() == len(WORKS)


@pytest.mark.slow
def test_a_thousand_classes_without_images_work_in_a_browser(tmp_path, browser):
    data = make_data([f"class {number}" for number in range(1000)], per_class=2, size=4)
    run = make_run(tmp_path / "run", data, wrong=40)
    add_exploration(run, data)
    (run.path / "run.toml").write_text((run.path / "run.toml").read_text().replace('"digits"', '"/gone"'))
    with opened(browser, write_report(Run(run.path))) as page:
        assert page.locator("#thumbnails li").count() == 40 and page.locator("#thumbnails canvas").count() == 0
        assert "1,000 classes" in page.locator(".key").inner_text()
        page.locator("#embedding-map canvas").press("ArrowRight")
        assert page.locator("#tip").is_visible()
        matrix = page.locator("#confusion svg")
        matrix.scroll_into_view_if_needed()
        whole, box = matrix.get_attribute("viewBox"), matrix.bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 260, box["y"] + 250)
        page.mouse.up()
        enlarged = [float(value) for value in matrix.get_attribute("viewBox").split()]
        assert 0 < enlarged[2] == enlarged[3] < float(whole.split()[2]) / 5
        matrix.dblclick(position={"x": 100, "y": 100})
        assert matrix.get_attribute("viewBox") == whole
