"""`write_report`: one page that tells a run's story, in one file that opens anywhere."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from plotly.offline import get_plotlyjs
from sklearn.metrics import confusion_matrix

from resnetlab import __version__
from resnetlab.core.errors import UserError, resume_command
from resnetlab.core.files import write_text
from resnetlab.core.runs import Run
from resnetlab.data.sources import reload_data
from resnetlab.data.store import ImageData
from resnetlab.evaluation.metrics import wilson_interval
from resnetlab.report import sections
from resnetlab.report.figures import Mistake, save_figures, to_picture

MAX_MISTAKES = 24
_CAUTION = (
    '<p class="note">This run has no test split. These are the images that training was watched on, so the '
    "figures may flatter the network.</p>"
)


def write_report(run: Run | str | Path, data: ImageData | None = None, *, data_root: str | Path | None = None) -> Path:
    """Writes RUN/report.html and the pictures RUN/figures/{curves,confusion,mistakes}.png.

    The page holds everything it shows: it opens without a network and sends no request.

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
    results = _read_results(run)
    data, no_pictures = _find_images(run, results, data, data_root)
    mistakes = _worst_mistakes(results, data)
    save_figures(
        run.path / "figures",
        history=run.history,
        matrix=results.matrix,
        names=results.names,
        mistakes=mistakes,
        no_pictures=no_pictures,
    )
    write_text(run.report, _page(run, results, mistakes, data, no_pictures))
    return run.report


@dataclass(frozen=True, kw_only=True)
class _Results:
    """The evaluation's files, and the confusion matrix (true class, predicted class) they make."""

    summary: dict[str, Any]
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    names: list[str]
    matrix: np.ndarray

    @property
    def correct(self) -> int:
        return int(np.trace(self.matrix))


def _read_results(run: Run) -> _Results:
    tables = {name: run.evaluation() / f"{name}.parquet" for name in ("per_class", "per_image")}
    summary = run.summary
    if not run.is_complete:
        raise UserError(
            f"{run.path} has nothing to report on yet: its training did not reach the end. "
            f"Continue it with: {resume_command(run.path)}"
        )
    if summary is None or not all(path.is_file() for path in tables.values()):
        raise UserError(
            f"{run.path} has no evaluation to report on. "
            f"Run this first: resnetlab evaluate {shlex.quote(str(run.path))}"
        )
    per_image = pd.read_parquet(tables["per_image"])
    names = list(run.settings["data"]["class_names"])
    with warnings.catch_warnings():
        # scikit-learn suspects a mistake in a matrix of one class; here it is meant.
        warnings.filterwarnings("ignore", message="A single label was found")
        matrix = confusion_matrix(per_image["label"], per_image["prediction"], labels=names)
    per_class = pd.read_parquet(tables["per_class"])
    return _Results(summary=summary, per_class=per_class, per_image=per_image, names=names, matrix=matrix)


def _find_images(
    run: Run, results: _Results, data: ImageData | None, data_root: str | Path | None
) -> tuple[ImageData | None, str | None]:
    """Returns the run's data, or None and the reason in words."""
    recorded = run.settings["data"]
    try:
        data = reload_data(recorded, data_root=data_root) if data is None else data
        data.split(results.summary["split"])
    except UserError as error:
        return None, f"The pictures are missing: {error}"
    if data.fingerprint != recorded["fingerprint"]:
        return None, "The pictures are missing: the data given for this page are not those of the run."
    return data, None


def _worst_mistakes(results: _Results, data: ImageData | None) -> list[Mistake]:
    table = results.per_image
    wrong = table.loc[table["label"] != table["prediction"]]
    worst = wrong.sort_values(by="loss", ascending=False, kind="stable").head(MAX_MISTAKES)
    split = None if data is None else data.split(results.summary["split"])
    positions = {} if split is None else {index: at for at, index in enumerate(split.index.tolist())}
    mistakes = []
    for row in worst.to_dict("records"):
        at = positions.get(int(row["index"]))
        path = row.get("path")
        mistakes.append(
            Mistake(
                label=row["label"],
                prediction=row["prediction"],
                confidence=row["confidence"],
                loss=row["loss"],
                place=path if isinstance(path, str) else f"index {row['index']}",
                picture=None if data is None or at is None else _picture(data, results, at),
            )
        )
    return mistakes


def _picture(data: ImageData, results: _Results, position: int) -> Image.Image:
    return to_picture(data.squares(results.summary["split"], torch.tensor([position]))[0])


def _page(
    run: Run,
    results: _Results,
    mistakes: Sequence[Mistake],
    data: ImageData | None,
    no_pictures: str | None,
) -> str:
    folder, summary, settings = files("resnetlab.report"), results.summary, run.settings
    total = int(results.matrix.sum())
    low, high = wilson_interval(results.correct, total)
    source = Path(settings["data"]["source"]).name or settings["data"]["source"]
    words = {
        "model": settings["model"]["name"],
        "data": source,
        "recipe": settings["recipe"]["name"],
        "created": _date(settings.get("created")),
        "folder": run.path.resolve().name,
        "split": summary["split"],
        "top1": f"{summary['top1']:.2%}".removesuffix("%"),
        "correct": f"{results.correct:,}",
        "total": f"{total:,}",
        "low": f"{low:.2%}",
        "high": f"{high:.2%}",
        "version": __version__,
    }
    fragments = {
        "css": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "caution": _CAUTION if summary["split"] != "test" else "",
        "facts": sections.facts(run, summary, len(results.names)),
        "curves": sections.curves(run.history, settings["recipe"].get("label_smoothing", 0.0)),
        "confusion": sections.confusion(results.names, results.matrix),
        "classes": sections.classes(results.per_class),
        "mistakes": sections.worst_mistakes(mistakes, total - results.correct, total, no_pictures),
        "settings": sections.provenance(run),
        "reproduce": sections.reproduce(settings, None if data is None else data.mirrors),
    }
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute({key: escape(str(value)) for key, value in words.items()}, **fragments)


def _date(created: object) -> str:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return "on an unrecorded day"
    return f"on {moment.day} {moment:%B %Y}"
