"""How a network shows itself in a notebook: a row a stage, counted and not traced.

Nothing is run, not even on the meta device: what is told is what the modules hold, so that it is there at once for a
thousand layers, for every size of image, and for what surgery has left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from resnetlab.core.html import table, text
from resnetlab.models.resnet import ResNet


def network_html(model: ResNet) -> str:
    """Returns the network's parts with their parameters, as a table."""
    parts = model.sections()
    rows = [
        (name, _content(modules), f"{_count(modules):,}", f"{_count(modules, trainable=True):,}")
        for name, modules in parts.items()
    ]
    rows.append(("all", "", f"{_count([model]):,}", f"{_count([model], trainable=True):,}"))
    config, side = model.config, 224
    if model.preprocessing is not None:
        side = model.preprocessing.image_size
    elif config.stem == "cifar":
        side = 32
    facts = [f"images of {config.in_channels} channel{'s' if config.in_channels > 1 else ''}"]
    facts.append(f"{config.num_classes:,} classes" if config.num_classes else "a backbone without a head")
    if model.frozen:
        facts.append(f"frozen: {', '.join(sorted(model.frozen))}")
    if model.altered:
        facts.append(model.altered)
    return (
        f"<div><strong>ResNet</strong>, {text('; '.join(facts))}</div>"
        f"{table(('part', 'layers', 'parameters', 'trainable'), rows, texts=2)}"
        f"<div>Shapes and costs: <code>resnetlab.summarize(model, ({config.in_channels}, {side}, {side}))</code></div>"
    )


def _content(modules: Iterable[nn.Module]) -> str:
    """Returns what a part is made of, such as "2 x BasicBlock"; layers without parameters are left out."""
    names = []
    for module in modules:
        members = module.children() if isinstance(module, nn.Sequential) else [module]
        names += [type(member).__name__ for member in members if _count([member])]
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())


def _count(modules: Iterable[nn.Module], *, trainable: bool = False) -> int:
    """Returns the number of parameters, each once."""
    found = {parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in found if parameter.requires_grad or not trainable)
