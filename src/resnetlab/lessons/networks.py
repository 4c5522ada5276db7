"""What the exercises about stages and whole networks check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.lessons.steps import Step, once, same, shape_of
from resnetlab.models.catalog import model_config


def residual_stage(file: Any) -> Iterator[Step]:
    """Number of blocks, shapes block by block, separate weights."""

    def shapes(*arguments: Any, **named: Any) -> list[tuple[int, ...]]:
        return _trace(file.stage(*arguments, **named), (1, arguments[0], 8, 8))

    channels = {"channels": "A block expects another number of channels than it gets. The first block changes them: "
                "what do the others receive?"}  # fmt: skip
    yield same(
        "a stage is a sequence of blocks",
        "stage(4, 8, 3)",
        lambda: (type(made := file.stage(4, 8, 3)).__name__, len(made)),
        ("Sequential", 3),
        causes={
            "This is a list, whose weights no network would find. What runs layers one after the other?": ("list", 3)
        },
        hint="A stage of 3 blocks is an nn.Sequential of 3 layers.",
    )
    yield same(
        "the first block changes the shape, the others keep it",
        "stage(4, 8, 3), shapes after each block for (1, 4, 8, 8)",
        lambda: shapes(4, 8, 3),
        [(1, 8, 4, 4)] * 3,
        causes={
            "Every block halves the resolution. Only the first one of a stage should.": [
                (1, 8, 4, 4), (1, 8, 2, 2), (1, 8, 1, 1),
            ],
            "The resolution stays. This is not the first stage, so its first block halves it.": [(1, 8, 8, 8)] * 3,
            "The channels stay.": [(1, 4, 4, 4)] * 3,
        },
        errors=channels,
        hint="Print the shape after each block.",
    )  # fmt: skip
    yield same(
        "the first stage keeps the shape",
        "stage(8, 8, 2, is_first=True), shapes after each block for (1, 8, 8, 8)",
        lambda: shapes(8, 8, 2, is_first=True),
        [(1, 8, 8, 8)] * 2,
        causes={
            "The first stage halves the resolution, too. What says that a stage is the first one?": [(1, 8, 4, 4)] * 2
        },
        errors=channels,
        hint="The stem has already reduced the resolution.",
    )
    yield same(
        "only the block that changes the shape has a projection",
        "stage(4, 8, 3), whether each block has conv3",
        lambda: [layer.conv3 is not None for layer in file.stage(4, 8, 3)],
        [True, False, False],
        causes={"Every block has a projection. Where the shape stays, x can be added unchanged.": [True] * 3},
        hint="Which arguments of Residual give a block a projection?",
    )
    yield same(
        "the blocks of the first stage have no projection",
        "stage(8, 8, 2, is_first=True), whether each block has conv3",
        lambda: [layer.conv3 is not None for layer in file.stage(8, 8, 2, is_first=True)],
        [False, False],
        hint="Where the shape stays, x can be added unchanged.",
    )
    yield same(
        "each block has weights of its own",
        "stage(8, 8, 3, is_first=True), number of different blocks",
        lambda: len({id(layer) for layer in file.stage(8, 8, 3, is_first=True)}),
        3,
        hint="The same block is used several times. Build a new one in every turn of the loop.",
    )


def residual_network(file: Any) -> Iterator[Step]:
    """Stem, head, shapes of all parts, and the number of parameters."""
    yield from _stem(file)
    yield from _head(file)
    yield from _whole(file)


def _trace(network: Any, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the shapes after each layer of a sequence."""
    x, found = torch.zeros(shape), []
    with torch.no_grad():
        for layer in network.eval():
            x = layer(x)
            found.append(tuple(x.shape))
    return found


def _stem(file: Any) -> Iterator[Step]:
    half = (1, 64, 32, 32)
    yield same(
        "the first convolution",
        "stem(1), weight of its first layer",
        lambda: shape_of(file.stem(1)[0].weight),
        (64, 1, 7, 7),
        errors={"out of range": "The stem has no layers yet.", "has no attribute": "The first layer is a convolution."},
        hint="The text names kernel and channels.",
    )
    yield same(
        "the stem divides the resolution by 4",
        "stem(1), shapes after each layer for (1, 1, 64, 64)",
        lambda: _trace(file.stem(1), (1, 1, 64, 64)),
        [half, half, half, (1, 64, 16, 16)],
        causes={
            "The pooling is not padded, so it gives 15 rows instead of 16.": [half, half, half, (1, 64, 15, 15)],
            "The convolution is not padded by half of its window.": [
                (1, 64, 29, 29), (1, 64, 29, 29), (1, 64, 29, 29), (1, 64, 15, 15),
            ],
            "Neither convolution nor pooling is padded by half of its window.": [
                (1, 64, 29, 29), (1, 64, 29, 29), (1, 64, 29, 29), (1, 64, 14, 14),
            ],
            "Normalization and activation are missing between convolution and pooling.": [half, (1, 64, 16, 16)],
            "The stem has no normalization or no activation.": [half, half, (1, 64, 16, 16)],
            "The convolution has no stride.": [(1, 64, 64, 64)] * 3 + [half],
            "The pooling has no stride.": [half] * 4,
        },
        hint="Four layers: two of them halve the resolution, and both are padded by half of their window.",
    )  # fmt: skip
    image = torch.randn(2, 1, 16, 16)

    def pooled(convolved: Tensor) -> Tensor:
        return F.max_pool2d(convolved, 3, stride=2, padding=1)

    stem = once(lambda: file.stem(1).train())
    yield same(
        "the output of the stem",
        "stem(1), images (2, 1, 16, 16), training mode",
        lambda: stem()(image),
        lambda: pooled(F.batch_norm(stem()[0](image), None, None, training=True).relu()),
        causes={
            "The activation between normalization and pooling is missing.": lambda: pooled(
                F.batch_norm(stem()[0](image), None, None, training=True)
            ),
            "The normalization after the convolution is missing.": lambda: pooled(stem()[0](image).relu()),
            "The activation comes before the normalization.": lambda: pooled(
                F.batch_norm(stem()[0](image).relu(), None, None, training=True)
            ),
        },
        hint="Compare kinds and order of the layers with the first rows of the text.",
    )


