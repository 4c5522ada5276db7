"""Right and typical wrong answers to the exercises: what to put in place of each `...` of a file, in order."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from resnetlab.lessons.exercise import ellipses, get_exercise

RESIDUAL_STAGES = (
    "stem(in_channels), stage(64, 64, 2, is_first=True), stage(64, 128, 2), stage(128, 256, 2), stage(256, 512, 2)"
)
STEM = (
    "nn.Conv2d(in_channels, 64, 7, stride=2, padding=3), nn.BatchNorm2d(64), nn.ReLU(), "
    "nn.MaxPool2d(3, stride=2, padding=1)"
)
HEAD = "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)"
CONV = "nn.Conv2d(channels, channels, 3, padding=1)"
SGD_STEP = """with torch.no_grad():
    for w, v in zip(self.params, self.velocities):
        if w.grad is None:
            continue
        g = w.grad + self.weight_decay * w
        v.mul_(self.momentum).add_(g)
        w -= self.lr * v"""

SOLUTIONS: dict[str, list[str]] = {
    "conv2d": [
        "(size + 2 * padding - kernel) // stride + 1",
        "F.pad(images, (padding, padding, padding, padding))",
        "padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]",
        'torch.einsum("nchw,ochw->no", window, weight)',
        "output + bias[:, None, None]",
    ],
    "pooling": [
        'F.pad(images, (padding, padding, padding, padding), value=float("-inf"))',
        "windows.flatten(4).max(dim=-1).values",
        "images.mean(dim=(2, 3))",
    ],
    "batch_norm": [
        'self.register_buffer("running_mean", torch.zeros(num_features))\n'
        'self.register_buffer("running_var", torch.ones(num_features))',
        "x.mean(dim=(0, 2, 3))",
        "x.var(dim=(0, 2, 3), unbiased=False)",
        "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)\n"
        "self.running_var.mul_(1 - self.momentum).add_(self.momentum * var)",
        "self.running_mean",
        "self.running_var",
        "(x - mean[:, None, None]) / (var + self.eps).sqrt()[:, None, None] * self.weight[:, None, None] "
        "+ self.bias[:, None, None]",
    ],
    "cross_entropy": [
        "logits - logits.amax(dim=1, keepdim=True)",
        "shifted.exp() / shifted.exp().sum(dim=1, keepdim=True)",
        "logits - logits.amax(dim=1, keepdim=True)",
        "shifted - shifted.exp().sum(dim=1, keepdim=True).log()",
        "log_probabilities[torch.arange(len(labels)), labels]",
        "-picked.mean()",
    ],
    "sgd": ["list(params)", "[torch.zeros_like(w) for w in self.params]", "w.grad = None", SGD_STEP],
    "drop_path": [
        "not self.training or self.rate == 0",
        "(torch.rand(len(x), 1, 1, 1) < keep).to(x.dtype)",
        "x * mask / keep",
        "F.relu(x + self.drop_path(branch))",
    ],
    "drop_block": [
        "self.rate / self.block_size**2 * height * width "
        "/ ((height - self.block_size + 1) * (width - self.block_size + 1))",
        "n, channels, height - size + 1, width - size + 1",
        "x * mask * mask.numel() / mask.sum()",
        "F.relu(self.drop_block(branch) + self.drop_block(x))",
    ],
    "residual_layers": ["super().__init__()", CONV, CONV, "nn.BatchNorm2d(channels)", "nn.BatchNorm2d(channels)"],
    "residual_forward": ["F.relu(self.bn1(self.conv1(x)))", "self.bn2(self.conv2(y))", "F.relu(y + x)"],
    "residual_projection": [
        "nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=strides)",
        "nn.Conv2d(out_channels, out_channels, 3, padding=1)",
        "nn.Conv2d(in_channels, out_channels, 1, stride=strides)",
        "x = self.conv3(x)",
    ],
    "residual_stage": [
        "number == 0 and not is_first",
        "Residual(in_channels, out_channels, use_1x1conv=True, strides=2)",
        "Residual(out_channels, out_channels)",
        "nn.Sequential(*blocks)",
    ],
    "residual_network": [STEM, HEAD, f"{RESIDUAL_STAGES}, head(512, num_classes)"],
    "layer_trace": [
        "network.eval()", "x = layer(x)", "type(layer).__name__", "tuple(x.shape)", "network.train(was_training)",
    ],
    "shortcut_a": [
        "x[:, :, ::stride, ::stride]",
        "(out_channels - x.shape[1]) // 2",
        "out_channels - x.shape[1] - before",
        "F.pad(smaller, (0, 0, 0, 0, before, after))",
        "F.relu(y + shortcut_a(x, self.out_channels, self.stride))",
    ],
    "bottleneck": [
        "nn.Conv2d(in_channels, width, 1, bias=False)",
        "nn.BatchNorm2d(width)",
        "nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)",
        "nn.BatchNorm2d(width)",
        "nn.Conv2d(width, out_channels, 1, bias=False)",
        "nn.BatchNorm2d(out_channels)",
        "stride != 1 or in_channels != out_channels",
        "F.relu(self.bn1(self.conv1(x)))",
        "F.relu(self.bn2(self.conv2(y)))",
        "self.bn3(self.conv3(y))",
        "F.relu(y + self.downsample(x))",
    ],
    "resnext_block": [
        "round(out_channels * multiplier)",
        "nn.Conv2d(inner, inner, 3, stride=strides, padding=1, groups=inner // group_width)",
        "nn.Conv2d(in_channels, out_channels, 1, stride=strides)",
        "nn.BatchNorm2d(out_channels)",
        "self.bn4(self.conv4(x))",
    ],
    "table1": [
        '("basic", (3, 4, 6, 3))',
        '("bottleneck", (3, 4, 6, 3))',
        '("bottleneck", (3, 4, 23, 3))',
        '("bottleneck", (3, 8, 36, 3))',
        "2 + CONVOLUTIONS[kind] * sum(depths)",
        '2048 if kind == "bottleneck" else 512',
    ],
}  # fmt: skip
"""For each exercise what stands for its `...`, in order."""

OTHERS: dict[str, list[dict[int, str]]] = {
    "conv2d": [
        {3: "(window[:, None] * weight).sum(dim=(2, 3, 4))"},
        {1: "F.pad(images, 4 * [padding])", 3: "window.flatten(1) @ weight.flatten(1).T"},
        {4: "output + bias.reshape(1, -1, 1, 1)"},
    ],
    "pooling": [
        {0: "F.pad(images, (padding,) * 4, value=-torch.inf)", 1: "windows.flatten(4).max(-1)[0]"},
        {2: "images.flatten(2).mean(-1)"},
    ],
    "batch_norm": [
        {3: "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean\n"
            "count = x.numel() / x.shape[1]\n"
            "self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var * count / (count - 1)"},
        {1: "x.mean((0, 2, 3))", 2: "((x - mean[:, None, None]) ** 2).mean((0, 2, 3))"},
    ],
    "cross_entropy": [
        {0: "logits - logits.max(dim=1, keepdim=True).values", 4: "log_probabilities.gather(1, labels[:, None])[:, 0]"},
        {3: "shifted - torch.logsumexp(shifted, dim=1, keepdim=True)", 5: "-picked.sum() / len(labels)"},
    ],
    "sgd": [
        {2: "if w.grad is not None:\n    w.grad.zero_()"},
        {3: "for number, w in enumerate(self.params):\n"
            "    if w.grad is not None:\n"
            "        g = w.grad + self.weight_decay * w.data\n"
            "        self.velocities[number] = self.momentum * self.velocities[number] + g\n"
            "        w.data = w.data - self.lr * self.velocities[number]"},
    ],
    "drop_path": [
        {1: "torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), keep))"},
        {1: "x.new_empty(len(x), 1, 1, 1).bernoulli_(keep)", 3: "F.relu(self.drop_path(branch) + x)"},
    ],
    "residual_layers": [{0: "super(Residual, self).__init__()", 1: 'nn.Conv2d(channels, channels, 3, padding="same")'}],
    "residual_forward": [{1: "self.bn2(self.conv2(y))", 2: "y.add_(x).relu_()"}],
    "residual_stage": [{0: "number == 0 and is_first is False", 3: "nn.Sequential(*(block for block in blocks))"}],
    "residual_network": [
        {0: STEM.replace("nn.ReLU()", "nn.ReLU(inplace=True)"), 1: HEAD.replace("Pool2d(1)", "Pool2d((1, 1))")},
    ],
    "layer_trace": [{2: "layer.__class__.__name__", 3: "x.shape", 4: "if was_training:\n    network.train()"}],
    "shortcut_a": [{0: "x[..., ::stride, ::stride]", 4: "(y + shortcut_a(x, self.out_channels, self.stride)).relu()"}],
    "bottleneck": [{6: "(in_channels, 1) != (out_channels, stride)"}],
    "resnext_block": [{0: "int(round(out_channels * multiplier))"}],
    "table1": [{0: '["basic", [3, 4, 6, 3]]', 5: "512 * (4 if kind == 'bottleneck' else 1)"}],
}  # fmt: skip
"""Other right answers, by the number of the `...` that they stand for."""

WRONG: dict[str, list[tuple[dict[int, str], str]]] = {
    "conv2d": [
        ({0: "(size + 2 * padding - kernel) // stride"}, "One position is missing"),
        ({0: "(size + padding - kernel) // stride + 1"}, "both sides of an axis"),
        ({1: "F.pad(images, (2 * padding, 0, 2 * padding, 0))"}, "on one side"),
        ({1: "F.pad(images, (padding, padding))"}, "rows padded"),
        ({2: "padded[:, :, i : i + kernel, j : j + kernel]"}, "overlap"),
        ({3: 'torch.einsum("nchw,ochw->no", window, weight.flip(2, 3))'}, "flipped"),
        ({3: "(window * weight).sum()"}, "belong together"),
        ({4: "output"}, "not added"),
        ({4: "output + bias"}, "axis 1"),
    ],
    "pooling": [
        ({0: "F.pad(images, (padding, padding, padding, padding))"}, "smaller than all"),
        ({1: "windows.amax(dim=(-2, -1))"}, "share the gradient"),
        ({1: "windows.max(dim=-1).values"}, "rows or of columns"),
        ({2: "images.mean(dim=(2, 3), keepdim=True)"}, "(N, C)"),
        ({2: "images.mean(dim=(1, 2, 3))"}, "Channels are averaged"),
        ({2: "images.amax(dim=(2, 3))"}, "asks for the mean"),
    ],
    "batch_norm": [
        ({0: "self.running_mean = torch.zeros(num_features)\n"
             "self.running_var = torch.ones(num_features)"}, "attributes"),
        ({0: "self.running_mean = nn.Parameter(torch.zeros(num_features))\n"
             "self.running_var = nn.Parameter(torch.ones(num_features))"}, "buffers"),
        ({2: "x.var(dim=(0, 2, 3))"}, "one less"),
        ({1: "x.mean(dim=(2, 3))", 2: "x.var(dim=(2, 3), unbiased=False)"}, "shape (C,)"),
        ({3: "self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)\n"
             "self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var)"}, "changed places"),
        ({3: "pass"}, "does not change"),
        ({1: "x.mean((0, 2, 3), keepdim=True)", 2: "x.var((0, 2, 3), unbiased=False, keepdim=True)",
          3: "self.running_mean = 0.9 * self.running_mean + 0.1 * mean",
          6: "(x - mean) / (var + self.eps).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]"},
         "shapes differ"),
        ({4: "x.mean(dim=(0, 2, 3))", 5: "x.var(dim=(0, 2, 3), unbiased=False)"}, "Evaluation mode uses"),
        ({6: "(x - mean[:, None, None]) / (var.sqrt() + self.eps)[:, None, None] * self.weight[:, None, None] "
             "+ self.bias[:, None, None]"}, "inside the root"),
        ({6: "(x - mean[:, None, None]) / (var + self.eps).sqrt()[:, None, None]"}, "weight and bias"),
        ({6: "(x - mean) / (var + self.eps).sqrt() * self.weight + self.bias"}, "axis 1"),
        ({1: "x.detach().mean(dim=(0, 2, 3))"}, "hides"),
    ],
    "cross_entropy": [
        ({0: "logits", 1: "shifted.exp() / shifted.exp().sum(dim=1, keepdim=True)"}, "infinite"),
        ({0: "logits - logits.max()"}, "0 / 0"),
        ({1: "shifted.exp() / shifted.exp().sum(dim=0, keepdim=True)"}, "axis 1"),
        ({1: "shifted.exp()"}, "sum to 1"),
        ({0: "logits - logits.max(dim=1, keepdim=True)"}, "two tensors"),
        ({1: "shifted.exp() / shifted.exp().sum(dim=1)"}, "keepdim"),
        ({3: "softmax(logits).log()"}, "rounded to 0"),
        ({3: "shifted"}, "after the subtraction"),
        ({5: "-picked.sum()"}, "whatever its size"),
        ({5: "picked.mean()"}, "sign"),
        ({5: "-picked"}, "single one"),
        ({5: "-log_probabilities.mean()"}, "instead of the right ones"),
    ],
    "sgd": [
        ({0: "params", 1: "[torch.zeros(1)]"}, "read only once"),
        ({3: SGD_STEP.replace("w -= self.lr * v", "w = w - self.lr * v")}, "the tensor itself"),
        ({3: SGD_STEP.replace("with torch.no_grad():", "if True:")}, "not record"),
        ({3: SGD_STEP.replace("w -=", "w +=")}, "up the hill"),
        ({3: SGD_STEP.replace("+ self.weight_decay * w", "- self.weight_decay * w")}, "away from 0"),
        ({3: SGD_STEP.replace(" + self.weight_decay * w", "")}, "no effect"),
        ({3: SGD_STEP.replace(".add_(g)", ".add_(g * (1 - self.momentum))")}, "1 - momentum"),
        ({3: SGD_STEP.replace("v.mul_(self.momentum).add_(g)", "v = self.momentum * v + g")}, "kept from one step"),
        ({2: "w.grad * 0"}, "still there"),
        ({2: "pass"}, "still there"),
    ],
    "drop_path": [
        ({0: "self.rate == 0"}, "its mode"),
        ({1: "(torch.rand(1, 1, 1, 1) < keep).to(x.dtype)"}, "share one draw"),
        ({1: "(torch.rand_like(x) < keep).to(x.dtype)"}, "whole sample"),
        ({1: "(torch.rand(len(x), 1, 1, 1) < self.rate).to(x.dtype)"}, "probability to keep"),
        ({2: "x * mask"}, "75 %"),
        ({3: "F.relu(self.drop_path(x + branch))"}, "dropped as well"),
        ({3: "x + self.drop_path(branch)"}, "after the sum is missing"),
        ({3: "x + self.drop_path(F.relu(branch))"}, "after the sum is missing"),
    ],
    "drop_block": [
        ({0: "self.rate / self.block_size**2"}, "last factor is missing"),
        ({0: "self.rate"}, "covers many positions"),
        ({1: "n, 1, height - size + 1, width - size + 1"}, "same squares"),
        ({1: "n, channels, height, width"}, "does a square of"),
        ({2: "x * mask"}, "up for it"),
        ({3: "F.relu(self.drop_block(branch) + x)"}, "squares of both"),
        ({3: "F.relu(self.drop_block(branch + x))"}, "one draw"),
    ],
    "residual_layers": [
        ({0: "pass"}, "prepared"),
        ({1: "nn.Conv2d(channels, channels, 3)"}, "keeps the size"),
        ({2: "nn.Conv2d(channels, channels, 3)"}, "at the border"),
        ({4: "self.bn1"}, "mix two"),
        ({2: "self.conv1"}, "weights of their own"),
        ({1: "nn.Conv2d(channels, channels, 3, padding=1, bias=False)",
          2: "nn.Conv2d(channels, channels, 3, padding=1, bias=False)"}, "no bias"),
        ({1: "nn.Conv2d(channels, channels, 1)"}, "3x3"),
    ],
    "residual_forward": [
        ({0: "self.bn1(self.conv1(x))"}, "one linear map"),
        ({1: "F.relu(self.bn2(self.conv2(y)))"}, "one ReLU in"),
        ({1: "F.relu(self.bn2(self.conv2(y)))", 2: "y + x"}, "activated"),
        ({1: "self.bn1(self.conv2(y))"}, "used twice"),
        ({0: "self.bn1(F.relu(self.conv1(x)))"}, "comes before"),
        ({1: "self.bn2(self.conv2(x))"}, "from x again"),
        ({1: "self.conv2(y)"}, "not normalized"),
        ({2: "F.relu(y)"}, "residual?"),
        ({2: "F.relu(x.add_(y))"}, "in place"),
            ],
    "residual_projection": [
        ({1: "nn.Conv2d(out_channels, out_channels, 3, padding=1, stride=strides)"}, "a quarter"),
        ({0: "nn.Conv2d(in_channels, out_channels, 3, padding=1)"}, "No convolution"),
        ({1: "nn.Conv2d(in_channels, out_channels, 3, padding=1)"}, "continues with"),
        ({2: "nn.Conv2d(in_channels, out_channels, 1)"}, "keeps the resolution"),
        ({2: "nn.Conv2d(in_channels, out_channels, 1, stride=strides, padding=1)"}, "is padded"),
        ({2: "nn.Conv2d(in_channels, out_channels, 3, stride=strides, padding=1)"}, "3x3 positions"),
        ({3: "pass"}, "build conv3 for"),
        ({3: "y = self.conv3(x)"}, "build conv3 for"),
    ],
    "residual_stage": [
        ({2: "Residual(out_channels, out_channels, use_1x1conv=True, strides=2)"}, "Every block halves"),
        ({0: "number == 0"}, "is the first one?"),
        ({1: "Residual(in_channels, out_channels, use_1x1conv=True)"}, "resolution stays"),
        ({2: "Residual(in_channels, out_channels)"}, "do the others receive"),
        ({2: "Residual(out_channels, out_channels, use_1x1conv=True)"}, "unchanged"),
        ({3: "nn.Sequential(blocks)"}, "separate arguments"),
        ({3: "blocks"}, "list"),
        ({2: "blocks[-1] if len(blocks) > 1 else Residual(out_channels, out_channels)"}, "new one"),
    ],
    "residual_network": [
        ({0: STEM.replace(", padding=1", "")}, "15 rows"),
        ({0: STEM.replace(", padding=3", "")}, "half of its window"),
        ({0: STEM.replace(" nn.BatchNorm2d(64), nn.ReLU(),", "")}, "are missing"),
        ({0: STEM.replace(" nn.ReLU(),", "")}, "no activation"),
        ({1: HEAD.replace(" nn.Flatten(),", "")}, "follows the pooling"),
        ({1: HEAD + ", nn.Softmax(dim=1)"}, "probabilities"),
        ({2: RESIDUAL_STAGES.replace(", is_first=True", "") + ", head(512, num_classes)"}, "against that"),
        ({2: RESIDUAL_STAGES.replace(", 2,", ", 1,").replace(", 2)", ", 1)") + ", head(512, num_classes)"},
         "two in every"),
        ({2: RESIDUAL_STAGES + ", head(512, 10)"}, "classes is fixed"),
        ({2: RESIDUAL_STAGES}, "head is missing"),
    ],
    "layer_trace": [
        ({0: "pass"}, "batch of zeros"),
        ({1: "layer(x)"}, "or the first batch"),
        ({1: "y = layer(torch.zeros(shape))"}, "or the first batch"),
        ({1: "before = x\nx = layer(x)", 3: "tuple(before.shape)"}, "of the inputs"),
        ({2: "str(layer)"}, "whole layer"),
        ({2: "type(layer)"}, "not their names"),
        ({4: "pass"}, "stays in evaluation"),
        ({4: "network.train()"}, "always"),
        ({4: "network.training = was_training"}, "reaches all"),
    ],
    "shortcut_a": [
        ({0: "F.avg_pool2d(x, stride)"}, "averaged"),
        ({0: "x"}, "not reduced"),
        ({1: "0"}, "after the old"),
        ({1: "(out_channels - x.shape[1] + 1) // 2"}, "larger part"),
        ({3: "F.pad(smaller, (before, after))"}, "begins with the last"),
        ({4: "F.relu(y + x)"}, "function above"),
        ({4: "F.relu(y)"}, "shortcut is missing"),
        ({4: "F.relu(y) + shortcut_a(x, self.out_channels, self.stride)"}, "after the last ReLU"),
    ],
    "bottleneck": [
        ({4: "nn.Conv2d(width, width, 1, bias=False)", 5: "nn.BatchNorm2d(width)"}, "does not expand"),
        ({0: "nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)",
          2: "nn.Conv2d(width, width, 3, padding=1, bias=False)"}, "2015"),
        ({0: "nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)"}, "halved once"),
        ({0: "nn.Conv2d(in_channels, width, 1)", 2: "nn.Conv2d(width, width, 3, stride=stride, padding=1)",
          4: "nn.Conv2d(width, out_channels, 1)"}, "biases"),
        ({2: "nn.Conv2d(width, width, 3, stride=stride, bias=False)"}, "at its border"),
        ({6: "stride != 1"}, "two ways"),
        ({6: "True"}, "although nothing"),
        ({8: "self.bn2(self.conv2(y))"}, "second normalization"),
        ({9: "F.relu(self.bn3(self.conv3(y)))"}, "before the sum"),
        ({10: "F.relu(y) + self.downsample(x)"}, "after the last ReLU"),
        ({10: "F.relu(y + x)"}, "projection used"),
    ],
    "resnext_block": [
        ({1: "nn.Conv2d(inner, inner, 3, stride=strides, padding=1, groups=group_width)"}, "number of groups"),
        ({1: "nn.Conv2d(inner, inner, 3, stride=strides, padding=1)"}, "not grouped"),
        ({0: "out_channels"}, "no effect"),
        ({0: "out_channels * multiplier"}, "rounds"),
        ({0: "round(in_channels * multiplier)"}, "input's"),
        ({1: "nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group_width)"}, "have the stride"),
        ({1: "nn.Conv2d(inner, inner, 3, stride=strides, groups=inner // group_width)"}, "at the border"),
        ({2: "nn.Conv2d(in_channels, out_channels, 1)"}, "keeps the resolution"),
        ({4: "self.conv4(x)"}, "bn4"),
        ({4: "F.relu(self.bn4(self.conv4(x)))"}, "activated before"),
    ],
    "table1": [
        ({0: '("basic", (3, 4, 3, 6))'}, "changed places"),
        ({1: '("basic", (3, 4, 6, 3))'}, "cheaper"),
        ({2: '("bottleneck", (3, 8, 36, 3))'}, "another depth"),
        ({3: '("bottleneck", (3, 4, 6, 3))'}, "too few"),
        ({4: "CONVOLUTIONS[kind] * sum(depths)"}, "Two layers"),
        ({4: "2 + 2 * sum(depths)"}, "does not have the number"),
        ({5: "512"}, "expands"),
        ({5: "2048"}, "Only bottleneck"),
        ({0: "(3, 4, 6, 3)"}, "pair"),
    ],
}  # fmt: skip
"""For each exercise wrong answers, by the number of the `...` that they stand for, and a part of their hint."""


def filled(name: str, changes: Mapping[int, str] | None = None, *, count: int | None = None) -> str:
    """Returns the file of an exercise with its solution or wrong parts; `count` fills only the first ones."""
    text = get_exercise(name).text
    parts = [(changes or {}).get(number, part) for number, part in enumerate(SOLUTIONS[name])][:count]
    places = [node for top in ast.parse(text).body for node in ellipses(top)]
    assert count is not None or len(places) == len(parts), name
    lines = text.split("\n")
    for node, part in reversed(list(zip(places, parts, strict=False))):
        line, column = lines[node.lineno - 1], node.col_offset
        body = part.replace("\n", "\n" + line[: len(line) - len(line.lstrip())])
        lines[node.lineno - 1] = line[:column] + body + line[column + 3 :]
    return "\n".join(lines)
