"""The block that docs/family.md registers, against timm's network of the same name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import timm
import torch
from tests.oracles import assert_same_logits, randomized

import resnetlab
from resnetlab.models.blocks import BLOCK_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "family.md"


def test_the_res2net_of_the_documentation_is_timms():
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "Res2Net" in block)
    names: dict[str, Any] = {"__name__": "documented"}
    try:
        exec(code, names)
        config = dataclasses.replace(names["config"], num_classes=1000)
        with torch.device("meta"):
            whole, theirs = resnetlab.ResNet(config), timm.create_model("res2net50_26w_4s")
        counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (whole, theirs)]
        assert counts[0] == counts[1]
        depths, widths = (1, 2, 1, 1), (16, 32, 64, 128)
        narrow = dataclasses.replace(config, depths=depths, widths=widths, stem_width=64, num_classes=10)
        ours = resnetlab.ResNet(narrow).eval()
        theirs = randomized(
            timm.create_model("res2net50_26w_4s", layers=depths, channels=widths, num_classes=10).double()
        )
        ours.double().load_state_dict(
            {re.sub(r"(\d\.)(convs|bns)", r"\1conv2.\2", key): value for key, value in theirs.state_dict().items()}
        )
        assert_same_logits(ours.float(), theirs.float(), (64, 64))
    finally:
        BLOCK_CLASSES.remove("res2net")
