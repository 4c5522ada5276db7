"""What the exercises about single layers, the loss, SGD and the drop layers check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.checking.values import gradients
from resnetlab.lessons.steps import Step, once, part, randomized, same

_SHAPES = "Compare the shapes of your values with those in the comments."
_RATE = "The fraction that is dropped is wrong. Compare your formula with the text, factor by factor."


def conv2d(file: Any) -> Iterator[Step]:
    """Output size, then one window, stride, padding, bias, and torch's layer."""
    yield from _output_sizes(file)
    yield from _windows(file)
    yield from _stride_and_padding(file)
    yield part("values, gradients and edge cases as in torch", lambda: file.conv2d, "conv2d", {}, _SHAPES)


def _output_sizes(file: Any) -> Iterator[Step]:
    one_less = "One position is missing: the kernel also fits at the start, before it has moved at all."
    for size, kernel, stride, padding in ((3, 2, 1, 0), (8, 3, 2, 0), (6, 3, 1, 2)):
        exact = (size + 2 * padding - kernel) // stride + 1
        yield same(
            f"output size {exact} for size {size}",
            f"size {size}, kernel {kernel}, stride {stride}, padding {padding}",
            lambda a=(size, kernel, stride, padding): file.output_size(*a),
            exact,
            causes={
                one_less: exact - 1,
                "Padding is on both sides of an axis. How many positions does it add in all?": (
                    (size + padding - kernel) // stride + 1
                ),
                "The output has a whole number of positions. What remains of the division is not used.": (
                    (size + 2 * padding - kernel) / stride + 1
                ),
            },
            hint="Insert the numbers of the input into the formula in the text, and compare each step.",
        )


def _windows(file: Any) -> Iterator[Step]:
    image = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    for title, weight in (("example of the text", [[1.0, 0], [0, 1]]), ("not flipped", [[1.0, 2], [3, 4]])):
        kernel = torch.tensor(weight).reshape(1, 1, 2, 2)
        yield same(
            f"one kernel: {title}",
            f"image {image.int().reshape(3, 3).tolist()}, kernel {weight}",
            lambda w=kernel: file.conv2d(image, w),
            F.conv2d(image, kernel),
            causes={
                "The kernel is flipped. Value (u, v) of the window belongs to weight (u, v).": F.conv2d(
                    image, kernel.flip(2, 3)
                )
            },
            errors={
                "": "Shapes do not fit. The value of a window has the shape (N, out_channels): which axes of window "
                "and weight belong together, and which ones are summed?"
            },
            hint="Compute the first output by hand, as the text does, and print your window for i = j = 0.",
        )
    images, weight = torch.randn(2, 2, 5, 5), torch.randn(3, 2, 3, 3)
    yield same(
        "several images, channels and kernels",
        "images (2, 2, 5, 5), 3 kernels of 3x3",
        lambda: file.conv2d(images, weight),
        F.conv2d(images, weight),
        causes={"Only some channels are summed. An output value depends on all input channels.": (
            F.conv2d(images[:, :1], weight[:, :1])
        )},
        hint="Which axes of window and weight belong together, and which ones are summed? Write their shapes down.",
    )  # fmt: skip


