"""All studies, one after the other, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from resnetlab.core.checks import check_number
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.page import write_page
from resnetlab.studies.lab.question import StudyResult
from resnetlab.studies.lab.setup import SetUp, check_names


def conduct_all(studies: Mapping[str, Callable[..., StudyResult]], data: str | Path | ImageData, setup: SetUp) -> Path:
    """Conducts studies one after the other and returns the page of all of them; see `study_all`."""
    check_names("study_all", setup)
    setup = setup.copy()
    name = data.name if isinstance(data, ImageData) else _name(data, setup)
    folder = Path(setup.pop("out", None) or Path("studies") / f"all-{name}")
    if (budget := setup.pop("budget", None)) is not None:
        setup["budget"] = check_number("budget", budget, 0, above=True) / len(studies)
    quiet = setup.get("quiet", False)
    results, left_out = [], {}
    for number, (name, study) in enumerate(studies.items(), 1):
        if not quiet:
            notice(f"study {number} of {len(studies)}: {name}")
        try:
            results.append(study(data, **{**setup, "out": folder / name}))
        except UserError as error:  # the others are still worth having
            left_out[name] = str(error)
            if not quiet:
                notice(f"{name} is left out: {error}")
    if not results:
        raise UserError(f"no study could be conducted. The first: {next(iter(left_out.values()))}")
    return write_page(results, folder / "study.html", left_out=left_out)


def _name(source: str | Path, setup: SetUp) -> str:
    return load_data(str(source), data_root=setup.get("data_root"), image_size=setup.get("image_size")).name
