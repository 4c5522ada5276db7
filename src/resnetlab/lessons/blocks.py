"""What the exercises about residual blocks and their shortcuts check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.lessons.steps import Step, once, randomized, same, shape_of, tensor_shapes
from resnetlab.models.resnet import block
from resnetlab.models.shortcuts import ZeroPaddedIdentity

_SIZES = "Two tensors that are added have different shapes. Print both shapes."


def residual_layers(file: Any) -> Iterator[Step]:
    """Construction, shape, weights, and separate normalizations."""
    images, block = torch.randn(4, 3, 6, 6), once(lambda: randomized(file.Residual(3)))
    smaller = "The branch loses rows and columns at the border, so it cannot be added to x. What keeps the size?"
    yield same(
        "the block can be built",
        "Residual(3)",
        lambda: isinstance(file.Residual(3), nn.Module),
        True,
        hint="Read the message: which line of __init__ fails?",
        expected="a module",
    )
    yield same(
        "a convolution keeps the resolution",
        "conv1 of Residual(3), images (4, 3, 6, 6)",
        lambda: shape_of(file.Residual(3).conv1(images)),
        (4, 3, 6, 6),
        causes={smaller: (4, 3, 4, 4)},
        hint="With the formula in the text: which padding makes the output as large as the input?",
    )
    yield same(
        "names and shapes of the parameters",
        "Residual(3)",
        lambda: tensor_shapes(file.Residual(3)),
        {name: shape for number in (1, 2) for name, shape in {
            f"conv{number}.weight": (3, 3, 3, 3), f"conv{number}.bias": (3,), f"bn{number}.weight": (3,),
            f"bn{number}.bias": (3,),
        }.items()},
        causes={
            "One normalization is used twice, so that its statistics mix two different outputs.": lambda: (
                _without(file.Residual(3), "bn2")
            ),
            "One convolution is used twice. The branch has two, with weights of their own.": lambda: (
                _without(file.Residual(3), "conv2")
            ),
            "The convolutions have no bias. Here they should.": {
                name: shape for number in (1, 2) for name, shape in {
                    f"conv{number}.weight": (3, 3, 3, 3), f"bn{number}.weight": (3,), f"bn{number}.bias": (3,),
                }.items()
            },
        },
        hint="Compare the shapes: the kernels are 3x3, and all numbers of channels are equal.",
    )  # fmt: skip
    yield same(
        "the block keeps the shape",
        "images (4, 3, 6, 6)",
        lambda: shape_of(file.Residual(3)(images)),
        (4, 3, 6, 6),
        errors={"must match": smaller},
        hint="Both convolutions keep the resolution.",
    )
    yield same(
        "the block is the one of the book",
        "images (4, 3, 6, 6), random weights",
        lambda: block()(images),
        lambda: _residual(block(), images),
        hint="Compare the order of the layers in forward with their numbers.",
    )


def _without(module: nn.Module, layer: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's parameters if a layer is the same object as an earlier one."""
    kept = tensor_shapes(module)
    return kept if not any(name.startswith(layer) for name in kept) else {}


def _residual(made: Any, x: Tensor) -> Tensor:
    """Returns the output of the book's block with the layers of another one."""
    y = made.bn2(made.conv2(F.relu(made.bn1(made.conv1(x)))))
    conv3 = getattr(made, "conv3", None)
    return F.relu(y + (x if conv3 is None else conv3(x)))


