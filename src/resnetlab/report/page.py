"""`write_report`: one page that tells a run's story, in one file that opens anywhere."""

from __future__ import annotations

from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from resnetlab import __version__
from resnetlab.core.files import write_text
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.report.evaluation_files import Results, read_results
from resnetlab.report.figures import save_figures
from resnetlab.report.images import RunImages, find_images, image_columns, shown_rows, thumbnails
from resnetlab.report.markup import json_script, note
from resnetlab.report.mistakes import Mistakes, find_mistakes
from resnetlab.report.sections.citations import citations
from resnetlab.report.sections.classes import classes
from resnetlab.report.sections.confusion import confusion
from resnetlab.report.sections.curves import curves
from resnetlab.report.sections.explorer import explorer
from resnetlab.report.sections.map import embedding_map
from resnetlab.report.sections.mistakes import mistakes
from resnetlab.report.sections.provenance import provenance, reproduce
from resnetlab.report.sections.reliability import reliability
from resnetlab.report.sections.residual import residual
from resnetlab.report.sections.result import facts

MAX_BYTES = 14_500_000
"""Of the page, which opens at once from a mail: thumbnails take what the rest leaves of them."""
_CAUTION = (
    "This run has no test split. These are the images that training was watched on, so the figures may flatter the "
    "network."
)
_PROGRAMS = ("charts.js", "tables.js", "explorer.js", "map.js")


def write_report(run: Run | str | Path, data: ImageData | None = None, *, data_root: str | Path | None = None) -> Path:
    """Writes RUN/report.html and the pictures RUN/figures/*.png.

    The page holds everything it shows: it opens without a network and sends no request. The pictures are curves,
    confusion, mistakes, map, reliability, blocks and responses. What is missing from the run, such as the map of an
    evaluation by an older version, is said where it would be.

    Args:
        run: an evaluated run, or its folder.
        data: the run's images where they are in memory already; without it they are loaded again.
            Where that fails, the page says why and shows no pictures.
        data_root: where the data sets are now, if they have moved.

    Returns:
        The page's path.

    Raises:
        UserError: the run is none, or was not evaluated yet.
    """
    run = run if isinstance(run, Run) else Run(run)
    results = read_results(run)
    images = find_images(run, results, data, data_root)
    found = find_mistakes(run, results, images)
    save_figures(
        run.path / "figures", history=run.history, results=results, mistakes=found.worst, no_pictures=images.missing
    )
    write_text(run.report, _page(run, results, images, found))
    return run.report


def _page(run: Run, results: Results, images: RunImages, found: Mistakes) -> str:
    folder, summary, settings = files("resnetlab.report").joinpath("templates"), results.summary, run.settings
    data = Path(settings["data"]["source"]).name or settings["data"]["source"]
    rows = shown_rows(results)
    words = {
        "model": settings["model"]["name"],
        "data": data,
        "recipe": settings["recipe"]["name"],
        "created": _date(settings.get("created")),
        "folder": run.path.resolve().name,
        "split": summary["split"],
        "top1": f"{summary['top1']:.2%}".removesuffix("%"),
        "correct": f"{results.correct:,}",
        "total": f"{results.total:,}",
        "low": f"{summary['top1_low']:.2%}",
        "high": f"{summary['top1_high']:.2%}",
        "version": __version__,
    }
    fragments = {
        "css": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "programs": "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _PROGRAMS),
        "caution": note(_CAUTION) if summary["split"] != "test" else "",
        "facts": facts(run, results),
        "curves": curves(run.history, settings["recipe"].get("label_smoothing", 0.0)),
        "confusion": confusion(results),
        "explorer": explorer(results, len(rows), images.missing),
        "classes": classes(results),
        "mistakes": mistakes(found, results, images.missing),
        "map": embedding_map(results),
        "reliability": reliability(results),
        "residual": residual(results),
        "settings": provenance(run),
        "reproduce": reproduce(settings, None if images.data is None else images.data.mirrors),
        "citations": citations(),
    }
    columns = image_columns(results, rows)
    taken = sum(map(len, fragments.values())) + len(json_script(columns))
    columns["thumbnails"] = thumbnails(images, rows, MAX_BYTES - taken)
    fragments["images"] = json_script(columns, "image-data")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute({key: escape(str(value)) for key, value in words.items()}, **fragments)


def _date(created: object) -> str:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return "on an unrecorded day"
    return f"on {moment.day} {moment:%B %Y}"
