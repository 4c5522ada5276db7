"""The panel of images: those of one cell of the confusion matrix, or of any other choice of classes."""

from __future__ import annotations

from html import escape

from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import note


def explorer(results: Results, held: int, no_pictures: str | None) -> str:
    """The choice of classes; the page's program fills in those of the `held` images that belong to it."""
    options = "".join(
        f'<option value="{position}">{escape(name)}</option>' for position, name in enumerate(results.names)
    )
    usual, back = ("other", "Back to all mistakes") if len(results.wrong) else ("", "Back to all images")
    cautions = note(no_pictures) if no_pictures else ""
    if held < results.total:
        cautions += note(
            f"This page holds {held:,} of the {results.total:,} images: the mistakes, and others in "
            "equal steps. The numbers of matrix and tables count all of them."
        )
    fates = "".join(
        f'<option value="{value}"{" selected" if value == usual else ""}>{text}</option>'
        for value, text in (("", "any class"), ("other", "any other class: wrong"))
    )
    return (
        f'{cautions}<form class="controls" id="choice">'
        f'<label>True class <select name="label"><option value="">any class</option>{options}</select></label>'
        f'<label>Prediction <select name="prediction">{fates}{options}</select></label>'
        f'<button type="reset">{back}</button></form>'
        '<p class="caption" role="status" id="chosen"></p><ul class="thumbnails" id="thumbnails"></ul>'
        '<button type="button" id="more" hidden>Show more</button>'
    )
