from typing import Any

import numpy as np
import pytest
from tests.report.pages import Page, decoded, make_data, make_run

from resnetlab import write_report
from resnetlab.report import images as module
from resnetlab.report.images import find_images, shown_rows, thumbnails
from resnetlab.report.results import read_results


def found(folder, data, **settings):
    run = make_run(folder, data, **settings)
    results = read_results(run)
    return results, find_images(run, results, data, None)


def tile(sheets, at):
    """The thumbnail at a place, found as the page's program finds it."""
    size, pitch, columns = sheets["size"], sheets["pitch"], sheets["columns"]
    picture = np.asarray(decoded(sheets["sheets"][at // columns**2]))
    across = min(columns, picture.shape[1] // pitch)
    row, column = divmod(at % columns**2, across)
    return picture[row * pitch : row * pitch + size, column * pitch : column * pitch + size]


def test_small_images_keep_their_size(tmp_path):
    data: Any = make_data("abc", per_class=30, size=12)
    results, images = found(tmp_path / "run", data)
    sheets: Any = thumbnails(images, shown_rows(results), 10**9)
    assert (sheets["size"], sheets["pitch"]) == (12, 16)
    for at in (0, 1, 45, 89):
        difference = tile(sheets, at).astype(float) - data.splits["test"].images[at, 0].numpy()
        assert np.abs(difference).mean() < 16  # the images are noise, which JPEG keeps worst
        other = data.splits["test"].images[(at + 1) % 90, 0].numpy()
        assert np.abs(tile(sheets, at) - other.astype(float)).mean() > 50


def test_many_images_take_several_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHEET_SIDE", 40)
    data: Any = make_data("abc", per_class=20, size=8)
    results, images = found(tmp_path / "run", data)
    sheets: Any = thumbnails(images, shown_rows(results), 10**9)
    assert sheets["columns"] == 5 and len(sheets["sheets"]) == 3
    for at in (0, 24, 25, 59):
        difference = tile(sheets, at).astype(float) - data.splits["test"].images[at, 0].numpy()
        assert np.abs(difference).mean() < 16


@pytest.mark.parametrize(
    ("native", "most", "size"), [(200, 10**9, 128), (100, 10**9, 100), (100, 55_000, 48), (100, 1, 16)]
)
def test_thumbnails_are_as_large_as_the_page_allows(tmp_path, native, most, size):
    results, images = found(tmp_path / "run", make_data("abc", per_class=10, size=native, channels=3))
    sheets: Any = thumbnails(images, shown_rows(results), most)
    assert sheets["size"] == size and tile(sheets, 29).shape == (size, size, 3)
    if most > 1:
        assert sum(map(len, sheets["sheets"])) <= most * 1.05


def test_of_too_many_images_all_mistakes_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 20)
    run = make_run(tmp_path / "run", data := make_data("abc", per_class=30), wrong=7)
    page = Page(write_report(run, data))
    assert "20 of the 90 images" in page.text and page.images["total"] == 90
    pairs = list(zip(page.images["label"], page.images["prediction"], strict=True))
    assert len(pairs) == 20 and sum(label != prediction for label, prediction in pairs) == 7
    indices = page.images["index"]
    assert indices == sorted(indices) and indices[-1] == 89 * 3 + 5


def test_without_images_there_are_no_thumbnails(tmp_path):
    run = make_run(tmp_path / "run", make_data("ab", source=str(tmp_path / "gone")))
    page = Page(write_report(run))
    assert page.images["thumbnails"] is None and page.images["total"] == 24


def test_thumbnails_take_what_the_page_leaves_them(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("abc", per_class=100, size=80, channels=3))
    whole = write_report(run, data).stat().st_size
    limited = write_report(run, data, max_bytes=whole - 500_000).stat().st_size
    assert whole - 1_500_000 < limited <= whole - 500_000