def residual_forward(file: Any) -> Iterator[Step]:
    """The identity, then random weights, then an unchanged input."""

    def silent() -> Any:
        made = file.Residual(1)
        for value in made.parameters():
            value.data.zero_()
        return made

    x = torch.tensor([2.0, -1.0]).reshape(1, 1, 1, 2)
    yield same(
        "a branch of zeros leaves the shortcut",
        "input [2, -1], all weights 0",
        lambda: silent()(x.clone()),
        x.relu(),
        causes={
            "x is missing. What makes the block residual?": torch.zeros_like(x),
            "The output is not activated, or x is added after the last ReLU.": x,
            "x is added twice.": 2 * x.relu(),
        },
        hint="If y is 0, the output should be relu(x).",
    )
    images = torch.randn(4, 3, 6, 6)
    block = once(lambda: randomized(file.Residual(3)))

    def wrong(kind: str) -> Tensor:
        made = block()
        y = made.bn1(made.conv1(images))
        y = y if kind == "linear" else y.relu()
        y = (made.bn1 if kind == "shared" else made.bn2)(made.conv2(y) if kind != "one" else y)
        return {
            "early": F.relu(y.relu() + images),
            "late": y.relu() + images,
            "swapped": F.relu(made.bn2(made.conv2(made.bn1(made.conv1(images).relu()))) + images),
            "again": F.relu(made.bn2(made.conv2(images)) + images),
            "unnormalized": F.relu(made.conv2(made.bn1(made.conv1(images)).relu()) + images),
        }.get(kind, F.relu(y + images))

    yield same(
        "the output for random weights",
        "images (4, 3, 6, 6), random weights",
        lambda: block()(images.clone()),
        lambda: _residual(block(), images),
        causes={
            "The branch is activated before the sum as well, so it can only raise values. The text has one ReLU in the "
            "branch.": lambda: wrong("early"),
            "x is added after the last ReLU. In which order are sum and ReLU in the text?": lambda: wrong("late"),
            "Nothing happens between the two convolutions but normalization: together they are one linear map.": (
                lambda: wrong("linear")
            ),
            "The first normalization is used twice.": lambda: wrong("shared"),
            "The activation comes before the normalization. In the text it comes after it.": lambda: wrong("swapped"),
            "The second convolution starts from x again. It continues with the result of the first one.": (
                lambda: wrong("again")
            ),
            "The second convolution is not used.": lambda: wrong("one"),
            "The second convolution is not normalized.": lambda: wrong("unnormalized"),
        },
        hint="Go through the two lines in the text word by word.",
    )

    def after() -> Tensor:
        given = images.clone()
        block()(given)
        return given

    yield same(
        "the input is not changed",
        "images (4, 3, 6, 6), compared before and after the call",
        after,
        images,
        hint="An operation in place, such as x += y or a ReLU with inplace=True, writes into the tensor of the caller.",
    )

    def gradient() -> bool:
        given = images.clone().requires_grad_()
        block()(given).sum().backward()
        return given.grad is not None

    yield same("gradients flow back to the input", "images (4, 3, 6, 6)", gradient, True, hint="Which line detaches "
               "values, or writes into one that the gradient needs?")  # fmt: skip


