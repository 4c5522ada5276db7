"""Writes docs/results.md from finished studies: claim, figures, measured and published values, verdict, command.

python tools/study_results.py FOLDER/studies/*

The other pages of the documentation show its pictures.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from resnetlab.core.runs import Run
from resnetlab.studies.lab.question import StudyResult, columns_of

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = {
    "degradation": ("curves.png", "degradation.png"),
    "landscape": ("contours.png", "surfaces.png", "lines.png"),
    "lesion": ("lesion.png", "random.png"),
}
"""Of the other studies, the first one is shown."""
IN_LESSONS = {"study-degradation-curves.png", "study-responses.png", "study-landscape-contours.png"}
"""Figures that lessons show too; the package contains them."""
NOTES = {
    "responses": (
        "Why the third part does not hold: responses start at 1, the scale of a new normalization layer. In 1,880 "
        "steps they change by some hundredths; the weight decay of our recipe leaves scales alone. The paper "
        "trains for 64,000 steps."
    ),
    "landscape": (
        "Why the claim does not hold: from a distance of 0.75 on, the loss of the plain networks stays near that of "
        "guessing, 2.3, while that of the residual networks grows to more than ten times as much. So a rise in the "
        "loss is not what distinguishes them here. The shapes of the surfaces are like those in the paper: a bowl "
        "around the residual network, and a plateau with the trained weights near its edge around the plain one."
    ),
    "scaling": (
        "Why: the images have 28x28 pixels, so a higher resolution enlarges them and adds no detail; in 192 steps, "
        "more layers and channels help most. The paper scales networks for photos, after complete training."
    ),
    "shortcuts": (
        "Why the last part does not hold: He et al. (2016b) report the advantage of pre-activation for 110 layers and "
        "more. The network here has 20 layers."
    ),
    "regularization": (
        "Why the claim does not hold: in 576 steps, the regularized networks learn less (training errors of 10 to 15 "
        "instead of 5 %). Regularization pays once a network overfits; Huang et al. train for 500 epochs on CIFAR."
    ),
    "finetuning": (
        "Why the claim is undecided: each seed draws other images, 10 of each class. With three seeds, the errors from "
        "scratch differ by as much as the gain."
    ),
    "lesion": (
        "Why the first part does not hold: the network here has 9 blocks instead of 54, so each has a larger part of "
        "the work. The cost falls from the first blocks to the last, for which it is below 5 points."
    ),
}
"""Explanations of ours; everything else on the page is from the studies."""
MOST_ROWS = 24
"""Longer tables are left out."""
COLORS, WIDTH = 96, 1500
HEAD = """# Results of the studies

What `resnetlab study` found on Fashion-MNIST. Plans and seeds were fixed before each study ran. All networks of a study
have the same number of steps and the same learning rate, and no setting was tuned. A claim has one line for each of its
parts. A difference of means is significant if it exceeds twice its standard error; if a claim has several parts, the
threshold is higher (Holm 1979). Each study ends with what differs from the paper: above all, our trainings are much
shorter.

`tools/study_results.py` writes this page. [Studies](studies.md) explains the command, and how to read a verdict.
"""


def section(result: StudyResult) -> str:
    """Returns the section of a study, and writes its figures as files of few colors."""
    question, name = result.question, result.question.name
    parts = [f"## {question.title}", f"Claim ({question.source}): {question.claim}", f"**{result.verdict.headline}.**"]
    if result.verdict.parts:
        parts.append("\n".join(f"- {part}: **{claim}**" for part, claim in result.verdict.parts.items()))
    if name in NOTES:
        parts.append(NOTES[name])
    for file in FIGURES.get(name, tuple(result.figures)[:1]):
        target = f"study-{name}-{file}" if Path(file).stem != name else f"study-{name}.png"
        target = f"{'lessons/' * (target in IN_LESSONS)}images/{target}"
        shrink(result.folder / file, DOCS / target)
        parts += [f"![{question.title}]({target})", result.figures[file]]
    if len(result.table) <= MOST_ROWS:
        parts += ["Measured here (mean +- standard deviation over seeds):", markdown(result.table)]
    parts.append(f"Published: {question.protocol}.")
    if question.published:
        parts.append(markdown(result.published))
    parts += ["Differences from the paper:", "\n".join(f"- {line}" for line in result.deviations), conditions(result)]
    return "\n\n".join(parts)


def conditions(result: StudyResult) -> str:
    """Returns the command that repeats the study, and where and how long its trainings ran."""
    command = re.sub(r" --data-root \S+", "", result.command)
    runs = [Run(path.parent) for path in sorted(result.folder.glob("runs/*/run.toml"))]
    if not runs:
        return f"```sh\n{command}\n```"
    minutes = sum(run.history["seconds"].iloc[-1] for run in runs) / 60
    where, date = runs[0].environment, runs[0].settings["created"][:10]
    note = (
        f"{len(runs)} trainings, together {minutes:.0f} minutes on one core of an {where['processor']} that also ran "
        f"other work; torch {where['packages']['torch']}, {date}."
    )
    return f"```sh\n{command}\n```\n\n{note}"


def markdown(frame: pd.DataFrame) -> str:
    """Returns a table as the command prints it, in Markdown."""
    columns = columns_of(frame)
    lines = [list(columns), ["---:" if is_number else "---" for is_number, _ in columns.values()]]
    lines += map(list, zip(*(values for _, values in columns.values()), strict=True))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shrink(source: Path, target: Path) -> None:
    """Copies a picture with fewer pixels and colors."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, WIDTH))
        picture.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> int:
    """Writes the page."""
    results = [StudyResult.load(folder) for folder in sys.argv[1:]]
    page = "\n\n".join([HEAD.strip(), *map(section, results)]) + "\n"
    (DOCS / "results.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