def _head(file: Any) -> Iterator[Step]:
    yield same(
        "the head returns logits",
        "head(8, 3), shape for a map of (2, 8, 4, 4)",
        lambda: _trace(file.head(8, 3), (2, 8, 4, 4))[-1],
        (2, 3),
        errors={
            "cannot be multiplied": "The linear layer receives another shape than (N, channels). What follows the "
            "pooling, and how large is its output?",
        },
        hint="Three layers: the mean of each map, a change of shape, and a linear layer.",
    )
    maps = torch.randn(2, 8, 4, 4)
    head = once(lambda: file.head(8, 3))

    def logits(pooled: Tensor) -> Tensor:
        linear = next(layer for layer in head() if isinstance(layer, nn.Linear))
        return linear(pooled)

    yield same(
        "the values of the head",
        "head(8, 3), a map of (2, 8, 4, 4)",
        lambda: head()(maps),
        lambda: logits(maps.mean((2, 3))),
        causes={
            "The head ends in probabilities. The loss applies the softmax, and needs logits.": lambda: logits(
                maps.mean((2, 3))
            ).softmax(1),
            "This is max pooling. The text asks for the mean of each map.": lambda: logits(maps.amax((2, 3))),
        },
        hint="The linear layer is the last one, and receives the mean of each map.",
    )


def _whole(file: Any) -> Iterator[Step]:
    def parts() -> list[tuple[int, ...]]:
        found = _trace(file.resnet18(), (1, 1, 64, 64))
        return [shape for number, shape in enumerate(found) if number == 0 or shape != found[number - 1]]

    yield same(
        "the shapes along the network",
        "resnet18(), the different shapes after its parts for (1, 1, 64, 64)",
        parts,
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2), (1, 10)],
        causes={
            "The first stage halves the resolution, too. It has an argument against that.": [
                (1, 64, 16, 16), (1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2), (1, 512, 1, 1), (1, 10),
            ],
            "The stages after the first do not halve the resolution.": [
                (1, 64, 16, 16), (1, 128, 16, 16), (1, 256, 16, 16), (1, 512, 16, 16), (1, 10),
            ],
            "The fourth stage is missing.": [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 10)],
            "The head is missing.": [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)],
        },
        errors={
            "cannot be multiplied": "The head receives another number of channels than it expects.",
            "channels": "A stage receives another number of channels than it expects. What does the part before give?",
        },
        hint="The table in the text has a row for each part.",
    )  # fmt: skip
    yield same(
        "the number of parameters",
        "resnet18() for 1 channel and 10 classes",
        lambda: sum(value.numel() for value in file.resnet18().parameters()),
        11_178_378,
        causes={
            "Stages have one block each. ResNet-18 has two in every stage.": 4_905_738,
            "Stages have three blocks each. ResNet-18 has two in every stage.": 17_451_018,
            "The first stage is missing: its shapes are those of the stem.": 11_030_154,
        },
        hint="Channels and shapes are right. How many blocks does each stage have?",
    )
    yield same(
        "channels and classes can be chosen",
        "resnet18(3, 5), shape for (2, 3, 32, 32)",
        lambda: _trace(file.resnet18(3, 5), (2, 3, 32, 32))[-1],
        (2, 5),
        causes={"The number of classes is fixed.": (2, 10)},
        errors={"channels": "The number of input channels is fixed."},
        hint="Pass on the arguments of resnet18.",
    )


