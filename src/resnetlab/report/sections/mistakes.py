"""The mistakes worth looking at, each with its image, what the network looked at, and its first answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import folded, note
from resnetlab.report.mistakes import PIXELATED_BELOW, Mistake, Mistakes, data_uri

_UNFOLDED = 12
"""More cards than this are shown when asked for: on a phone they are one below the other."""
_SURPRISING = (
    "Mistakes of a kind that this network hardly makes: first those whose class is most seldom taken for that other "
    "class, and of these the ones it is surest of."
)
_ATTENTION = (
    "Beside each image is what the network looked at (class activation, Zhou et al. 2016), first for its answer, then "
    "for the true class: orange speaks for that class, blue against it, and full color is the strongest place of "
    "each picture."
)


def mistakes(found: Mistakes, results: Results, no_pictures: str | None) -> str:
    """The worst and the most surprising mistakes; `no_pictures` says why they cannot be seen."""
    total, wrong = results.total, len(results.wrong)
    if not found.worst:
        return f"<p>No mistakes: all {total:,} images were classified correctly.</p>"
    images = "image was" if wrong == 1 else "images were"
    worst = found.worst
    shown = (
        "the highest loss comes first" if len(worst) == wrong else f"the {len(worst)} with the highest loss are shown"
    )
    parts = [
        f"<p>{wrong:,} of {total:,} {images} classified wrongly; {shown}. To the labels of these the network gives "
        "least probability: look here for labels that are wrong themselves.</p>"
    ]
    if any(mistake.attention for mistake in worst):
        parts.append(f"<p>{_ATTENTION}</p>")
    parts += [note(missing) for missing in (no_pictures, found.no_attention) if missing]
    if not any(mistake.answers for mistake in worst):
        parts.append(
            note(
                "The first five answers are missing: an older version evaluated this run. "
                f"This command adds them: {results.command}"
            )
        )
    parts.append(_cards(worst))
    if found.surprising:
        parts.append(f"<h3>Most surprising mistakes</h3><p>{_SURPRISING}</p>{_cards(found.surprising)}")
    return "".join(parts)


def _cards(shown: Sequence[Mistake]) -> str:
    kind = "mistakes wide" if any(mistake.attention or mistake.answers for mistake in shown) else "mistakes"
    first, others = (
        f'<ul class="{kind}">{"".join(map(_card, part))}</ul>' for part in (shown[:_UNFOLDED], shown[_UNFOLDED:])
    )
    return first + (folded(f"{len(shown) - _UNFOLDED} more", others) if len(shown) > _UNFOLDED else "")


def _card(mistake: Mistake) -> str:
    label, prediction, place = escape(mistake.label), escape(mistake.prediction), escape(mistake.place)
    pictures = ""
    if mistake.picture is not None:
        pictures = _picture(mistake.picture, f"Image of class {label}")
        if mistake.attention is not None:
            for picture, name in zip(mistake.attention, (prediction, label), strict=True):
                pictures += _picture(picture, f"What speaks for {name}, in orange, and against it, in blue", name)
        pictures = f'<div class="pictures">{pictures}</div>'
    answers = "".join(_answer(name, share, is_true=name == mistake.label) for name, share in mistake.answers)
    if answers:
        answers = f'<ol class="answers" aria-label="First answers">{answers}</ol>'
    kind = "the only such mistake" if mistake.alike == 1 else f"one of {mistake.alike:,} such mistakes"
    return (
        f'<li>{pictures}<p><b>{label}</b> taken for <b class="wrong">{prediction}</b></p>'
        f'<p class="place">confidence {mistake.confidence:.1%}<br>loss {mistake.loss:.2f}<br>{place}'
        f"<br>{kind}</p>{answers}</li>"
    )


def _answer(name: str, share: float, *, is_true: bool) -> str:
    kind, said = (' class="true"', '<span class="unseen"> (the true class)</span>') if is_true else ("", "")
    return (
        f'<li{kind}><span>{escape(name)}{said}</span><i style="--share: {share:.4f}"></i><span>{share:.1%}</span></li>'
    )


def _picture(picture: Image.Image, alternative: str, caption: str = "") -> str:
    small = ' class="pixelated"' if max(picture.size) < PIXELATED_BELOW else ""
    size = f'width="{picture.width}" height="{picture.height}"'
    image = f'<img{small} src="{data_uri(picture)}" {size} alt="{alternative}">'
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{image}{below}</figure>"
