"""The README's Python runs as it stands, but for what trains for minutes or needs files of the reader's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import resnetlab
from resnetlab.models.blocks import BLOCK_CLASSES
from resnetlab.models.config import BLOCKS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS_OF_CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("word", ["deepen(", "register_block("])
def test_an_example_runs(word: str):
    (code,) = [block for block in BLOCKS_OF_CODE if word in block]
    names = {"resnetlab": resnetlab, "images": torch.randn(2, 3, 64, 64), "__name__": "readme"}
    try:
        exec(compile(code, "README.md", "exec"), names)
    finally:
        BLOCK_CLASSES.pop("inverted", None)
        BLOCKS.pop("inverted", None)
    network = names.get("inverted", names.get("model"))
    assert isinstance(network, resnetlab.ResNet)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, network.config.num_classes)


def test_the_first_example_builds_what_it_says():
    """Its training is the demo's; here its last lines."""
    (code,) = [block for block in BLOCKS_OF_CODE if "resnetlab.fit(" in block]
    lines = code.splitlines()
    start = next(number for number, line in enumerate(lines) if "create_model" in line)
    names = {"resnetlab": resnetlab, "images": torch.randn(2, 1, 64, 64), "print": lambda value: None}
    exec(compile("\n".join(lines[start:]), "README.md", "exec"), names)
    assert names["logits"].shape == (2, 10)
