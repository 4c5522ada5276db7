"""A process that decodes images for a pack: reads tasks from standard input and writes answers to standard output.

It is started as `python -P -m resnetlab.data.storage.pack_worker`, so that no script of the user's is run again, and
ends when its input does, so that it does not outlive who started it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.core.environment import end_with_parent, keep_freed_memory
from resnetlab.core.errors import UserError
from resnetlab.data.storage.decoding import StoredFormat, decode_shard
from resnetlab.data.storage.reader import FirstFrameWarning

PROGRESS_SECONDS = 5.0


def write_shard(task: dict[str, Any]) -> None:
    """Decodes the files of a task, writes their pixels, and then what there is to know of them, beside the pixels."""
    pixels, facts = (Path(task["target"]).with_suffix(suffix) for suffix in (".bin", ".json"))
    try:
        _write_shard(task, pixels, facts)
    except BaseException:
        for path in (pixels, facts):
            _part(path).unlink(missing_ok=True)
        raise


def _write_shard(task: dict[str, Any], pixels: Path, facts: Path) -> None:
    files = [(Path(path), (size, modified)) for path, size, modified in task["files"]]
    checksum, written = 0, 0
    # No fsync: whoever continues the pack compares the checksum, and `finish_pack` syncs all shards.
    with _part(pixels).open("wb") as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FirstFrameWarning)

        def keep(image: np.ndarray) -> None:
            nonlocal checksum, written
            content = np.ascontiguousarray(image).data
            checksum = zlib.crc32(content, checksum)
            written += file.write(content)
            report_progress()

        stored, training = StoredFormat(**task["format"]), task["split"] == "train"
        known = decode_shard(files, task["first"], stored, training=training, keep=keep)
    _part(pixels).replace(pixels)
    messages = [str(warning.message) for warning in caught]
    found = {"key": task["key"], **vars(known), "warnings": messages, "bytes": written, "crc32": checksum}
    _part(facts).write_text(json.dumps(found), encoding="utf-8")
    _part(facts).replace(facts)


class _Progress:
    """Tells who started this process that it works, every few seconds, so that it is not taken for a stopped one."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() > self._told + PROGRESS_SECONDS:
            self._told = time.monotonic()
            answer_with({"progress": True})


report_progress = _Progress()


def answer_with(answer: dict[str, Any]) -> None:
    """Writes one line of JSON to standard output."""
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody is there to hear it
        os._exit(1)


def main() -> None:
    """Answers tasks until the input ends."""
    keep_freed_memory()
    end_with_parent()
    for line in sys.stdin:
        try:
            write_shard(json.loads(line))
            answer = {}
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror or str(error)}
        except UserError as error:  # an image was not read for a reason that is not in the image
            answer = {"message": str(error)}
        answer_with(answer)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")  # nobody else's, should another process be at it


if __name__ == "__main__":
    main()
