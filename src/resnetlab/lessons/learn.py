"""`learn`: lists lessons and exercises, or writes one as a file. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from resnetlab.core.errors import UserError, unknown
from resnetlab.lessons.exercise import EXERCISES, get_exercise
from resnetlab.lessons.lesson import LESSONS, get_lesson, notebook_text

KINDS = {**dict.fromkeys(LESSONS, "lesson"), **dict.fromkeys(EXERCISES, "exercise")}
"""For each name that `learn` takes, in order, what it is."""


@overload
def learn(name: None = None, out: None = None) -> dict[str, str]: ...
@overload
def learn(name: str, out: str | Path | None = None) -> Path: ...
def learn(name: str | None = None, out: str | Path | None = None) -> dict[str, str] | Path:
    """Writes a lesson (a Jupyter notebook) or an exercise (a Python file with gaps to fill), or lists all.

    `resnetlab.check(file)` shows what is right in an exercise. For what is wrong, it shows the smallest input that
    fails, and a hint.

    Args:
        name: of the lesson or exercise.
        out: the file to write, which ends in .ipynb for a lesson and in .py for an exercise, or a folder for it; by
            default NAME.ipynb or NAME.py in the current folder.

    Returns:
        The file that was written. Without a name: the title of each lesson and exercise by its name, in order.

    Raises:
        UserError: the name is unknown, or the file exists.
    """
    if name is None:
        if out is not None:
            raise UserError("`out` needs the name of a lesson or exercise, and `name` was not given. Pass it.")
        lessons = {known: get_lesson(known).title for known in LESSONS}
        return lessons | {known: get_exercise(known).title for known in EXERCISES}
    if name not in KINDS:
        raise unknown("lesson or exercise", name, KINDS, listed_by="resnetlab learn")
    suffix = ".ipynb" if KINDS[name] == "lesson" else ".py"
    path = Path(f"{name}{suffix}") if out is None else Path(out)
    if path.suffix != suffix or path.is_dir():
        path /= f"{name}{suffix}"
    if KINDS[name] == "lesson":
        text = notebook_text(get_lesson(name))
    else:
        text = get_exercise(name).text.replace(f"resnetlab check {name}.py", f"resnetlab check {path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"out expects a file name that ends in {suffix}, or a folder, and {path.parent} is a file."
        ) from None
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(
            f"{path} exists, and learn overwrites nothing. Rename that file, or choose another name with out "
            "(in the shell, --out)."
        ) from None
    return path