def residual_projection(file: Any) -> Iterator[Step]:
    """Shapes of branch and shortcut, then of the sum, then values."""
    images = torch.randn(4, 3, 6, 6)

    def made() -> Any:
        return file.Residual(3, 6, use_1x1conv=True, strides=2)

    yield same(
        "without a projection, the shape stays",
        "Residual(3, 3), images (4, 3, 6, 6)",
        lambda: shape_of(file.Residual(3, 3)(images)),
        (4, 3, 6, 6),
        errors={"must match": "Convolutions of 3x3 lose rows and columns at the border, unless they are padded."},
        hint="With strides=1, nothing changes the resolution.",
    )
    yield same(
        "the branch halves the resolution once",
        "conv1, then conv2 of Residual(3, 6, use_1x1conv=True, strides=2), images (4, 3, 6, 6)",
        lambda: [shape_of((block := made()).conv1(images)), shape_of(block.conv2(block.conv1(images)))],
        [(4, 6, 3, 3), (4, 6, 3, 3)],
        causes={
            "Both convolutions have the stride, so the branch is a quarter of the size.": [(4, 6, 3, 3), (4, 6, 2, 2)],
            "No convolution of the branch has the stride.": [(4, 6, 6, 6), (4, 6, 6, 6)],
            "The second convolution has the stride. The book strides in the first, which is cheaper.": [
                (4, 6, 6, 6), (4, 6, 3, 3),
            ],
            "A 3x3 convolution without padding loses rows and columns at the border.": [(4, 6, 2, 2), (4, 6, 0, 0)],
        },
        errors={"channels": "The second convolution continues with the output of the first. How many channels has it?"},
        hint="Which of the two convolutions divides the resolution?",
    )  # fmt: skip
    yield same(
        "the projection has the shape of the branch",
        "conv3 of Residual(3, 6, use_1x1conv=True, strides=2), images (4, 3, 6, 6)",
        lambda: shape_of(made().conv3(images)),
        (4, 6, 3, 3),
        causes={
            "The projection keeps the resolution, but the branch halves it.": (4, 6, 6, 6),
            "The projection is padded. A 1x1 kernel needs no padding.": (4, 6, 4, 4),
            "The projection does not change the channels.": (4, 3, 3, 3),
        },
        hint="The projection has to do to x what the branch does: to channels and to resolution.",
    )
    yield same(
        "the kernel of the projection",
        "conv3.weight of Residual(3, 6, use_1x1conv=True, strides=2)",
        lambda: shape_of(made().conv3.weight),
        (6, 3, 1, 1),
        causes={"The projection looks at 3x3 positions. The shortcut should only mix channels.": (6, 3, 3, 3)},
        hint="The text names the size of the kernel.",
    )
    yield same(
        "the block changes the shape",
        "Residual(3, 6, use_1x1conv=True, strides=2), images (4, 3, 6, 6)",
        lambda: shape_of(made()(images)),
        (4, 6, 3, 3),
        errors={"must match": "F(x) and x are added, and x still has its old shape. What did you build conv3 for?"},
        hint=_SIZES,
    )
    block = once(lambda: randomized(made()))
    yield same(
        "the output for random weights",
        "images (4, 3, 6, 6), random weights",
        lambda: block()(images.clone()),
        lambda: _residual(block(), images),
        causes={
            "The projection is applied to the branch, and not to x.": lambda: F.relu(block().conv3(images) * 2),
            "The shortcut is the projection alone.": lambda: F.relu(block().conv3(images)),
        },
        hint="The output is relu(F(x) + projection(x)).",
    )