def _stride_and_padding(file: Any) -> Iterator[Step]:
    images, weight, bias = torch.randn(2, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)
    stuck = torch.stack(
        [(images[:, None, :, i : i + 3, j : j + 3] * weight).sum((2, 3, 4)) for i in range(2) for j in range(2)], 2
    ).reshape(2, 3, 2, 2)
    yield same(
        "stride",
        "images (2, 2, 5, 5), kernel 3, stride 2",
        lambda: file.conv2d(images, weight, stride=2),
        F.conv2d(images, weight, stride=2),
        causes={
            "The windows overlap too much: neighboring outputs look at positions that are `stride` apart. Where does "
            "the window of output (0, 1) start?": stuck
        },
        errors={
            "": "A window has another size than the kernel. Where does window (i, j) start, and where does it end?"
        },
        hint="Print where the windows start for stride 2.",
    )
    yield same(
        "padding",
        "images (2, 2, 5, 5), kernel 3, padding 1",
        lambda: file.conv2d(images, weight, padding=1),
        F.conv2d(images, weight, padding=1),
        causes={
            "Zeros are added on one side of an axis only. The image should be in the middle.": F.conv2d(
                F.pad(images, (2, 0, 2, 0)), weight
            ),
            "Zeros are added only after the image. It should be in the middle.": F.conv2d(
                F.pad(images, (0, 2, 0, 2)), weight
            ),
        },
        errors={"": "Some windows are too small. Are rows padded as well as columns, and on both sides?"},
        hint="Print the shape of the padded images: rows and columns should each grow by 2 * padding.",
    )
    yield same(
        "bias",
        "images (2, 2, 5, 5), 3 kernels, 3 biases",
        lambda: file.conv2d(images, weight, bias),
        F.conv2d(images, weight, bias),
        causes={
            "The bias is not added.": F.conv2d(images, weight),
            "The bias is added along the last axis, to columns. The channels of the output are axis 1.": (
                F.conv2d(images, weight) + bias
            ),
        },
        errors={"": "The bias has shape (out_channels,), and the output has its channels on axis 1. Which shape of the "
        "bias makes broadcasting add it along that axis?"},
        hint="There is one bias for each output channel. Along which axis of the output is it added?",
    )  # fmt: skip


def pooling(file: Any) -> Iterator[Step]:
    """Values, padding, ties, and the global mean."""
    images = torch.tensor([[1.0, 2, 0, 0], [3, 4, 0, -1]]).reshape(1, 1, 2, 4)
    yield same(
        "the example of the text",
        "image [[1, 2, 0, 0], [3, 4, 0, -1]], windows 2x2, stride 2",
        lambda: file.max_pool2d(images, 2, 2),
        F.max_pool2d(images, 2),
        causes={
            "This is the maximum of rows or of columns only. A window has two axes.": images.unfold(2, 2, 2)
            .unfold(3, 2, 2)
            .amax(-1)
        },
        hint="Print `windows` for this image: which axes hold the values of one window?",
    )
    negative = -1 - torch.arange(16.0).reshape(1, 1, 4, 4)
    yield same(
        "padding is never the maximum",
        "image of values from -1 to -16, windows 3x3, stride 2, padding 1",
        lambda: file.max_pool2d(negative, 3, 2, 1),
        F.max_pool2d(negative, 3, 2, 1),
        causes={"Padding wins against negative values. Which number is smaller than all of them?": F.max_pool2d(
            F.pad(negative, (1, 1, 1, 1)), 3, 2
        )},
        hint="Rows and columns are padded on both sides. Print `padded`.",
    )  # fmt: skip
    equal = torch.ones(1, 1, 2, 2)
    yield same(
        "one of several equal values gets the gradient",
        "image [[1, 1], [1, 1]], one window, gradient 0.5 of the output",
        lambda: gradients(lambda x: file.max_pool2d(x, 2, 2), equal),
        lambda: gradients(lambda x: F.max_pool2d(x, 2), equal),
        causes={"Equal values share the gradient. Another function of torch than amax chooses one position.": (
            lambda: gradients(lambda x: x.flatten(2).amax(-1), equal)
        )},
        hint="The gradient of a window goes to one position, and is that of the output.",
    )  # fmt: skip
    yield part("values, gradients and edge cases as in torch", lambda: file.max_pool2d, "max_pool2d", {}, _SHAPES)
    maps = torch.randn(2, 3, 4, 4)
    yield same(
        "global average pooling",
        "images (2, 3, 4, 4)",
        lambda: file.global_average_pool(maps),
        maps.mean((2, 3)),
        causes={
            "The axes of one value are still there. The linear layer expects the shape (N, C).": maps.mean(
                (2, 3), keepdim=True
            ),
            "Channels are averaged too. Each channel keeps a mean of its own.": maps.mean((1, 2, 3)),
            "This is the maximum. The text asks for the mean.": maps.amax((2, 3)),
        },
        hint="Rows and columns disappear; images and channels stay.",
    )


