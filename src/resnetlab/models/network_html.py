"""The notebook view of a network: its parameters by section.

The figures are counted from the modules, without running or tracing the network, so that a thousand layers take no
time and what surgery left is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from resnetlab.core.html import render


def network_html(
    sections: Mapping[str, Sequence[nn.Module]], *, channels: int, classes: int, image_size: int, notes: Sequence[str]
) -> str:
    """Returns a network's sections with their parameters, as a table.

    Args:
        sections: the modules of each section, from the images to the logits.
        channels: of the images it takes.
        classes: 0 for a backbone.
        image_size: height and width of the images to suggest for a summary.
        notes: what else to say about it, such as what is frozen.
    """
    every = [module for modules in sections.values() for module in modules]
    rows = [(name, _content(modules), *map("{:,}".format, _counts(modules))) for name, modules in sections.items()]
    return render(
        "models/templates/network.html",
        channels=channels,
        classes=classes,
        image_size=image_size,
        notes=notes,
        rows=[*rows, ("all", "", *map("{:,}".format, _counts(every)))],
    )


def _content(modules: Iterable[nn.Module]) -> str:
    """Returns what a section is made of, such as "2 x BasicBlock"; layers without parameters are left out."""
    names = []
    for module in modules:
        members = module.children() if isinstance(module, nn.Sequential) else [module]
        names += [type(member).__name__ for member in members if _counts([member])[0]]
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())


def _counts(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Returns the numbers of parameters and of trainable ones, counting each once."""
    found = {parameter for module in modules for parameter in module.parameters()}
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)
