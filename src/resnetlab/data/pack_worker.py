"""A process that decodes images for a pack: a task a line on standard input, an answer a line on standard output.

It is started as `python -m resnetlab.data.pack_worker`, so that no script of the user's is run again, and
ends when its input does, so that it does not outlive who started it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resnetlab.data.decoding import StoredFormat, decode_shard
from resnetlab.data.reader import FirstFrameWarning


def write_shard(task: dict[str, Any]) -> None:
    """Decodes the files of a task, writes their pixels, and then what there is to know of them, beside the pixels."""
    files = [(Path(path), (size, modified)) for path, size, modified in task["files"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FirstFrameWarning)
        pixels, known = decode_shard(
            files, task["first"], StoredFormat(**task["format"]), training=task["split"] == "train"
        )
    facts = {
        "key": task["key"],
        **asdict(known),
        "warnings": [str(warning.message) for warning in caught],
        "bytes": pixels.nbytes,
        "sha256": hashlib.sha256(pixels.data).hexdigest(),
    }
    target = Path(task["target"])
    for path, content in (
        (target.with_suffix(".bin"), pixels.data),
        (target.with_suffix(".json"), json.dumps(facts).encode()),
    ):
        # No fsync: whoever goes on with the pack compares the digest, and makes a torn shard again.
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(content)
        temporary.replace(path)


def main() -> None:
    """Answers tasks until the input ends."""
    for line in sys.stdin:
        try:
            write_shard(json.loads(line))
            answer = {}
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror or str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