def layer_trace(file: Any) -> Iterator[Step]:
    """Names, shapes, and a network that is left as it was."""

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    shapes = [(1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 1, 1)]
    names = ["Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d"]

    def rows(*arguments: Any) -> list[Any]:
        return [(name, tuple(shape) if isinstance(shape, torch.Size) else shape) for name, shape in
                file.layer_trace(*arguments)]  # fmt: skip

    yield same(
        "the shapes",
        "Conv2d(1, 2, 3), BatchNorm2d, ReLU, AdaptiveAvgPool2d(1), shape (1, 1, 6, 6)",
        lambda: [shape for _, shape in rows(network(), (1, 1, 6, 6))],
        shapes,
        causes={
            "The shapes are those of the inputs. The text asks for what a layer returns.": [(1, 1, 6, 6), *shapes[:-1]],
            "The batch does not change: nothing goes through the layers.": [(1, 1, 6, 6)] * 4,
            "These are tensors, not their shapes.": None,
        },
        errors={"": "A layer receives another number of channels than it expects. Does it get the result of "
                "the layer before it, or the first batch again?"},
        hint="Print x.shape in the loop, after your line.",
    )  # fmt: skip
    yield same(
        "the names",
        "Conv2d, BatchNorm2d, ReLU, AdaptiveAvgPool2d",
        lambda: [name for name, _ in rows(network(), (1, 1, 6, 6))],
        names,
        causes={
            "This is the text of the whole layer, with its arguments. Its class has a name.": [
                str(layer) for layer in network()
            ],
            "These are classes, not their names. Which attribute of a class is its name?": [
                type(layer) for layer in network()
            ],
        },
        hint="Every object knows its class, and every class its name.",
    )

    def statistics() -> bool:
        made = network()
        file.layer_trace(made, (2, 1, 6, 6))
        return int(made.state_dict()["1.num_batches_tracked"]) == 0

    yield same(
        "running statistics are not changed",
        "a network with BatchNorm2d in training mode: are its statistics the same afterwards?",
        statistics,
        True,
        hint="The trace ran in training mode, so the normalization learned from a batch of zeros.",
    )

    def modes(training: bool) -> list[bool]:
        made = network().train(training)
        file.layer_trace(made, (1, 1, 6, 6))
        return [module.training for module in made.modules()]

    for training in (True, False):
        yield same(
            f"the mode is the same afterwards: {'training' if training else 'evaluation'}",
            f"a network in {'training' if training else 'evaluation'} mode",
            lambda training=training: modes(training),
            [training] * 5,
            causes={
                "The network stays in evaluation mode. The training would go on without learning statistics.": [False]
                * 5,
                "The network is always switched to training mode. It may have been in evaluation mode before.": [True]
                * 5,
                "Only the network itself is switched back; its layers are still in the other mode. Which method "
                "reaches all of them?": [training, *[not training] * 4],
            },
            hint="`was_training` remembers the mode.",
        )


def table1(file: Any) -> Iterator[Step]:
    """The formula, then the rows."""
    for kind, depths in (("basic", (2, 2, 2, 2)), ("bottleneck", (1, 2))):
        blocks, each = sum(depths), 3 if kind == "bottleneck" else 2
        yield same(
            f"count_layers of {kind} {depths}",
            f"count_layers({kind!r}, {depths})",
            lambda a=(kind, depths): file.count_layers(*a),
            2 + each * blocks,
            causes={
                "Two layers are missing: which ones are outside the blocks?": each * blocks,
                "One layer is missing: both the stem and the head have one.": 1 + each * blocks,
                "A bottleneck block does not have the number of convolutions that a basic block has.": 2 + 2 * blocks,
                "A block has more than one layer.": 2 + blocks,
                "Projections are counted. The paper counts the main path only.": 2 + each * blocks + len(depths) - 1,
            },
            hint="Compute the number by hand, with the formula in the text.",
        )
    for kind, right in (("basic", 512), ("bottleneck", 2048)):
        yield same(
            f"embedding_size of {kind}",
            f"embedding_size({kind!r})",
            lambda kind=kind: file.embedding_size(kind),
            right,
            causes={
                "A bottleneck block expands its channels at its end.": 512,
                "Only bottleneck blocks expand their channels.": 2048,
                "This is the number of classes, which the head returns.": 1000,
            },
            hint="The last stage has 512 channels, and the output of a bottleneck block has 4 times as many.",
        )
    for layers in (18, 34, 50, 101, 152):
        config = model_config(f"resnet{layers}")
        row = (config.block, tuple(config.depths))
        other = "basic" if config.block == "bottleneck" else "bottleneck"
        deeper = {101: (3, 8, 36, 3), 152: (3, 4, 23, 3)}.get(layers)
        yield same(
            f"the row of ResNet-{layers}",
            f"TABLE1[{layers}]",
            lambda layers=layers: (file.TABLE1[layers][0], tuple(file.TABLE1[layers][1])),
            row,
            causes={
                "The kind of block is wrong. From 50 layers on, the paper uses the cheaper one.": (other, row[1]),
                "Stages 3 and 4 have changed places. In this table, the third stage has the most blocks.": (
                    row[0],
                    (*row[1][:2], row[1][3], row[1][2]),
                ),
                "These are the blocks of another depth. Use count_layers to see which one.": (row[0], deeper),
                "These are too few blocks. Use count_layers to see how many layers they make.": (
                    row[0],
                    (3, 4, 6, 3) if layers > 50 else (2, 2, 2, 2),
                ),
            },
            errors={"not ": "A row is a pair: the kind of block, and a tuple of four numbers."},
            hint="Use count_layers to see how many layers this row has. Table 1 of the paper has a column for each "
            "network.",
            expected=f"the column of Table 1 for {layers} layers",
        )
