"""The form of a section of the page, and the data it can show.

To add a section, put a module into `sections/`, with its `SECTION`, and a template of the same name into `templates/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from resnetlab.core.html import render
from resnetlab.core.pictures import Picture
from resnetlab.core.runs import Run, stopped_at
from resnetlab.report.images import RunImages
from resnetlab.report.mistakes import Mistakes
from resnetlab.report.results import Results

_TABLE_OF_RESULTS = re.compile(r'<table class="(?!definitions)[^>]*>\s*<caption[^>]*>')
"""The start of a table's caption; definitions are settings, which do not depend on the epoch."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a section can show.

    Attributes:
        run: the run.
        results: its evaluation.
        images: the evaluated images, if they are available.
        mistakes: the mistakes worth a look.
        rows: positions of the images that the page holds.
    """

    run: Run
    results: Results
    images: RunImages
    mistakes: Mistakes
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
        order: sections stand in the order of these numbers.
        name: id of the section's element, and name of its template, templates/NAME.html.
        title: its heading.
        link: what the navigation calls it; "" to leave it out there.
        view: returns the values that the template uses. Under "missing" it may return a sentence: what the section
            lacks, and the command that makes it. With nothing else, the section is that sentence. Without any values
            the section is left out, because it does not apply to the run.
        figures: returns the pictures to write as figures/NAME.png, those of one file side by side; a name without
            pictures has no file. None by default.
    """

    order: int
    name: str
    title: str
    link: str
    view: Callable[[Report], dict[str, Any]]
    figures: Callable[[Report], Mapping[str, Sequence[Picture]]] = lambda report: {}

    def render(self, report: Report) -> dict[str, Any]:
        """Returns the section as the page's template takes it: name, title, link, missing and content; or nothing."""
        values = self.view(report)
        if not values:
            return {}
        missing = values.pop("missing", None)
        content = render(f"report/templates/{self.name}.html", **values) if values else ""
        if stopped := stopped_at(report.results.summary):
            content = Markup(_TABLE_OF_RESULTS.sub(rf"\g<0>{stopped.capitalize()}: ", str(content)))
        return {"name": self.name, "title": self.title, "link": self.link, "missing": missing, "content": content}
