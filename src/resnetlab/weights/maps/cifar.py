"""Checkpoints of networks for small images, in the form in which such training scripts commonly write them.

Blocks and layers are called as ours; the head is `linear`, and a projection (option B) is `shortcut`. The
shortcut of option A has no weights. The prefix `module.` and whatever the state dict is nested in are taken off
when the file is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from resnetlab.weights.maps.keymap import KeyMap

_RENAMED = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))


def cifar_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map for our tensors of these names."""
    return KeyMap(form="CIFAR checkpoint", names={name: _theirs(name) for name in names})


def _theirs(name: str) -> str:
    for ours, theirs in _RENAMED:
        name = re.sub(ours, theirs, name)
    return name
