# ruff: noqa: E501 -- sources are replaced by whole lines
"""Faulty networks, as learners write them: the fault is named first or second, at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from learners import BY_HAND, D2L, NESTED, RESNET18, RESNET50, UNITS, changed
from tests.sampling import sampled

from resnetlab.checking.check import check

HAND_NORM = """

class HandNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.moving_mean = torch.zeros(1, channels, 1, 1)
        self.moving_var = torch.ones(1, channels, 1, 1)

    def forward(self, x):
        if not torch.is_grad_enabled():
            normal = (x - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5)
        else:
            mean = x.mean((0, 2, 3), keepdim=True)
            var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
            normal = (x - mean) / torch.sqrt(var + 1e-5)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
            self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return self.gamma * normal + self.beta
"""


class Case(NamedTuple):
    """A faulty network.

    Attributes:
        source: its file; a line that ends with "# here" is the place.
        like: the reference.
        words: a finding must have one of them in its text.
        label: a part of the place.
        severity: of the finding.
        options: arguments of `check`.
    """

    source: str
    like: str
    words: str
    label: str
    severity: str = "fault"
    options: dict[str, Any] = {}  # noqa: RUF012 -- never changed


B, N = "out = out + identity", "return self.relu(out)"
CASES = {
    "01 color stem on gray images": Case(
        changed(RESNET50, ("nn.Conv2d(in_channels, 64", "nn.Conv2d(3, 64")), "resnet50", "channels", "stem",
        options={"channels": 1},
    ),
    "02 no stage halves": Case(
        changed(RESNET50, ("128, 4, 2", "128, 4, 1"), ("256, 6, 2", "256, 6, 1"), ("512, 3, 2", "512, 3, 1")),
        "resnet50", "halve", "stage2.block1", options={"image_size": 96},
    ),
    "03 bare stem without padding": Case(
        changed(RESNET50, ("stride=2, padding=3, bias=False),\n            nn.BatchNorm2d(64),\n            nn.ReLU(inplace=True)", "stride=2)")),
        "resnet50", "padding", "stem", options={"image_size": 96},
    ),
    "04 two heads and softmax": Case(
        changed(RESNET50, ("self.head = nn.Linear(2048, num_classes)",
                           "self.head = nn.Sequential(nn.Linear(2048, 1000), nn.Linear(1000, num_classes), nn.Softmax(dim=1))")),
        "resnet50", "linear|softmax", "head", options={"image_size": 96},
    ),
    "05 mode by gradients": Case(
        changed(RESNET18, ("import torch.nn.functional as F\n", "import torch.nn.functional as F\n" + HAND_NORM), ("nn.BatchNorm2d(", "HandNorm(")),
        "resnet18", "gradients are enabled|outside the saved state", "learner.py:7", options={"image_size": 64},
    ),
    "06 projection without normalization": Case(
        D2L, "resnet18", "projections without normalization", "stage2.block1", "variant", options={"image_size": 64},
    ),
    "08 ignored dilation": Case(
        changed(RESNET18, ("def __init__(self, in_channels, out_channels, stride=1):", "def __init__(self, in_channels, out_channels, stride=1, dilation=1, groups=1):"),
                ("layers = [BasicBlock(in_channels, out_channels, stride)]", "layers = [BasicBlock(in_channels, out_channels, 1 if out_channels > 128 else stride, dilation=2)]")),
        "resnet18", "halve", "stage3.block1", options={"image_size": 64},
    ),
    "10 table 1 stem": Case(
        changed(RESNET18, ("x = self.pool(self.relu(self.bn1(self.conv1(x))))", "x = self.pool(self.conv1(x))"), ("        self.bn1 = nn.BatchNorm2d(64)\n        self.relu = nn.ReLU()\n", "")),
        "resnet18", "stem without normalization and activation", "stem", "variant", options={"image_size": 64},
    ),
    "11 option C": Case(
        changed(RESNET50, ("if stride != 1 or in_channels != out_channels:", "if True:")), "resnet50", "option C", "block2", "variant",
        options={"image_size": 64},
    ),
    "12 activation before the addition": Case(
        changed(RESNET18, ("out = self.bn2(self.conv2(out))", "out = self.relu(self.bn2(self.conv2(out)))  # here")),
        "resnet18", "before the addition", "stage1.block1", options={"image_size": 64},
    ),
    "13 shortcut after the activation": Case(
        changed(RESNET18, (B, "out = self.relu(out)"), (N, "return out + identity")), "resnet18", "after the final activation",
        "stage1.block1", options={"image_size": 64},
    ),
    "14 stride twice": Case(
        changed(RESNET18, ("self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)",
                           "self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)  # here")),
        "resnet18", "stride in both", "stage2.block1", options={"image_size": 64},
    ),
    "15 shared normalization": Case(
        changed(RESNET18, ("        self.bn2 = nn.BatchNorm2d(out_channels)\n", ""), ("self.bn2(self.conv2(out))", "self.bn1(self.conv2(out))"),
                ("        self.bn1 = nn.BatchNorm2d(out_channels)\n", "        self.bn1 = nn.BatchNorm2d(out_channels)  # here\n")),
        "resnet18", "used 2 times", "stage1.block1", options={"image_size": 64},
    ),
    "16 in-place activation on the shortcut": Case(
        changed(RESNET18, ("identity = self.shortcut(x)\n", "identity = x\n"),
                ("out = self.relu(self.bn1(self.conv1(x)))", "out = self.bn1(self.conv1(F.relu(x, inplace=True)))  # here\n        out = self.relu(out)"),
                (B, "out = out + self.shortcut(identity)"), (N, "return out")),
        "resnet18", "in-place|activation", "block", options={"image_size": 64},
    ),
    "17 blocks in a list": Case(
        changed(RESNET18, ("return nn.Sequential(*layers)", "return layers"),
                *((f"        x = self.layer{n}(x)\n", f"        for block in self.layer{n}:\n            x = block(x)\n") for n in (1, 2, 3, 4))),
        "resnet18", "container", "stage1", options={"image_size": 64},
    ),
    "18 one shortcut forgotten": Case(
        changed(RESNET18, ("def __init__(self, in_channels, out_channels, stride=1):", "def __init__(self, in_channels, out_channels, stride=1, plain=False):"),
                ("self.relu = nn.ReLU()\n        self.shortcut", "self.relu = nn.ReLU()\n        self.plain = plain\n        self.shortcut"),
                (B, "out = out if self.plain else out + identity"),
                ("layers.append(BasicBlock(out_channels, out_channels))", "layers.append(BasicBlock(out_channels, out_channels, plain=out_channels == 256))")),
        "resnet18", "shortcut is missing", "stage3.block2", options={"image_size": 64},
    ),
    "19 flatten before pooling": Case(
        changed(RESNET18, ("        x = self.avgpool(x)\n", ""), ("nn.Linear(512, num_classes)", "nn.Linear(512 * 7 * 7, num_classes)")),
        "resnet18", "averaged|pool", "head",
    ),
    "19b flatten and a shape error": Case(
        changed(RESNET18, ("        x = self.avgpool(x)\n", "")), "resnet18", "averaged|pool|features", "head",
    ),
    "20 softmax inside": Case(
        changed(RESNET18, ("return self.fc(x)", "return F.softmax(self.fc(x), dim=1)  # here")), "resnet18", "softmax", "head",
        options={"image_size": 64},
    ),
    "21 depths in another order": Case(
        changed(RESNET18, ("(64, 64, 2, 1)", "(64, 64, 3, 1)"), ("(64, 128, 2, 2)", "(64, 128, 4, 2)"), ("(128, 256, 2, 2)", "(128, 256, 3, 2)"), ("(256, 512, 2, 2)", "(256, 512, 6, 2)")),
        "resnet34", "3 blocks instead of 6", "stage3", options={"image_size": 64},
    ),
    "22 stride on the first 1x1": Case(
        changed(RESNET50, ("self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)", "self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride, bias=False)  # here"),
                ("kernel_size=3, stride=stride,", "kernel_size=3,")),
        "resnet50", "stride on the 1x1", "stage2.block1", "variant", options={"image_size": 64},
    ),
    "27 Xavier with gain 5": Case(
        changed(RESNET18, ("        self.fc = nn.Linear(512, num_classes)\n", "        self.fc = nn.Linear(512, num_classes)\n        for m in self.modules():\n            if isinstance(m, nn.Conv2d):\n                nn.init.xavier_normal_(m.weight, gain=5)\n")),
        "resnet18", "explodes", "", options={"image_size": 64},
    ),
    "27b zeros in a branch": Case(
        changed(RESNET18, ("        self.relu = nn.ReLU()\n        self.shortcut", "        if out_channels == 256 and stride == 1:\n            nn.init.zeros_(self.conv1.weight)\n            nn.init.zeros_(self.conv2.weight)\n        self.relu = nn.ReLU()\n        self.shortcut")),
        "resnet18", "gradient", "stage3.block2", options={"image_size": 64},
    ),
    "28 statistics updated in evaluation": Case(
        changed(RESNET18, ("import torch.nn.functional as F\n", "import torch.nn.functional as F\n\n\nclass AlwaysNorm(nn.BatchNorm2d):\n    def forward(self, x):\n        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)\n"), ("nn.BatchNorm2d(out", "AlwaysNorm(out"), ("nn.BatchNorm2d(64", "AlwaysNorm(64")),
        "resnet18", "statistics of the batch|updates", "learner.py:7", options={"image_size": 64},
    ),
    "more: dropout that never stops": Case(
        changed(RESNET18, ("return self.fc(x)", "return self.fc(F.dropout(x, 0.3))  # here")), "resnet18", "random answers", "head",
        options={"image_size": 64},
    ),
    "more: no running statistics": Case(
        changed(RESNET18, ("self.bn1 = nn.BatchNorm2d(out_channels)", "self.bn1 = nn.BatchNorm2d(out_channels, track_running_stats=False)  # here")),
        "resnet18", "statistics of the batch", "stage1.block1", options={"image_size": 64},
    ),
    "more: detached": Case(
        changed(RESNET18, ("self.bn2(self.conv2(out))", "self.bn2(self.conv2(out.detach()))")), "resnet18", "gets no gradient", "stage1.block1",
        options={"image_size": 64},
    ),
    "more: no flatten": Case(
        changed(RESNET18, ("        x = torch.flatten(x, 1)\n", "")), "resnet18", "flatten is missing", "head", options={"image_size": 64},
    ),
    "more: activation before normalization": Case(
        changed(RESNET18, ("self.relu(self.bn1(self.conv1(x)))\n        out = self.bn2", "self.bn1(self.relu(self.conv1(x)))  # here\n        out = self.bn2")),
        "resnet18", "before the normalization", "stage1.block1", options={"image_size": 64},
    ),
    "more: one convolution twice": Case(
        changed(RESNET18, ("self.conv2(out)", "self.conv2(self.conv2(out))"), ("self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)", "self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)  # here")),
        "resnet18", "used 2 times", "stage1.block1", options={"image_size": 64},
    ),
    "units: stride in both convolutions": Case(
        changed(UNITS, ("self.second = ConvBN(c_out, c_out)", "self.second = ConvBN(c_out, c_out, stride=stride)")), "resnet18",
        "stride in both", "stage2.block1", options={"image_size": 64},
    ),
    "units: one block many times": Case(
        changed(UNITS, ("            for j in range(d):\n                s = 2 if (i > 0 and j == 0) else 1\n                blocks.append(ResBlock(c, w, s))\n                c = w\n",
                        "            blocks.append(ResBlock(c, w, 2 if i > 0 else 1))\n            blocks.extend([ResBlock(w, w)] * (d - 1))  # here\n            c = w\n"),
                ("(2, 2, 2, 2)", "(3, 4, 6, 3)")),
        "resnet34", "one ResBlock is used 2 times", "stage1.block2", options={"image_size": 64},
    ),
    "units: a result that is not used": Case(
        changed(UNITS, ("        h = self.second(h)\n", "        self.second(h)  # here\n")), "resnet18", "not used", "stage1.block1",
        options={"image_size": 64},
    ),
    "units: activation on the shortcut": Case(
        changed(UNITS, ("else self.proj(x)", "else F.relu(self.proj(x))  # here")), "resnet18", "activation on the shortcut", "stage2.block1",
        options={"image_size": 64},
    ),
    "units: initialized with tiny values": Case(
        changed(UNITS, ("        self.norm = nn.BatchNorm2d(c_out)\n", "        self.norm = nn.BatchNorm2d(c_out)\n        nn.init.normal_(self.conv.weight, std=1e-7)\n")),
        "resnet18", "vanishes", "", options={"image_size": 64},
    ),
    "units: a stage is missing": Case(
        changed(UNITS, ("(64, 128, 256, 512)", "(64, 128, 256)"), ("(2, 2, 2, 2)", "(2, 2, 2)")), "resnet18", "3 stages instead of 4",
        "stage3", options={"image_size": 64},
    ),
    "units: a stage too many": Case(
        changed(UNITS, ("(64, 128, 256, 512)", "(64, 128, 256, 512, 512)"), ("(2, 2, 2, 2)", "(2, 2, 2, 2, 2)")), "resnet18",
        "blocks instead of 2|5 stages", "stage", options={"image_size": 64},
    ),
    "units: eval() in forward": Case(
        changed(UNITS, ("    def forward(self, images):\n", "    def forward(self, images):\n        self.eval()\n")), "resnet18",
        "changes the mode", "learner.py", options={"image_size": 64},
    ),
    "units: statistics that never move": Case(
        changed(UNITS, ("nn.BatchNorm2d(c_out)", "nn.BatchNorm2d(c_out, momentum=0.0)  # here")), "resnet18", "running statistics", "stem",
        options={"image_size": 64},
    ),
    "nested: activation before the sum": Case(
        changed(NESTED, ("conv_bn(o, o, 3, act=False),", "conv_bn(o, o, 3),")), "resnet18", "before the addition", "stage1.block1",
        options={"image_size": 64},
    ),
    "nested: stem without padding": Case(
        changed(NESTED, ("conv_bn(3, 64, 7, 2),", "nn.Conv2d(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),  # here")), "resnet18",
        "padding", "stem", options={"image_size": 64},
    ),
    "by hand: statistics that move in evaluation": Case(
        changed(BY_HAND, ("        return self.gamma", "            self.moving_mean = 0.9 * self.moving_mean + 0.1 * X.mean(dim=(0, 2, 3), keepdim=True)\n        return self.gamma"),
                ("class BN(nn.Module):", "class BN(nn.Module):  # here")),
        "resnet50", "in evaluation mode", "stem", options={"image_size": 64},
    ),
    "lazy: a layer that never runs": Case(
        changed(D2L, ("self.bn2(self.conv2(Y))", "self.bn1(self.conv2(Y))")), "d2l_resnet18", "used 2 times", "stage1.block1",
        options={"image_size": 64},
    ),
    "more: shortcut added twice": Case(
        changed(RESNET18, (B, "out = out + identity + identity  # here")), "resnet18", "added twice", "stage1.block1", options={"image_size": 64},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(CASES, 5, keep=["by hand: statistics that move in evaluation"]))
def test_a_fault_is_named_at_its_place(name: str, tmp_path: Path):
    case = CASES[name]
    path = tmp_path / "learner.py"
    path.write_text(case.source)
    report = check(str(path), case.like, **case.options)
    among = [finding for finding in report.findings if finding.severity == case.severity]
    if case.severity == "fault":
        assert not report.ok
        among = among[:2]
    texts = [" ".join([finding.title, finding.place, finding.why, finding.found]) for finding in among]
    words = case.words.split("|")
    named = [
        f for f, text in zip(among, texts, strict=True) if any(word in text for word in words) and case.label in text
    ]
    assert named, f"{report}"
    lines = [number for number, line in enumerate(case.source.splitlines(), 1) if line.endswith("# here")]
    if lines:
        assert named[0].line is not None, report
        assert [named[0].line.number] == lines, report
    if case.severity == "variant":
        assert report.ok, report
