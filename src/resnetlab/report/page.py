"""`write_report`: a run's report, one HTML file that opens anywhere."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from resnetlab import __version__
from resnetlab.core.files import write_text
from resnetlab.core.html import json_script, render
from resnetlab.core.pictures import css_variables, save_png
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.report import sections
from resnetlab.report.comparison.compare import data_name
from resnetlab.report.images import find_images, image_columns, shown_rows, thumbnails
from resnetlab.report.mistakes import find_mistakes
from resnetlab.report.results import read_results
from resnetlab.report.section import Report, Section

MAX_BYTES = 14_500_000
"""Size of the page: a mail can still carry it."""


def write_report(
    run: Run | str | Path,
    data: ImageData | None = None,
    *,
    data_root: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Writes RUN/report.html and the pictures RUN/figures/*.png.

    The page holds everything it shows: it opens offline and sends no request. A section whose data are missing says
    which command makes them. The pictures are curves, confusion, mistakes, map, reliability, blocks and responses.

    Args:
        run: an evaluated run, or its folder.
        data: the run's images if they are in memory; otherwise they are loaded again. If that fails, the page says why
            and shows no images.
        data_root: where the data sets are now, if they have moved.
        max_bytes: size of the page. Thumbnails are made as large as they can be within it.

    Returns:
        The page's path.

    Raises:
        UserError: the folder is not a run, or is not evaluated yet.
    """
    run = run if isinstance(run, Run) else Run(run)
    results = read_results(run)
    images = find_images(run, results, data, data_root)
    report = Report(
        run=run,
        results=results,
        images=images,
        mistakes=find_mistakes(run, results, images),
        rows=shown_rows(results),
    )
    folder = run.path / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for section in all_sections():
        for name, pictures in section.figures(report).items():
            save_png(folder / f"{name}.png", *pictures)
    write_text(run.report, _page(report, max_bytes))
    return run.report


def all_sections() -> list[Section]:
    """Returns the sections of the page in order: the `SECTION` of every module in `sections`."""
    modules = (import_module(f"{sections.__name__}.{found.name}") for found in iter_modules(sections.__path__))
    return sorted((module.SECTION for module in modules), key=lambda section: section.order)


def _page(report: Report, max_bytes: int) -> str:
    columns = image_columns(report.results, report.rows)
    values = {
        "settings": report.run.settings,
        "summary": report.results.summary,
        "data": data_name(report.run),
        "folder": report.run.path.resolve().name,
        "sections": [found for section in all_sections() if (found := section.render(report))],
        "colors": css_variables(),
        "version": __version__,
    }
    taken = len(render("report/templates/page.html", **values, images=json_script(columns, "image-data")).encode())
    columns["thumbnails"] = thumbnails(report.images, report.rows, max_bytes - taken)
    return render("report/templates/page.html", **values, images=json_script(columns, "image-data"))
