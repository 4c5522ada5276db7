"""`resnetlab evaluate`: measures a run's network on labeled images, and writes the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.inspection import moved_images, own_images
from resnetlab.cli.options import DataRoot, Device, OwnModel, SkipUnreadable, refuse_options
from resnetlab.core.console import notice, output

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.data.storage.store import ImageData

NAME = "evaluate"


def command(
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run folder, an exported file or folder, a packaged network (digits, fashion_mnist), or "
            "hub:USER/NAME with --data.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Evaluate on this data set or folder instead. If the run's own images have moved: their new folder."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; default: test, or validation if there is no test.")
    ] = None,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored",
            help="Also measure the metrics with test-time augmentation (flip), and report them separately.",
        ),
    ] = False,
    explore: Annotated[
        bool,
        typer.Option(
            "--explore/--no-explore",
            help="Compute the t-SNE map of the embeddings and the diagnostics of the blocks.",
        ),
    ] = True,
    page_only: Annotated[
        bool,
        typer.Option(
            "--page-only",
            help="Only write the report again, from the tables of the last evaluation. A missing map and missing "
            "diagnostics are computed.",
        ),
    ] = False,
    model: OwnModel = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """Measure a trained network: accuracy and other metrics, tables, and an HTML report about the run.

    The report is RUN/report.html: one file that opens in any browser, also offline.

    resnetlab evaluate runs/photos

    resnetlab evaluate runs/photos --data more-photos/

    resnetlab evaluate digits
    """
    from resnetlab.core.hub import is_hub_name
    from resnetlab.core.packaged import is_packaged
    from resnetlab.exporting.session import is_exported

    given: dict[str, Any] = {
        "split": split, "mirrored": mirrored, "data_root": data_root, "skip_unreadable": skip_unreadable,
    }  # fmt: skip
    if is_exported(run):
        refuse_options(context, ("explore", "page_only", "model", "device"), "an exported file gets no report")
        _measure_only(run, data, given)
        return
    if is_packaged(run) or is_hub_name(run):
        refuse_options(context, ("explore", "page_only"), "only a run gets a report")
        _measure_only(run, data, {**given, "device": device, "model": model})
        return

    from resnetlab.core.runs import Run

    opened = Run(run)
    if page_only:
        measuring = ("split", "model", "mirrored", "device", "skip_unreadable")
        refuse_options(context, measuring, "--page-only measures nothing")
        images = None if data is None else moved_images(opened, data, data_root)
        _write_page(opened, images, data_root, explore=explore)
        return

    from resnetlab.evaluation.evaluate import evaluate

    images = _own_images(opened, data, data_root)
    loaded = data if images is None else images
    evaluation = evaluate(opened, loaded, model=model, device=device, explore=explore, **given)
    output().print(evaluation)
    notice(f"tables  {evaluation.folder}")
    if evaluation.folder == opened.evaluation():  # the report is about the run's own images
        _write_page(opened, images, data_root, explore=explore)


def _measure_only(path: str | Path, data: str | None, given: dict[str, Any]) -> None:
    from resnetlab.evaluation.evaluate import evaluate

    output().print(evaluate(path, data, **given))


def _own_images(run: Run, data: str | None, data_root: Path | None) -> ImageData | None:
    """Returns the run's own images, loaded once for metrics and report; None for other images."""
    from resnetlab.data.load import reload_data
    from resnetlab.weights.file import weights_path

    weights_path(run)  # a run without a network is an error before images are read
    if data is None:
        return reload_data(run.settings["data"], data_root=data_root)
    return own_images(run.path, data, data_root)


def _write_page(run: Run, images: ImageData | None, data_root: Path | None, *, explore: bool) -> None:
    from resnetlab.report.page import write_report

    notice(f"report  {write_report(run, images, data_root=data_root, explore=explore)}")