def batch_norm(file: Any) -> Iterator[Step]:
    """State, training mode, running statistics, evaluation mode."""
    yield same(
        "running statistics belong to the state",
        "BatchNorm(3).state_dict()",
        lambda: sorted(file.BatchNorm(3).state_dict()),
        ["bias", "running_mean", "running_var", "weight"],
        causes={
            "The running statistics are plain attributes, so they are neither saved nor moved to a device. Which "
            "method of nn.Module registers a tensor that is not trained?": ["bias", "weight"]
        },
        hint="state_dict() should contain exactly these four names.",
    )
    yield same(
        "running statistics are not trained",
        "names of BatchNorm(3).parameters()",
        lambda: sorted(name for name, _ in file.BatchNorm(3).named_parameters()),
        ["bias", "weight"],
        hint="An nn.Parameter is changed by the optimizer. Running statistics are only measured, so they are buffers.",
    )
    tiny = torch.tensor([1.0, 1, 3, 3]).reshape(2, 1, 1, 2)
    for title, given, x in (
        ("the example of the text", "values [1, 1, 3, 3] of one channel, training mode", tiny),
        ("several channels", "images (4, 3, 2, 2), training mode", torch.randn(4, 3, 2, 2) * 2 + 1),
    ):
        yield same(
            title,
            given,
            lambda x=x: file.BatchNorm(x.shape[1])(x),
            F.batch_norm(x, None, None, training=True),
            causes={
                "The variance is divided by one less than the number of values. Look up the default of torch.var, and "
                "which variance the text asks for.": (
                    (x - _mean(x)) / (x.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()
                ),
                "The values are divided by the variance. Which power of it has the unit of x?": (
                    (x - _mean(x)) / (_var(x) + 1e-5)
                ),
                "Each image is normalized on its own. Statistics of a channel run over all images of the batch.": (
                    F.instance_norm(x) if x.shape[-2] > 1 else torch.zeros(0)
                ),
                "The running statistics are used in training, where those of the batch belong.": x,
            },
            errors={"": "Shapes do not fit. Statistics have shape (C,), and channels are axis 1 of the images."},
            hint="Statistics run over three of the four axes. Print the mean for this input.",
        )  # fmt: skip
    yield from _modes(file)


def _modes(file: Any) -> Iterator[Step]:
    images = torch.randn(4, 3, 4, 4) + 2
    mean, layer = _mean(images).flatten(), once(lambda: randomized(file.BatchNorm(3)))
    yield same(
        "the running mean after one batch",
        "images (4, 3, 4, 4) with mean near 2, momentum 0.1, one forward pass in training mode",
        lambda: _trained(file, images).running_mean,
        0.1 * mean,
        causes={
            "Old and new have changed places. With momentum 0.1, how much of the old value remains?": 0.9 * mean,
            "The running mean does not change. Where is the result of the update stored?": torch.zeros(3),
            "The running mean is replaced by the last batch. It should remember earlier ones.": mean,
        },
        hint="After one step from 0, the running mean is 0.1 times the mean of the batch.",
    )
    yield same(
        "evaluation mode",
        "one image of (4, 3, 4, 4), alone, after one forward pass in training mode and model.eval()",
        lambda: _trained(file, images).eval()(images[:1]),
        lambda: _evaluated(_trained(file, images), images[:1]),
        causes={"Evaluation mode uses the statistics of this batch. An image would get another answer next to other "
                "images.": lambda: F.batch_norm(images[:1], None, None, training=True)},
        hint="Which statistics does the layer keep for this?",
    )  # fmt: skip
    yield same(
        "scale and shift",
        "images (4, 3, 4, 4), random weight and bias",
        lambda: layer()(images),
        lambda: F.batch_norm(images, None, None, layer().weight, layer().bias, training=True),
        causes={
            "The scale, `weight`, has no effect.": lambda: F.batch_norm(
                images, None, None, None, layer().bias, training=True
            ),
            "The shift, `bias`, has no effect.": lambda: F.batch_norm(
                images, None, None, layer().weight, None, training=True
            ),
        },
        hint="After normalizing come weight and bias, one of each for every channel.",
    )  # fmt: skip
    yield part("gradients and running statistics as in torch", lambda: file.BatchNorm, "batch_norm", {
        "outside the root": "eps is added to the standard deviation. The formula adds it inside the root.",
        "no gradient": "Part of the gradient is missing: mean and variance depend on x, too. Which line hides that "
        "from torch?",
        "running variance": "The running variance starts at 1 and moves towards that of the batch. Compare both lines "
        "of your update.",
        "evaluation": "In evaluation mode, the answer should not depend on the batch.",
    }, "Compare with the formula in the text.")  # fmt: skip


def _mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


def _var(x: Tensor) -> Tensor:
    return x.var((0, 2, 3), unbiased=False, keepdim=True)


def _trained(file: Any, images: Tensor) -> Any:
    layer = file.BatchNorm(images.shape[1])
    layer(images)
    return layer


def _evaluated(layer: Any, images: Tensor) -> Tensor:
    return F.batch_norm(images, layer.running_mean.clone(), layer.running_var.clone())


def cross_entropy(file: Any) -> Iterator[Step]:
    """Probabilities, then the loss, then both for large logits."""
    axis = "Each row should sum to 1: classes are axis 1. Which axis does your sum run over?"
    overflow = "exp of a large number is infinite. Which number can you subtract from all logits of an image?"
    for title, logits in (
        ("the example of the text", [[0.0, 1.0]]),
        ("each image has its own sum", [[0.0, 1, 2], [2, 2, 0]]),
    ):
        x = torch.tensor(logits)
        yield same(
            f"softmax: {title}",
            f"logits {logits}",
            lambda x=x: file.softmax(x),
            x.softmax(1),
            causes={
                axis: x.softmax(0),
                "All images share one sum. Each image has its own.": x.flatten().softmax(0).reshape(x.shape),
                "These numbers are not probabilities yet: what makes a row sum to 1?": (
                    x - x.amax(1, keepdim=True)
                ).exp(),
                "These are logarithms of probabilities.": x.log_softmax(1),
            },
            errors={"": "Shapes do not fit. `keepdim=True` keeps an axis of length 1 that broadcasting can use."},
            hint="Compute the probabilities of the first image by hand.",
        )
    large = torch.tensor([[1000.0, 0.0]])
    yield same(
        "softmax: large logits",
        "logits [[1000, 0]]",
        lambda: file.softmax(large),
        large.softmax(1),
        hint=overflow,
    )
    mixed = torch.tensor([[0.0, -1000.0], [1000.0, 1000.0]])
    yield same(
        "softmax: each image has its own largest logit",
        "logits [[0, -1000], [1000, 1000]]",
        lambda: file.softmax(mixed),
        mixed.softmax(1),
        hint="The largest logit of the batch is subtracted from all images. An image whose logits are much smaller "
        "becomes 0 / 0.",
    )
    for title, logits, labels in (
        ("the example of the text", [[0.0, 1.0]], [0]),
        ("the mean over images", [[0.0, 1, 2], [2, 2, 0], [0, 1, 0]], [0, 2, 1]),
    ):
        x, y = torch.tensor(logits), torch.tensor(labels)
        each = F.cross_entropy(x, y, reduction="none")
        yield same(
            f"loss: {title}",
            f"logits {logits}, labels {labels}",
            lambda x=x, y=y: file.cross_entropy(x, y),
            each.mean(),
            causes={
                "The losses of the images are added. The loss of a batch is their mean, whatever its size.": each.sum(),
                "There is one loss for each image. A batch has a single one.": each,
                "The sign is wrong. A probability is at most 1, so what is the sign of its logarithm?": -each.mean(),
                "The mean runs over the classes too. Only the right class of each image counts.": each.mean()
                / x.shape[1],
                "The mean runs over all classes instead of the right ones. How do you pick one value of each row?": (
                    -x.log_softmax(1).mean()
                ),
                "These are not logarithms of probabilities: something is missing after the subtraction.": (
                    -(x - x.amax(1, keepdim=True))[range(len(y)), y].mean()
                ),
            },
            errors={"": "Shapes do not fit. To pick one value of each row you need the row's number and its label."},
            hint="Compute the loss of the first image by hand.",
        )
    wrong, label = torch.tensor([[1000.0, 0.0]]), torch.tensor([1])
    yield same(
        "loss: large logits",
        "logits [[1000, 0]], label 1",
        lambda: file.cross_entropy(wrong, label),
        F.cross_entropy(wrong, label),
        hint="The probability of the right class is rounded to 0 here, and log(0) is infinite. Compute the logarithms "
        "without computing probabilities first.",
    )
    yield part("softmax as in torch, with gradients", lambda: file.softmax, "softmax", {}, overflow)
    yield part("loss as in torch, with gradients", lambda: file.cross_entropy, "cross_entropy", {}, overflow)


def sgd(file: Any) -> Iterator[Step]:
    """One step, several steps, momentum, weight decay, clearing."""

    def run(steps: int, grad: float | None = 2.0, **fields: float) -> list[float]:
        return _steps(file, steps, grad, fields)

    yield same(
        "one step",
        "w = 1, gradient 2, lr 0.1",
        lambda: run(1),
        [0.8],
        causes={
            "The parameter did not change. `w = ...` gives a name to a new tensor: which operations change the tensor "
            "itself? And is `params` still full, if it can be read only once?": [1.0],
            "The step goes up the hill: the loss would grow.": [1.2],
            "The gradient alone is subtracted. The learning rate is missing.": [-1.0],
        },
        hint="Compute the step by hand.",
    )
    yield same(
        "two steps",
        "w = 1, gradient 2 in both steps, lr 0.1",
        lambda: run(2),
        [0.8, 0.6],
        causes={
            "Only the first step changes anything. `params` is an iterator: it can be read only once.": [0.8, 0.8],
            "Without momentum, v should be the gradient. Something of the first step is added in the second.": [
                0.8,
                0.4,
            ],
        },
        hint="Compute both steps by hand.",
    )
    yield same(
        "momentum",
        "w = 1, gradient 2 in both steps, lr 0.1, momentum 0.9",
        lambda: run(2, momentum=0.9),
        [0.8, 0.42],
        causes={
            "Momentum has no effect. Is v kept from one step to the next?": [0.8, 0.6],
            "The gradient is multiplied by 1 - momentum. The text adds it whole.": [0.98, 0.942],
            "The step looks ahead (Nesterov's momentum). The text subtracts lr * v.": [0.62, 0.078],
            "v is added to itself whole. How much of the old v remains?": [0.8, 0.4],
        },
        hint="Compute v and w by hand for both steps, as the text does.",
    )
    yield same(
        "weight decay",
        "w = 1, gradient 2, lr 0.1, weight decay 0.5",
        lambda: run(1, weight_decay=0.5),
        [0.75],
        causes={
            "Weight decay has no effect.": [0.8],
            "Weight decay pushes w away from 0. It should pull it towards 0.": [0.85],
            "Weight decay is not multiplied by the learning rate. In the text it is part of g.": [0.3],
        },
        hint="Weight decay is added to the gradient, before anything else.",
    )
    yield same(
        "weight decay and momentum together",
        "w = 1, gradient 2 in both steps, lr 0.1, momentum 0.9, weight decay 0.5",
        lambda: run(2, momentum=0.9, weight_decay=0.5),
        [0.75, 0.2875],
        hint="Is weight decay part of g, so that momentum collects it too?",
    )
    yield same(
        "parameters without a gradient stay",
        "w = 1, gradient None",
        lambda: run(1, None, momentum=0.9, weight_decay=0.5),
        [1.0],
        hint="A parameter that was not used has the gradient None. Skip it.",
    )
    yield same("clearing", "gradient 2, then zero_grad()", lambda: _cleared(file), 0.0, causes={
        "The gradient is still there. Which assignment clears w.grad itself?": 2.0,
    }, hint="After zero_grad(), the gradient is None or 0.")  # fmt: skip
    yield part("three steps as in torch", lambda: file.SGD, "sgd", {}, "Compute the steps by hand, as the text does.")


def _steps(file: Any, steps: int, grad: float | None, fields: Mapping[str, float]) -> list[float]:
    """Returns a parameter, which starts at 1, after each of some steps with the same gradient."""
    w, values = nn.Parameter(torch.ones(1)), []
    optimizer = file.SGD(iter([w]), lr=0.1, **fields)
    for _ in range(steps):
        w.grad = None if grad is None else torch.full_like(w, grad)
        optimizer.step()
        values.append(round(float(w.detach()), 6))
    return values


def _cleared(file: Any) -> float:
    """Returns the gradient after zero_grad."""
    w = nn.Parameter(torch.ones(1))
    optimizer = file.SGD([w], lr=0.1)
    w.grad = torch.full_like(w, 2.0)
    optimizer.zero_grad()
    return 0.0 if w.grad is None else float(w.grad)


_DROP_HINTS = {
    "single values": "Single values are dropped. One draw decides for a whole sample: which shape has the mask?",
    "for each sample": "All samples share one draw. How many draws does a batch of N samples need?",
    "probability to keep": "The rate is taken as the probability to keep. Rate 0 should drop nothing.",
    "rescaled": "Training and evaluation disagree in the mean: with keep = 0.75, only 75 % of the sum arrive. What "
    "makes up for it?",
    "evaluation": "Evaluation mode should be the identity. Which attribute of a module tells its mode?",
    "measured rate": _RATE,
}


def drop_path(file: Any) -> Iterator[Step]:
    """Evaluation, rate 0, the draw, its rate and scale, and the block."""
    yield same(
        "evaluation mode changes nothing",
        "ones (8, 1, 1, 1), rate 0.5, evaluation mode",
        lambda: file.DropPath(0.5).eval()(torch.ones(8, 1, 1, 1)),
        torch.ones(8, 1, 1, 1),
        hint=_DROP_HINTS["evaluation"],
    )
    yield same(
        "rate 0 changes nothing",
        "ones (8, 1, 1, 1), rate 0, training mode",
        lambda: file.DropPath(0.0)(torch.ones(8, 1, 1, 1)),
        torch.ones(8, 1, 1, 1),
        hint=_DROP_HINTS["probability to keep"],
    )
    yield part("each sample is dropped at the rate, and the mean is kept", lambda: file.DropPath, "drop_path",
               _DROP_HINTS, "Print the mask and its shape.")  # fmt: skip

    def block(factor: float) -> Any:
        made = randomized(file.Block(2, 0.1))
        made.drop_path = _Times(factor)
        return made

    images, doubled = torch.randn(3, 2, 4, 4), once(lambda: block(2.0))
    yield same(
        "a dropped branch leaves the shortcut",
        "images (3, 2, 4, 4), a branch that is dropped for all samples",
        lambda: block(0.0)(images),
        images.relu(),
        causes={
            "The shortcut is dropped as well. Only the branch is.": torch.zeros_like(images),
            "The activation after the sum is missing.": images,
        },
        hint="If the branch is 0, the block should be relu(x).",
    )
    yield same(
        "a kept branch is added before the activation",
        "images (3, 2, 4, 4), a branch that is kept and multiplied by 2",
        lambda: doubled()(images),
        lambda: (2 * _branch(doubled(), images) + images).relu(),
        hint="Drop the branch, then add x, then activate: in which order does your line work?",
    )


class _Times(nn.Module):
    """A drop layer without chance: it multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _branch(block: Any, x: Tensor) -> Tensor:
    return block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))


def drop_block(file: Any) -> Iterator[Step]:
    """The probability, the mask, the scale, and the block."""
    for height, width, rate, size in ((3, 3, 0.1, 1), (5, 5, 0.1, 3), (6, 9, 0.2, 3)):
        area = height * width / ((height - size + 1) * (width - size + 1))
        gamma = rate / size**2 * area
        yield same(
            f"gamma for a map of {height}x{width} and size {size}",
            f"rate {rate}, size {size}, map {height}x{width}",
            lambda a=(rate, size), m=(height, width): torch.tensor(float(file.DropBlock(*a).gamma(*m))),
            torch.tensor(gamma),
            causes={
                "The last factor is missing: squares fit at fewer places than there are positions.": torch.tensor(
                    rate / size**2
                ),
                "A square covers more than `size` positions.": torch.tensor(rate / size * area),
                "The rate itself is not the probability of a square, which covers many positions.": torch.tensor(rate),
                "The last factor is upside down: fewer places need a higher probability.": torch.tensor(
                    rate / size**2 / area
                ),
            },
            hint=_RATE,
        )
    yield same(
        "the shape stays",
        "ones (2, 3, 8, 6), rate 0.2, size 3",
        lambda: tuple(file.DropBlock(0.2, 3)(torch.ones(2, 3, 8, 6)).shape),
        (2, 3, 8, 6),
        errors={"": "Shapes do not fit. At how many rows and columns does a square of `size` fit?"},
        hint="At how many rows and columns does a square of `size` fit?",
    )
    yield part("squares for each channel, at the rate, and the mean is kept", lambda: file.DropBlock, "drop_block", {
        "one mask": "All channels lose the same squares. How many draws are needed for N samples of C channels?",
        "rescaled": _DROP_HINTS["rescaled"],
        "whole blocks": "Some dropped regions are not whole squares. At which places does a square fit?",
        "evaluation": _DROP_HINTS["evaluation"],
        "measured rate": _RATE,
    }, "Print a small mask.")  # fmt: skip

    def block(factor: float) -> Any:
        made = randomized(file.Block(2, 0.1, 3))
        made.drop_block = _Times(factor)
        return made

    images, doubled = torch.randn(3, 2, 4, 4), once(lambda: block(2.0))
    yield same(
        "branch and shortcut are dropped",
        "images (3, 2, 4, 4), a drop layer that drops everything",
        lambda: block(0.0)(images),
        torch.zeros_like(images),
        causes={"The shortcut is not dropped. The paper drops squares of both.": images.relu()},
        hint="Both terms of the sum go through the drop layer. What drops the branch here?",
    )
    yield same(
        "the draws are separate",
        "images (3, 2, 4, 4); calls of the drop layer",
        lambda: _calls(block(1.0), images),
        2,
        causes={"The sum is dropped with one draw. Branch and shortcut have draws of their own.": 1},
        hint="How often is the drop layer called?",
    )
    yield same(
        "the sum is activated",
        "images (3, 2, 4, 4), a drop layer that multiplies by 2",
        lambda: doubled()(images),
        lambda: (2 * _branch(doubled(), images) + 2 * images).relu(),
        hint="Drop both, then add, then activate: in which order does your line work?",
    )


def _calls(block: Any, images: Tensor) -> int:
    calls = []
    block.drop_block.register_forward_hook(lambda *_: calls.append(1))
    block(images)
    return len(calls)
