import torch

import resnetlab
from resnetlab import Convolution, ResidualBlock


@resnetlab.register("activation", "squared")
def squared(x):
    """The square of max(0, x)."""
    return x.clamp(min=0) ** 2


@resnetlab.register("normalization", "rms")
class RootMeanSquare(torch.nn.Module):
    """Divides each image by its root mean square, and scales each channel."""

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None] / (x.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()


@resnetlab.register("attention", "mean_gate")
class MeanGate(torch.nn.Module):
    """Scales each channel by the logistic function of its mean."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@resnetlab.register("loss", "hinge")
def hinge(logits, labels):
    """The multi-class hinge loss."""
    return torch.nn.functional.multi_margin_loss(logits, labels, reduction="none")


@resnetlab.register("optimizer", "sign")
class Sign(torch.optim.Optimizer):
    """Moves by the sign of an average of the gradients, and counts its steps."""

    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                mean = state.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                p -= group["lr"] / (1 + 0.01 * state["count"]) * mean.sign()


@resnetlab.register("augmentation", "stripes")
def stripes(images, generator, p=0.5):
    """Blackens every second row of an image, with probability p."""
    for row in (generator.random(len(images)) < p).nonzero()[0]:
        images[row, :, ::2] = 0
    return images


@resnetlab.register("schedule", "poly")
def poly(progress, power=2):
    """Falls like a power."""
    return (1 - progress) ** power


@resnetlab.register("block", "wide_pair")
class WidePair(ResidualBlock):
    """A 1x1 and a 3x3 convolution."""

    @classmethod
    def layout(cls, config, site):
        out = config.output_width(site.width)
        return (
            Convolution(out_channels=2 * out, kernel_size=1),
            Convolution(out_channels=out, kernel_size=3, stride=site.stride, dilation=site.first_dilation),
        )