def shortcut_a(file: Any) -> Iterator[Step]:
    """Subsampling, padding, the rounding rule, and the block."""
    for channels, out, size, stride in ((2, 2, 4, 2), (1, 3, 2, 1), (2, 4, 4, 2), (3, 6, 5, 2)):
        x = torch.arange(1.0, channels * size * size + 1).reshape(1, channels, size, size)
        right = ZeroPaddedIdentity(channels, out, stride)(x)
        new = out - channels
        small = x[:, :, ::stride, ::stride]
        yield same(
            f"from {channels} to {out} channels with stride {stride}",
            f"x of shape {tuple(x.shape)} with the values 1, 2, 3, ..., {out} channels, stride {stride}",
            lambda a=(x, out, stride): file.shortcut_a(*a),
            right,
            causes={
                "Values are averaged. Option A keeps every second row and column unchanged.": (
                    lambda x=x, s=stride, new=new: F.pad(F.avg_pool2d(x, s), (0, 0, 0, 0, new // 2, new - new // 2))
                ),
                "The largest value of each window is taken. Option A takes every second row and column.": (
                    lambda x=x, s=stride, new=new: F.pad(F.max_pool2d(x, s), (0, 0, 0, 0, new // 2, new - new // 2))
                ),
                "All new channels come after the old ones. The text puts the old ones in the middle.": (
                    F.pad(small, (0, 0, 0, 0, 0, new))
                ),
                "All new channels come before the old ones. The text puts the old ones in the middle.": (
                    F.pad(small, (0, 0, 0, 0, new, 0))
                ),
                "For an odd number of new channels, the larger part comes after.": (
                    F.pad(small, (0, 0, 0, 0, new - new // 2, new // 2))
                ),
                "Rows and columns of zeros are added instead of channels. F.pad begins with the last axis.": (
                    F.pad(small, (new // 2, new - new // 2))
                ),
                "The resolution is not reduced.": F.pad(x, (0, 0, 0, 0, new // 2, new - new // 2)),
                "Only one axis of the resolution is reduced.": (
                    F.pad(x[:, :, ::stride], (0, 0, 0, 0, new // 2, new - new // 2))
                ),
                "The number of channels does not grow.": small,
            },
            hint="Print the shape after each of your lines.",
        )
    images = torch.randn(2, 4, 6, 6)
    made = once(lambda: randomized(file.Block(4, 8, stride=2)))

    def branch() -> Tensor:
        return made().bn2(made().conv2(F.relu(made().bn1(made().conv1(images)))))

    yield same(
        "the block adds the shortcut, then activates",
        "Block(4, 8, stride=2), images (2, 4, 6, 6), random weights",
        lambda: made()(images.clone()),
        lambda: F.relu(branch() + ZeroPaddedIdentity(4, 8, 2)(images)),
        causes={
            "The shortcut is missing.": lambda: F.relu(branch()),
            "The shortcut is added after the last ReLU.": lambda: (
                F.relu(branch()) + ZeroPaddedIdentity(4, 8, 2)(images)
            ),
            "The activation after the sum is missing.": lambda: branch() + ZeroPaddedIdentity(4, 8, 2)(images),
        },
        errors={"must match": "The branch has another shape than x. Your function above gives x the right one."},
        hint="The output is the ReLU of a sum of two terms.",
    )


def bottleneck(file: Any) -> Iterator[Step]:
    """Parameters, shapes, the projection's condition, and values."""
    yield from _bottleneck_layers(file)
    yield from _bottleneck_shapes(file)
    yield from _bottleneck_values(file)


def _bottleneck_layers(file: Any) -> Iterator[Step]:
    wanted = tensor_shapes(block("bottleneck", in_channels=16, width=4))
    for title, name, causes in (
        ("the first convolution reduces the channels", "conv1", {
            "The first convolution is not 1x1.": (4, 16, 3, 3),
            "The first convolution does not reduce the channels to `width`.": (16, 16, 1, 1),
        }),
        ("the second convolution is 3x3 and works on few channels", "conv2", {
            "The second convolution should see `width` channels, or the block saves nothing.": (16, 16, 3, 3),
            "The second convolution is not 3x3.": (4, 4, 1, 1),
        }),
        ("the third convolution expands the channels", "conv3", {
            "The third convolution does not expand: the output has `expansion` times `width` channels.": (4, 4, 1, 1),
            "The third convolution is not 1x1.": (16, 4, 3, 3),
        }),
    ):  # fmt: skip
        yield same(
            title,
            f"{name}.weight of Bottleneck(16, 4)",
            lambda name=name: shape_of(getattr(file.Bottleneck(16, 4), name).weight),
            wanted[f"{name}.weight"],
            causes=causes,
            hint="The table in the text has a row for each convolution: kernel, channels in, channels out.",
        )
    kinds = ((16, 4, 1), (4, 4, 1), (16, 4, 2))
    yield same(
        "when there is a projection",
        "Bottleneck(16, 4), Bottleneck(4, 4), Bottleneck(16, 4, stride=2)",
        lambda: [not isinstance(file.Bottleneck(*kind).downsample, nn.Identity) for kind in kinds],
        [False, True, True],
        causes={
            "A block can change the shape in two ways. Here the channels change, not the size.": [False, False, True],
            "A block can change the shape in two ways. Here the size changes, not the channels.": [
                False, True, False,
            ],
            "There is a projection although nothing changes the shape.": [True] * 3,
            "There is a projection only where both channels and resolution change.": [False] * 3,
        },
        hint="A projection is needed if x does not have the shape of the branch.",
    )  # fmt: skip
    yield same(
        "no other parameters",
        "names of the parameters of Bottleneck(16, 4)",
        lambda: sorted(tensor_shapes(file.Bottleneck(16, 4))),
        sorted(wanted),
        causes={
            "The convolutions have biases, which the normalizations after them subtract again.": sorted(
                [*wanted, *(f"conv{number}.bias" for number in (1, 2, 3))]
            ),

        },
        hint="Three convolutions without biases and three normalizations, each of its own.",
    )  # fmt: skip


def _bottleneck_shapes(file: Any) -> Iterator[Step]:
    yield same(
        "the resolution halves in the 3x3 convolution",
        "conv1, conv2 and conv3 of Bottleneck(16, 8, stride=2): their strides",
        lambda: [getattr(file.Bottleneck(16, 8, stride=2), f"conv{number}").stride[0] for number in (1, 2, 3)],
        [1, 2, 1],
        causes={
            "The first 1x1 convolution has the stride, as in the paper of 2015. It skips three quarters of its input; "
            "this exercise strides where all positions are seen.": [2, 1, 1],
            "No convolution has the stride.": [1, 1, 1],
            "Several convolutions have the stride. The resolution should be halved once.": [2, 2, 1],
        },
        hint="The text says which convolution has the stride.",
    )
    for in_channels, width, stride in ((16, 4, 1), (4, 4, 1), (16, 8, 2)):
        size = 4 // stride
        yield same(
            f"the shape from {in_channels} to {4 * width} channels, stride {stride}",
            f"Bottleneck({in_channels}, {width}, stride={stride}), images (2, {in_channels}, 4, 4)",
            lambda a=(in_channels, width, stride): shape_of(file.Bottleneck(*a)(torch.randn(2, a[0], 4, 4))),
            (2, 4 * width, size, size),
            errors={
                "must match": "F(x) and x have different shapes. Does the 3x3 convolution keep the size at its border? "
                "And is the projection used?"
            },
            hint=_SIZES,
        )


def _bottleneck_values(file: Any) -> Iterator[Step]:
    images = torch.randn(2, 16, 4, 4)
    made = once(lambda: randomized(file.Bottleneck(16, 8, stride=2)))

    def right() -> Tensor:
        model = block("bottleneck", in_channels=16, width=8, stride=2)
        model.load_state_dict({**model.state_dict(), **made().state_dict()})
        return model(images)

    def wrong(kind: str) -> Tensor:
        one = made()
        y = one.bn1(one.conv1(images)).relu()
        y = one.bn2(one.conv2(y))
        y = one.bn3(one.conv3(y if kind == "linear" else y.relu()))
        x = images if kind == "plain" else one.downsample(images)
        return {"early": F.relu(y.relu() + x), "late": y.relu() + x, "plain": y.relu(), "open": y + x}.get(
            kind, F.relu(y + x)
        )

    yield same(
        "the output for random weights",
        "Bottleneck(16, 8, stride=2), images (2, 16, 4, 4), random weights",
        lambda: made()(images.clone()),
        right,
        causes={
            "The branch is activated before the sum as well.": lambda: wrong("early"),
            "The shortcut is added after the last ReLU.": lambda: wrong("late"),
            "The shortcut is missing.": lambda: wrong("plain"),
            "The activation after the sum is missing.": lambda: wrong("open"),
            "The activation after the second normalization is missing.": lambda: wrong("linear"),
        },
        errors={"must match": "x is added in its old shape. What did you build the projection for?"},
        hint="Go through the four lines in the text.",
    )


def resnext_block(file: Any) -> Iterator[Step]:
    """Inner channels, groups, the projection, and values."""
    yield from _resnext_branch(file)
    yield from _resnext_shortcut(file)


def _resnext_branch(file: Any) -> Iterator[Step]:
    def conv2(*arguments: Any, **named: Any) -> Any:
        return file.ResNeXtBlock(*arguments, **named).conv2

    yield same(
        "the channels inside the branch",
        "ResNeXtBlock(8, 8, group_width=2, multiplier=0.5)",
        lambda: file.ResNeXtBlock(8, 8, group_width=2, multiplier=0.5).conv1.out_channels,
        4,
        causes={"The multiplier has no effect.": 8, "The channels are divided by the multiplier.": 16},
        errors={
            "float": "A number of channels is a whole number, and the multiplier is a fraction. The text rounds.",
            "int": "A number of channels is a whole number, and the multiplier is a fraction. The text rounds.",
        },
        hint="Insert the numbers into the first line of the formula.",
    )
    yield same(
        "the multiplier applies to the output's channels",
        "ResNeXtBlock(4, 8, group_width=2, use_1x1conv=True)",
        lambda: file.ResNeXtBlock(4, 8, group_width=2, use_1x1conv=True).conv1.out_channels,
        8,
        causes={"The input's channels are multiplied.": 4},
        hint="Insert the numbers into the first line of the formula.",
    )
    yield same(
        "each group has the width that was given",
        "conv2.weight of ResNeXtBlock(8, 8, group_width=2)",
        lambda: shape_of(conv2(8, 8, group_width=2).weight),
        (8, 2, 3, 3),
        causes={
            "group_width is used as the number of groups. How many groups of this width do the channels make?": (
                8, 4, 3, 3,
            ),
            "The convolution is not grouped: each kernel sees all channels.": (8, 8, 3, 3),
            "Every channel is a group of its own.": (8, 1, 3, 3),
            "The second convolution is not 3x3.": (8, 2, 1, 1),
        },
        hint="The second axis of the weight is the number of channels that one kernel sees.",
    )  # fmt: skip
    yield same(
        "the shape stays without strides",
        "ResNeXtBlock(8, 8, group_width=2), images (4, 8, 6, 6)",
        lambda: shape_of(file.ResNeXtBlock(8, 8, group_width=2)(torch.randn(4, 8, 6, 6))),
        (4, 8, 6, 6),
        errors={"must match": "The branch loses rows and columns at the border. What keeps the size?"},
        hint=_SIZES,
    )
    yield same(
        "the 3x3 convolution halves the resolution",
        "conv2 of ResNeXtBlock(8, 8, group_width=2, use_1x1conv=True, strides=2), images (4, 8, 6, 6)",
        lambda: shape_of(conv2(8, 8, group_width=2, use_1x1conv=True, strides=2)(torch.randn(4, 8, 6, 6))),
        (4, 8, 3, 3),
        causes={"The 3x3 convolution does not have the stride.": (4, 8, 6, 6)},
        hint="With the stride 2 and padding, 6 rows become 3.",
    )


def _resnext_shortcut(file: Any) -> Iterator[Step]:
    def made() -> Any:
        return file.ResNeXtBlock(4, 8, group_width=2, use_1x1conv=True, strides=2)

    images = torch.randn(4, 4, 6, 6)
    yield same(
        "the projection has the shape of the branch",
        "conv4 of ResNeXtBlock(4, 8, group_width=2, use_1x1conv=True, strides=2), images (4, 4, 6, 6)",
        lambda: shape_of(made().conv4(images)),
        (4, 8, 3, 3),
        causes={
            "The projection keeps the resolution, but the branch halves it.": (4, 8, 6, 6),
            "The projection does not change the channels.": (4, 4, 3, 3),
        },
        hint="The projection has to do to x what the branch does: to channels and to resolution.",
    )
    block = once(lambda: randomized(made()))

    def branch() -> Tensor:
        one = block()
        y = F.relu(one.bn2(one.conv2(F.relu(one.bn1(one.conv1(images))))))
        return one.bn3(one.conv3(y))

    yield same(
        "the output for random weights",
        "ResNeXtBlock(4, 8, group_width=2, use_1x1conv=True, strides=2), images (4, 4, 6, 6), random weights",
        lambda: block()(images.clone()),
        lambda: F.relu(branch() + block().bn4(block().conv4(images))),
        causes={
            "The projection is not normalized. What did you build bn4 for?": lambda: F.relu(
                branch() + block().conv4(images)
            ),
            "The shortcut is activated before the sum.": lambda: F.relu(
                branch() + block().bn4(block().conv4(images)).relu()
            ),
        },
        errors={"must match": "x is added in its old shape. What did you build the projection for?"},
        hint="The shortcut is the projection of x, normalized.",
    )
