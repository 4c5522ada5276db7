"""Prediction of many images: shared out over processes, and continued after an interruption.

The images are cut into parts of a fixed size, in their order. Each of n processes answers every n-th part, and writes
its answers to a file in the folder `FILE.parts`, next to the file that is to be written. A part whose file exists is
not answered again. When all parts are there, the first process joins them in order and removes the folder. Processes
share nothing but this folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json
from resnetlab.core.waiting import announced, wait_seconds
from resnetlab.evaluation.inputs import Given
from resnetlab.evaluation.predict import Predictor, check_unreadable

PART = 64
"""Images in a part: what an interruption loses at most in each process."""
_POLL = 0.05


@dataclass(frozen=True)
class Place:
    """This process among those that share the work, as torchrun numbers them.

    Attributes:
        rank: from 0.
        processes: their number.
    """

    rank: int = 0
    processes: int = 1

    @classmethod
    def here(cls) -> Place:
        """Returns the place of this process; without torchrun it is the only one."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def predict_in_parts(
    predictor: Predictor, given: Sequence[Given], out: Path, place: Place, *, skip_unreadable: bool = False
) -> dict[str, list[Any]] | None:
    """Returns the columns of the table of all images in the first process, and None in the others.

    Args:
        predictor: answers images.
        given: the images, all files, the same in every process.
        out: the file that the caller is going to write; the parts are kept next to it until `remove_parts`.
        place: this process.
        skip_unreadable: as for `predict`.

    Raises:
        UserError: images cannot be read (all are named), or another process makes no progress.
    """
    if place.rank == 0:
        predictor.warn_of_colors(given)
    folder, options = _folder(out), _options(predictor)
    folder.mkdir(exist_ok=True)
    parts = [_Part(folder, number, given, options) for number in range(-(-len(given) // PART))]
    for part in parts[place.rank :: place.processes]:
        if part.read() is None:
            part.write(predictor)
    if place.rank:
        return None
    with announced("the other processes") if place.processes > 1 else nullcontext():
        answers = _wait(parts)
    check_unreadable([failure for found in answers for failure in found["failures"]], len(given), skip=skip_unreadable)
    tables = [found["columns"] for found in answers if found["columns"]["path"]]
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


def remove_parts(out: Path) -> None:
    """Removes the parts, after the file is written."""
    for path in (*_folder(out).glob("part-*.json"), *_folder(out).glob(".part-*.part")):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something of the user's is in it
        _folder(out).rmdir()


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _options(predictor: Predictor) -> str:
    """Returns what tells this prediction from others: the content of the network's file, and the options."""
    assert predictor.file is not None
    with predictor.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest} {predictor.top} {predictor.mirrored}"


class _Part:
    """Some of the images, and the file with their answers.

    The file has a key of the network, the options and the images, so that the answers of another prediction are never
    used: each image counts with its path, size and time of change.
    """

    def __init__(self, folder: Path, number: int, given: Sequence[Given], options: str) -> None:
        self.path = folder / f"part-{number:06d}.json"
        self._given = given[number * PART : (number + 1) * PART]
        digest = hashlib.sha256(options.encode())
        for one in self._given:
            digest.update(f"\0{one.name}".encode())
            if isinstance(one.content, Path):  # as all that come here
                found = one.content.stat()
                digest.update(f"\0{found.st_size}\0{found.st_mtime_ns}".encode())
        self._key = digest.hexdigest()

    def read(self) -> Mapping[str, Any] | None:
        """Returns columns and failures; None if they are not there yet."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == self._key else None

    def write(self, predictor: Predictor) -> None:
        """Answers the images."""
        kept, columns, failures = predictor.answer(self._given)
        paths = {"path": [self._given[place].name for place in kept]}
        answers = {"key": self._key, "columns": {**paths, **columns}, "failures": list(map(str, failures))}
        write_json(self.path, answers)


def _wait(parts: Sequence[_Part]) -> list[Mapping[str, Any]]:
    """Returns the answers of all parts as soon as they are there."""
    limit, since = wait_seconds(), time.monotonic()
    found: list[Mapping[str, Any]] = []
    while len(found) < len(parts):
        if (part := parts[len(found)].read()) is not None:
            found.append(part)
            since = time.monotonic()
        elif time.monotonic() - since > limit:
            raise UserError(
                f"the other processes have not written {parts[len(found)].path} for {limit:.0f} s. Start the command "
                "again: it continues with the images that are not answered yet."
            )
        else:
            time.sleep(_POLL)
    return found
