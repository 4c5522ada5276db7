"""`write_report`: a run's report, one HTML file that opens anywhere."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from resnetlab import __version__
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import write_text
from resnetlab.core.html import json_script, render
from resnetlab.core.pictures import css_variables, save_png
from resnetlab.core.runs import Run, stopped_at
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.explore import explore as explore_split
from resnetlab.evaluation.result import read_evaluated
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.report import sections
from resnetlab.report.comparison.compare import data_name
from resnetlab.report.images import RunImages, find_images, image_columns, shown_rows, thumbnails
from resnetlab.report.mistakes import find_mistakes
from resnetlab.report.results import Results, read_results
from resnetlab.report.section import Report, Section
from resnetlab.weights.file import load
from resnetlab.weights.tensors import weights_fingerprint

MAX_BYTES = 14_500_000
"""Size of the page: a mail can still carry it."""


def write_report(
    run: Run | str | Path,
    data: ImageData | None = None,
    *,
    data_root: str | Path | None = None,
    explore: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Writes `RUN/report.html` and the pictures `RUN/figures/*.png`.

    The page holds everything it shows: it opens offline and sends no request. A section whose data are missing says
    which command makes them. The pictures are curves, confusion, mistakes, map, reliability, blocks and responses; one
    whose data are missing is not written.

    Args:
        run: an evaluated run, or its folder.
        data: the run's images if they are in memory; otherwise they are loaded again. If that fails, the page says why
            and shows no images.
        data_root: where the data sets are now, if they have moved.
        explore: if the evaluation has no map of the embeddings and no diagnostics of the blocks, compute them, as
            `evaluate` does by default, and add them to its tables.
        max_bytes: size of the page. Thumbnails are made as large as they can be within it.

    Returns:
        The page's path.

    Raises:
        UserError: the folder is not a run, or is not evaluated yet.
    """
    run = run if isinstance(run, Run) else Run(run)
    results = read_results(run)
    images = find_images(run, results, data, data_root)
    network, problem = _network(run, results)
    if explore and results.exploration is None:
        results = _explored(run, results, images, network, problem)
    mistakes = find_mistakes(results, images, network)
    if problem is not None:
        mistakes = dataclasses.replace(mistakes, no_attention=f"The class activations are missing: {problem}")
    report = Report(
        run=run,
        results=results,
        images=images,
        mistakes=mistakes,
        rows=shown_rows(results),
    )
    folder = run.path / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for section in all_sections():
        for name, pictures in section.figures(report).items():
            if pictures:
                save_png(folder / f"{name}.png", *pictures)
            else:
                (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier page
    write_text(run.report, _page(report, max_bytes))
    return run.report


def all_sections() -> list[Section]:
    """Returns the sections of the page in order: the `SECTION` of every module in `sections`."""
    modules = (import_module(f"{sections.__name__}.{found.name}") for found in iter_modules(sections.__path__))
    return sorted((module.SECTION for module in modules), key=lambda section: section.order)


def _network(run: Run, results: Results) -> tuple[ResNet | None, str | None]:
    """Returns the evaluated network if it is a ResNet; otherwise None, and why, if the run does not have it."""
    if "library" in run.settings["model"]["config"]:
        return None, None
    try:
        network = check_network(load(run)).to(resolve_device("auto"))
        now = weights_fingerprint(network.saved_module.state_dict())
        if results.summary.get("weights", now) != now:
            return None, f"the run was trained further after its evaluation. Evaluate it again with: {results.command}"
        if not set(results.names) <= set(network.class_names or results.names):
            return None, f"the weights have other classes than the evaluation. Evaluate again with: {results.command}"
        return network, None
    except UserError as error:
        return None, str(error)


def _explored(run: Run, results: Results, images: RunImages, network: ResNet | None, problem: str | None) -> Results:
    """Returns the evaluation with map and diagnostics, which join its tables, or why both are missing."""
    if not (run.evaluation() / "embeddings.parquet").is_file():
        return results
    again = f"Evaluate the run again: {results.command}"
    _, (embeddings,) = read_evaluated(run.evaluation(), ("embeddings",), remedy=again)
    if images.data is None or problem is not None:
        return dataclasses.replace(results, unexplored=images.missing or problem or "")
    try:
        found = explore_split(network, images.data, images.split, embeddings)
    except UserError as error:  # of a network that answers NaN
        return dataclasses.replace(results, unexplored=f"The map and the diagnostics are missing: {error}")
    found.save(run.evaluation())
    return dataclasses.replace(results, exploration=found)


def _page(report: Report, max_bytes: int) -> str:
    columns = image_columns(report.results, report.rows)
    values = {
        "settings": report.run.settings,
        "summary": report.results.summary,
        "stopped": stopped_at(report.results.summary),
        "data": data_name(report.run),
        "folder": report.run.path.resolve().name,
        "sections": [found for section in all_sections() if (found := section.render(report))],
        "colors": css_variables(),
        "version": __version__,
    }
    taken = len(render("report/templates/page.html", **values, images=json_script(columns, "image-data")).encode())
    columns["thumbnails"] = thumbnails(report.images, report.rows, max_bytes - taken)
    return render("report/templates/page.html", **values, images=json_script(columns, "image-data"))
