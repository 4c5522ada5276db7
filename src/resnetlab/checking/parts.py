"""Checks one hand-written part, such as a convolution or an optimizer, against torch: values, gradients, edge cases.

Cases run from small to large, so that the first that fails is the smallest. What a wrong answer equals, such as the
answer of a flipped kernel, is tried and named.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.checking.findings import FAULT, VARIANT, CheckReport, Finding, Line, counted
from resnetlab.checking.graph import first_line
from resnetlab.checking.places import class_line, is_yours
from resnetlab.checking.values import equal, gradients, shown
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded

_NAMES = {
    "x": ("x", "input", "inputs", "images", "features", "tensor", "logits", "z", "o", "y_hat", "scores", "preds"),
    "weight": ("weight", "weights", "w", "kernel", "kernels", "filters", "filter", "k"),
    "bias": ("bias", "b"),
    "stride": ("stride", "strides", "s"),
    "padding": ("padding", "pad", "p"),
    "in_channels": (
        "in_channels",
        "in_channel",
        "cin",
        "c_in",
        "channels_in",
        "input_channels",
        "in_planes",
        "inp",
        "in_ch",
        "in_c",
        "ch_in",
        "nin",
    ),
    "out_channels": (
        "out_channels",
        "out_channel",
        "cout",
        "c_out",
        "channels_out",
        "output_channels",
        "num_filters",
        "out_planes",
        "out_ch",
        "out_c",
        "ch_out",
        "nout",
    ),
    "kernel_size": ("kernel_size", "kernel", "k", "size", "pool_size", "ksize", "filter_size", "window"),
    "channels": ("num_features", "channels", "num_channels", "features", "c", "dim", "n_features", "out_channels"),
    "in_features": ("in_features", "num_inputs", "inputs", "n_in", "d_in", "in_dim", "input_size", "in_size"),
    "out_features": ("out_features", "num_outputs", "outputs", "n_out", "d_out", "out_dim", "output_size", "out_size"),
    "gamma": ("gamma", "weight", "scale"),
    "beta": ("beta", "bias", "shift"),
    "mean": ("moving_mean", "running_mean", "mean"),
    "var": ("moving_var", "running_var", "var"),
    "labels": ("labels", "label", "y", "target", "targets", "classes"),
    "lr": ("lr", "learning_rate", "eta", "alpha"),
    "momentum": ("momentum", "mu"),
    "weight_decay": ("weight_decay", "wd", "decay", "l2"),
    "params": ("params", "parameters", "param_groups"),
    "rate": ("p", "drop_prob", "rate", "drop_rate", "drop_path", "prob", "drop", "drop_p", "dropout", "drop_path_rate"),
    "block_size": ("block_size", "size", "block", "bs"),
    "training": ("training", "train", "is_training"),
    "dim": ("dim", "axis"),
    "eps": ("eps", "epsilon"),
    "batch_size": ("batch_size",),
}
"""The names that people give to an argument."""


class _Case(NamedTuple):
    """One comparison: what was given, and the answers."""

    given: str
    found: Callable[[], Any]
    wanted: Callable[[], Any]
    suspects: Mapping[str, Callable[[], Any]]
    what: str = "values"


def part_named(name: str) -> str | None:
    """Returns the part that a name means, such as "conv2d" for "Conv2d", or None."""
    plain = name.lower().replace("_", "").replace("-", "").removesuffix("loss")
    return _ALIASES.get(plain)


def check_part(obj: Any, part: str) -> CheckReport:
    """Returns what is wrong with a hand-written part.

    Args:
        obj: a class, a module, or a function.
        part: a name that `part_named` returned.

    Raises:
        UserError: it cannot be called as such a part.
    """
    name = getattr(obj, "__name__", type(obj).__name__)
    with torch_seeded(0, "check"):
        findings = [*_PARTS[part](obj)]
    line = _line_of(obj)
    for finding in findings:
        finding.line = line
        finding.place = f"{line}  {name}" if line else name
    report = CheckReport(name=name, like=part, findings=sorted(findings, key=lambda one: one.severity != FAULT))
    verdict = counted(report.findings) if findings else f"Equal to torch's {part} in values, gradients and edge cases"
    report.verdict = f"{name} against {part}\n{verdict}"
    return report


def _line_of(obj: Any) -> Line | None:
    if isinstance(obj, nn.Module):
        return class_line(type(obj))
    if isinstance(obj, type):
        return class_line(obj)
    code = getattr(obj, "__code__", None)
    return Line(code.co_filename, code.co_firstlineno) if code and is_yours(code.co_filename) else None


# Calling what somebody wrote


def _named(parameters: Sequence[str], argument: str, taken: set[str]) -> str | None:
    lowered = {parameter.lower(): parameter for parameter in parameters}
    return next((lowered[name] for name in _NAMES[argument] if name in lowered and lowered[name] not in taken), None)


def _call(function: Callable[..., Any], values: Mapping[str, Any], needed: Sequence[str] = ()) -> Any:
    """Calls a function with values for the arguments that it has, by name, and by position for unknown names.

    Raises:
        UserError: it has an argument that none of the values is for, or lacks one that is needed.
    """
    parameters = inspect.signature(function).parameters
    names = [key for key, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    given: dict[str, Any] = {}
    for argument, value in values.items():
        if (key := _named(names, argument, set(given))) is not None:
            given[key] = value
    rest = [value for argument, value in values.items() if not any(value is one for one in given.values())]
    for key in names:
        if key in given or parameters[key].default is not inspect.Parameter.empty:
            continue
        if not rest:
            raise UserError(
                f"{getattr(function, '__name__', function)} has an argument {key!r} for which `check` has no "
                f"value. Name the arguments as torch does: {', '.join(values)}."
            )
        given[key] = rest.pop(0)
    for argument in needed:
        if _named(list(given), argument, set()) is None:
            raise _UnsupportedError(argument)
    keywords = {
        key: value for key, value in given.items() if parameters[key].kind is not inspect.Parameter.POSITIONAL_ONLY
    }
    return function(*[value for key, value in given.items() if key not in keywords], **keywords)


class _UnsupportedError(Exception):
    """The part has no argument of this kind, so cases that need it are left out."""


def _instance(obj: Any, values: Mapping[str, Any], needed: Sequence[str] = ()) -> Any:
    """Returns an object of a class; an object is returned as a copy."""
    if isinstance(obj, type):
        return _call(obj, values, needed)
    return copy.deepcopy(obj)


def _is_function(obj: Any) -> bool:
    return not isinstance(obj, (type, nn.Module)) and inspect.isroutine(obj)


def _parameter(module: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
    """Returns the first tensor of a module that has one of these shapes."""
    named = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    named |= {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
    return next((value for shape in shapes for value in named.values() if tuple(value.shape) == shape), None)


# Comparing


def _compare(cases: Iterator[_Case]) -> Iterator[Finding]:
    """Yields at most one finding for values and one for gradients: of the first, and so smallest, case that fails."""
    failed: set[str] = set()
    for case in cases:
        if case.what in failed:
            continue
        wanted = case.wanted()
        try:
            found = case.found()
        except _UnsupportedError:
            continue
        except Exception as error:  # of your code
            failed |= {"values", "gradients"}
            yield _fault(
                f"fails with {type(error).__name__}",
                case.given,
                shown(wanted),
                first_line(error)[:120] or "no answer",
            )
            continue
        if equal(found, wanted):
            continue
        failed.add(case.what)
        cause = ""
        for name, suspect in case.suspects.items():
            try:
                if equal(found, suspect()):
                    cause = name
                    break
            except (RuntimeError, ValueError):
                continue
        yield _fault(cause or f"{case.what} differ from torch's", case.given, shown(wanted), shown(found))


def _fault(title: str, given: str, expected: str, found: str, why: str = "", severity: str = FAULT) -> Finding:
    return Finding(
        kind="part",
        severity=severity,
        title=title,
        expected=expected,
        found=found,
        why=why or f"the smallest case that fails: {given}",
    )


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape)


# Convolution and linear layer


def _check_conv2d(obj: Any) -> Iterator[Finding]:
    return _compare(_conv_cases(obj))


def _conv_cases(obj: Any) -> Iterator[_Case]:
    settings = [
        (1, 1, 3, 1, 2, 1, 0),
        (1, 1, 4, 1, 3, 1, 0),
        (1, 1, 4, 1, 3, 1, 1),
        (2, 2, 5, 3, 3, 1, 1),
        (2, 3, 7, 4, 3, 2, 1),
        (1, 1, 5, 1, 1, 2, 0),
        (2, 2, 8, 2, 5, 3, 2),
    ]
    for n, cin, size, cout, k, stride, padding in settings:
        made = _conv(obj, cin, cout, k, stride, padding)
        if made is None:
            continue
        function, weight, bias, (cin, stride, padding) = made
        x = _random(n, cin, size + (0 if not isinstance(obj, nn.Module) else 4), size)
        size_text = f"images {tuple(x.shape)}, kernel {weight.shape[-1]}, stride {stride}, padding {padding}"

        def torch_conv(x=x, w=weight, b=bias, s=stride, p=padding) -> Tensor:
            return F.conv2d(x, w, b, s, p)

        suspects = {
            "the kernel is flipped": lambda x=x, w=weight, b=bias, s=stride, p=padding: F.conv2d(
                x, w.flip(2, 3), b, s, p
            ),
            "padding on one side only": lambda x=x, w=weight, b=bias, s=stride, p=padding: F.conv2d(
                F.pad(x, (2 * p, 0, 2 * p, 0)), w, b, s
            ),
            "padding on one side only (right and bottom)": lambda x=x, w=weight, b=bias, s=stride, p=padding: F.conv2d(
                F.pad(x, (0, 2 * p, 0, 2 * p)), w, b, s
            ),
            "padding is ignored": lambda x=x, w=weight, b=bias, s=stride: F.conv2d(x, w, b, s),
            "the stride is ignored": lambda x=x, w=weight, b=bias, p=padding: F.conv2d(x, w, b, 1, p),
            "the bias is not added": lambda x=x, w=weight, s=stride, p=padding: F.conv2d(x, w, None, s, p),
        }
        yield _Case(size_text, lambda f=function, x=x: f(x), torch_conv, suspects)
        if isinstance(obj, (nn.Module, type)):
            yield _Case(
                size_text,
                lambda f=function, x=x: gradients(f, x),
                lambda x=x, w=weight, b=bias, s=stride, p=padding: gradients(lambda y: F.conv2d(y, w, b, s, p), x),
                {},
                "gradients",
            )
        else:
            yield _Case(
                size_text,
                lambda x=x, w=weight, b=bias, c=(obj, stride, padding): gradients(
                    lambda y, v: _conv_call(c[0], y, v, b, c[1], c[2]), x, w
                ),
                lambda x=x, w=weight, b=bias, s=stride, p=padding: gradients(
                    lambda y, v: F.conv2d(y, v, b, s, p), x, w
                ),
                {},
                "gradients",
            )


def _conv(obj: Any, cin: int, cout: int, k: int, stride: int, padding: int) -> Any:
    if _is_function(obj):
        weight, bias = _random(cout, cin, k, k), _random(cout)
        if _named(list(inspect.signature(obj).parameters), "bias", set()) is None:
            bias = None
        return lambda x: _conv_call(obj, x, weight, bias, stride, padding), weight, bias, (cin, stride, padding)
    values = {"in_channels": cin, "out_channels": cout, "kernel_size": k, "stride": stride, "padding": padding}
    needed = [name for name, value in (("stride", stride != 1), ("padding", padding != 0)) if value]
    try:
        module = _instance(obj, values, needed)
    except _UnsupportedError:
        return None
    if isinstance(obj, nn.Module):
        weight = next((one for one in module.parameters() if one.ndim == 4), None)
        if weight is None:
            raise UserError("expected a convolution with a weight of four dimensions, got a module without one.")
        attributes = [getattr(module, name, default) for name, default in (("stride", 1), ("padding", 0))]
        stride, padding = (one[0] if isinstance(one, (tuple, list)) else one for one in attributes)
        cin, cout = weight.shape[1], weight.shape[0]
    else:
        weight = _parameter(module, [(cout, cin, k, k)])
        if weight is None:
            raise UserError(
                f"{obj.__name__} has no weight of shape (out_channels, in_channels, kernel, kernel). Name its "
                "arguments as torch does: in_channels, out_channels, kernel_size, stride and padding."
            )
    bias = _parameter(module, [(cout,)])
    _randomize_bias(obj, bias)
    return module, weight.detach(), None if bias is None else bias.detach(), (cin, stride, padding)


def _randomize_bias(obj: Any, bias: Tensor | None) -> None:
    """Gives a module that was built here a bias other than zeros, which would hide that it is not added."""
    if bias is not None and not isinstance(obj, nn.Module):
        with torch.no_grad():
            bias.copy_(_random(*bias.shape))


def _conv_call(obj: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    values = {"x": x, "weight": weight, "bias": bias, "stride": stride, "padding": padding}
    needed = [name for name, value in (("stride", stride != 1), ("padding", padding != 0)) if value]
    return _call(obj, {key: value for key, value in values.items() if value is not None}, needed)


def _check_linear(obj: Any) -> Iterator[Finding]:
    def cases() -> Iterator[_Case]:
        for n, inputs, outputs in ((1, 2, 1), (2, 3, 4), (5, 4, 2)):
            x = _random(n, inputs)
            if _is_function(obj):
                weight, bias = _random(outputs, inputs), _random(outputs)

                def run(y: Tensor, w: Tensor, b: Tensor) -> Tensor:
                    try:
                        return _call(obj, {"x": y, "weight": w, "bias": b})
                    except RuntimeError:
                        return _call(obj, {"x": y, "weight": w.t(), "bias": b})

                given = f"features {tuple(x.shape)} to {outputs}"
                yield _Case(
                    given,
                    lambda x=x, w=weight, b=bias: run(x, w, b),
                    lambda x=x, w=weight, b=bias: F.linear(x, w, b),
                    {"the bias is not added": lambda x=x, w=weight: F.linear(x, w)},
                )
                yield _Case(
                    given,
                    lambda x=x, w=weight, b=bias: gradients(run, x, w, b),
                    lambda x=x, w=weight, b=bias: gradients(F.linear, x, w, b),
                    {},
                    "gradients",
                )
                continue
            module = _instance(obj, {"in_features": inputs, "out_features": outputs})
            weight = _parameter(module, [(outputs, inputs), (inputs, outputs)])
            if weight is None:
                raise UserError("expected a linear layer with a weight of shape (out, in) or (in, out).")
            matrix = weight if tuple(weight.shape) == (outputs, inputs) else weight.t()
            bias = _parameter(module, [(outputs,), (1, outputs)])
            _randomize_bias(obj, bias)
            flat = None if bias is None else bias.detach().reshape(-1)
            given = f"features {tuple(x.shape)} to {outputs}"
            matrix = matrix.detach()

            def wanted(y: Tensor, w: Tensor = matrix, b: Tensor | None = flat) -> Tensor:
                return F.linear(y, w, b)

            yield _Case(given, lambda m=module, x=x: m(x), lambda x=x, f=wanted: f(x), {})
            yield _Case(
                given, lambda m=module, x=x: gradients(m, x), lambda x=x, f=wanted: gradients(f, x), {}, "gradients"
            )

    return _compare(cases())


# Pooling


def _check_pool(obj: Any, name: str) -> Iterator[Finding]:
    reference = F.max_pool2d if name == "max" else F.avg_pool2d

    def pooled(x: Tensor, k: int, stride: int, padding: int) -> Tensor:
        values = {"kernel_size": k, "stride": stride, "padding": padding}
        needed = ["padding"] if padding else []
        if _is_function(obj):
            return _call(obj, {"x": x, **values}, needed)
        if isinstance(obj, nn.Module):
            return obj(x)
        return _instance(obj, values, needed)(x)

    def cases() -> Iterator[_Case]:
        for shape, k, stride, padding, kind in (
            ((1, 1, 2, 2), 2, 2, 0, "random"),
            ((1, 1, 3, 3), 2, 1, 0, "random"),
            ((1, 1, 4, 4), 2, 2, 0, "equal"),
            ((1, 1, 4, 4), 3, 2, 1, "negative"),
            ((2, 3, 7, 7), 3, 2, 1, "random"),
        ):
            if isinstance(obj, nn.Module):
                k, stride, padding = _sizes(obj)
            x = {"random": _random(*shape), "equal": torch.ones(shape), "negative": -1 - _random(*shape).abs()}[kind]
            given = f"{kind} values {shape}, kernel {k}, stride {stride}, padding {padding}"
            zero = lambda x=x, k=k, s=stride, p=padding: reference(F.pad(x, (p, p, p, p)), k, s)  # noqa: E731
            suspects = {"padding with zeros: negative values lose against them": zero} if name == "max" else {}
            yield _Case(
                given,
                lambda x=x, a=(k, stride, padding): pooled(x, *a),
                lambda x=x, a=(k, stride, padding): reference(x, *a),
                suspects,
            )

            def all_ties(x: Tensor = x, k: int = k, stride: int = stride) -> list[Tensor]:
                return gradients(lambda y: _windows(y, k, stride).amax(-1), x)

            def ties_as_ones(x: Tensor = x, k: int = k, stride: int = stride) -> list[Tensor]:
                with torch.enable_grad():
                    leaf = x.detach().clone().requires_grad_()
                    windows = _windows(leaf, k, stride)
                    is_largest = (windows == windows.amax(-1, keepdim=True)).to(windows.dtype).detach()
                    value = reference(x, k, stride)
                    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
                    (windows * is_largest * weights[..., None]).sum().backward()
                assert leaf.grad is not None
                return [leaf.grad]

            ties: Mapping[str, Callable[[], Any]] = {
                "the gradient goes to all ties": ties_as_ones,
                "the gradient is shared by all ties": all_ties,
            }
            yield _Case(
                given,
                lambda x=x, a=(k, stride, padding): gradients(lambda y: pooled(y, *a), x),
                lambda x=x, a=(k, stride, padding): gradients(lambda y: reference(y, *a), x),
                ties if name == "max" and padding == 0 else {},
                "gradients",
            )

    return _compare(cases())


def _sizes(module: nn.Module) -> tuple[int, int, int]:
    """Returns kernel, stride and padding of a pooling layer."""
    found = [getattr(module, name, None) for name in ("kernel_size", "stride", "padding")]
    kernel, stride, padding = (one[0] if isinstance(one, (tuple, list)) else one for one in found)
    return int(kernel or 2), int(stride or kernel or 2), int(padding or 0)


def _windows(x: Tensor, k: int, stride: int) -> Tensor:
    return x.unfold(2, k, stride).unfold(3, k, stride).flatten(4)


# Normalization


def _check_batch_norm(obj: Any) -> Iterator[Finding]:
    eps, axes = 1e-5, (0, 2, 3)
    shapes = ((2, 1, 2, 2), (3, 2, 4, 4)) if not isinstance(obj, nn.Module) else ((4, _channels_of(obj), 4, 4),)

    def train(x: Tensor, norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [norm(x), *gradients(norm, x)]

    def cases() -> Iterator[_Case]:
        for shape in shapes:
            for scale in (1.0, 1e-2):
                x = _random(*shape) * scale + 0.5

                def normalized(x: Tensor, unbiased: bool = False, outside: bool = False, cut: bool = False) -> Tensor:
                    mean = x.mean(axes, keepdim=True)
                    mean = mean.detach() if cut else mean
                    var = ((x - mean) ** 2).mean(axes, keepdim=True)
                    if unbiased:
                        count = x.numel() / x.shape[1]
                        var = var * count / (count - 1)
                    return (x - mean) / (var.sqrt() + eps if outside else (var + eps).sqrt())

                given = f"images {shape}, deviation {scale:g}, training mode"
                suspects = {
                    "eps is added to the standard deviation, outside the root": lambda x=x: normalized(x, outside=True),
                    "the unbiased variance normalizes; the biased one should": lambda x=x: normalized(x, unbiased=True),
                    "the mean is not subtracted": lambda x=x: (
                        x / (x.var(axes, unbiased=False, keepdim=True) + eps).sqrt()
                    ),
                }
                yield _Case(given, lambda x=x: _norm_run(obj, x)[0], lambda x=x: normalized(x), suspects)
                yield _Case(
                    given,
                    lambda x=x: gradients(lambda y: _norm_run(obj, y)[0], x),
                    lambda x=x: gradients(normalized, x),
                    {
                        "no gradient flows through the mean": lambda x=x: gradients(
                            lambda y: normalized(y, cut=True), x
                        ),
                        "no gradient flows through mean and variance": lambda x=x: gradients(
                            lambda y: (
                                (y - x.mean(axes, keepdim=True))
                                / (x.var(axes, unbiased=False, keepdim=True) + eps).sqrt()
                            ),
                            x,
                        ),
                    },
                    "gradients",
                )

    yield from _compare(cases())
    yield from _running_statistics(obj, shapes[-1])


def _channels_of(module: nn.Module) -> int:
    return max((one.numel() for one in module.parameters()), default=3)


def _norm_run(obj: Any, x: Tensor, state: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the answer in training mode, and the running statistics after it."""
    channels = x.shape[1]
    if not _is_function(obj):
        module = _instance(obj, {"channels": channels})
        if isinstance(module, nn.Module):
            module.train()
        y = module(x)
        return y, _statistics(module, channels)
    shape = (1, channels, 1, 1)
    state = state or {"mean": torch.zeros(shape), "var": torch.ones(shape)}
    values = {
        "x": x,
        "gamma": torch.ones(shape),
        "beta": torch.zeros(shape),
        "mean": state["mean"].clone(),
        "var": state["var"].clone(),
        "eps": 1e-5,
        "momentum": 0.1,
        "training": True,
    }
    parameters = list(inspect.signature(obj).parameters)
    values = {
        key: value for key, value in values.items() if _named(parameters, key, set()) or key in ("x", "gamma", "beta")
    }
    with torch.enable_grad():
        answer = _call(obj, values)
    if isinstance(answer, (tuple, list)):
        after: dict[str, Tensor] = dict(zip(("mean", "var"), answer[1:3], strict=False))
        return answer[0], after
    return answer, {key: values[key] for key in ("mean", "var") if key in values}


def _statistics(module: Any, channels: int) -> dict[str, Tensor]:
    named = dict(module.named_buffers()) if isinstance(module, nn.Module) else {}
    named |= {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    for role in ("mean", "var"):
        key = next((key for key, value in named.items() if role in key.lower() and value.numel() == channels), None)
        if key is not None:
            found[role] = named[key].detach()
    return found


def _running_statistics(obj: Any, shape: tuple[int, ...]) -> Iterator[Finding]:
    x = _random(*shape) + 2
    try:
        _, after = _norm_run(obj, x)
    except Exception:  # named above
        return
    if not after:
        yield _fault(
            "no running statistics",
            "",
            "a running mean and variance",
            "none",
            "prediction needs statistics that do not depend on the batch",
        )
        return
    mean, count = x.mean((0, 2, 3)), x.numel() / x.shape[1]
    var = x.var((0, 2, 3), unbiased=False)
    if "mean" in after and not equal(after["mean"], 0.1 * mean):
        reversed_ = equal(after["mean"], 0.9 * mean)
        yield _fault(
            "the momentum is the other way round" if reversed_ else "the running mean differs from torch's",
            "",
            shown(0.1 * mean),
            shown(after["mean"]),
            "after one step from 0 the running mean is 0.1 times the batch mean",
        )
    if "var" in after and not equal(after["var"], 0.9 + 0.1 * var * count / (count - 1)):
        if equal(after["var"], 0.9 + 0.1 * var):
            yield _fault(
                "the running variance is biased, as in Gluon", "", "", "", "torch keeps the unbiased variance", VARIANT
            )
        elif "mean" in after and equal(after["mean"], 0.1 * mean):
            yield _fault(
                "the running variance differs from torch's",
                "",
                shown(0.9 + 0.1 * var * count / (count - 1)),
                shown(after["var"]),
            )
    yield from _evaluation_of_norm(obj, x)


def _evaluation_of_norm(obj: Any, x: Tensor) -> Iterator[Finding]:
    if _is_function(obj):
        return
    module = _instance(obj, {"channels": x.shape[1]})
    if not isinstance(module, nn.Module):
        return
    with torch.enable_grad():
        module.train()
        module(x)
        module.eval()
        statistics = {key: value.clone() for key, value in _statistics(module, x.shape[1]).items()}
        with torch.no_grad():
            without = module(x)
        found = module(x).detach()
    if {"mean", "var"} <= statistics.keys():
        wanted = F.batch_norm(x, statistics["mean"].reshape(-1), statistics["var"].reshape(-1))
        if not equal(found, wanted):
            yield _fault(
                "the mode depends on whether gradients are enabled, not on eval()"
                if equal(without, wanted)
                else "evaluation mode does not use the running statistics",
                "",
                shown(wanted),
                shown(found),
                "an image must get the same answer in every batch",
            )
    saved = {key for key, _ in module.named_buffers()} | {key for key, _ in module.named_parameters()}
    hidden = [key for key, value in vars(module).items() if isinstance(value, Tensor) and key not in saved]
    if hidden:
        yield _fault(
            f"{', '.join(hidden)} outside the saved state",
            "",
            "buffers",
            "plain attributes",
            "state_dict() does not contain them: use self.register_buffer",
        )


# Functions


def _check_relu(obj: Any) -> Iterator[Finding]:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0])
    run = _callable(obj)
    return _compare(
        iter(
            [
                _Case(str(x.tolist()), lambda: run(x.clone()), lambda: F.relu(x), {}),
                _Case(str(x.tolist()), lambda: gradients(run, x), lambda: gradients(F.relu, x), {}, "gradients"),
            ]
        )
    )


def _callable(obj: Any) -> Callable[..., Any]:
    made = obj() if isinstance(obj, type) else obj

    def run(*values: Tensor) -> Any:
        if not _is_function(made):
            return made(*values)
        names = ("x", "labels")[: len(values)]
        extra = {"dim": 1} if len(values) == 1 and values[0].ndim == 2 else {}
        parameters = inspect.signature(made).parameters
        if extra and _named(list(parameters), "dim", set()) is None:
            extra = {}
        return _call(made, {**dict(zip(names, values, strict=True)), **extra})

    return run


def _check_softmax(obj: Any) -> Iterator[Finding]:
    run = _callable(obj)

    def cases() -> Iterator[_Case]:
        for x in (torch.tensor([[0.0, 1.0]]), _random(3, 4), torch.tensor([[1000.0, 0.0], [-1000.0, -1001.0]])):
            given = f"logits {x.tolist() if x.numel() < 5 else tuple(x.shape)}"
            yield _Case(
                given,
                lambda x=x: run(x),
                lambda x=x: F.softmax(x, 1),
                {
                    "large logits overflow: subtract the largest one first": lambda x=x: (
                        x.exp() / x.exp().sum(1, keepdim=True) if x.abs().max() > 100 else x * float("nan")
                    ),
                    "the softmax runs over the images instead of the classes": lambda x=x: F.softmax(x, 0),
                    "the softmax runs over all values": lambda x=x: F.softmax(x.reshape(-1), 0).reshape(x.shape),
                },
            )
        x = _random(3, 4)
        yield _Case(
            "logits (3, 4)",
            lambda: gradients(run, x),
            lambda: gradients(lambda y: F.softmax(y, 1), x),
            {},
            "gradients",
        )

    return _overflowing(_compare(cases()))


def _overflowing(findings: Iterator[Finding]) -> Iterator[Finding]:
    for finding in findings:
        if "nan" in finding.found or "inf" in finding.found:
            finding.title = "large logits overflow: subtract the largest one first"
        yield finding


def _check_cross_entropy(obj: Any) -> Iterator[Finding]:
    run = _callable(obj)

    def cases() -> Iterator[_Case]:
        for x, labels in (
            (torch.tensor([[0.0, 1.0]]), torch.tensor([0])),
            (_random(3, 4), torch.tensor([0, 3, 1])),
            (torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([1, 1])),
        ):

            def each(x: Tensor = x, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(x, labels, reduction="none")

            given = f"logits {x.tolist() if x.numel() < 5 else tuple(x.shape)}, labels {labels.tolist()}"
            yield _Case(
                given,
                lambda x=x, y=labels: run(x, y),
                lambda each=each: each().mean(),
                {
                    "the mean is over classes too, instead of images only": lambda each=each, x=x: (
                        each().mean() / x.shape[1]
                    ),
                    "the losses of the images are summed instead of averaged": lambda each=each: each().sum(),
                    "one loss per image instead of their mean": each,
                    "the sign is wrong": lambda each=each: -each().mean(),
                },
            )
            yield _Case(
                given,
                lambda x=x, y=labels: gradients(lambda z: run(z, y), x),
                lambda x=x, y=labels: gradients(lambda z: F.cross_entropy(z, y), x),
                {},
                "gradients",
            )

    x, labels = _random(3, 4), torch.tensor([0, 3, 1])
    right = F.cross_entropy(x, labels)
    title = "it expects probabilities: give it logits, and apply the softmax inside"
    with contextlib.suppress(Exception):  # of your code; the cases name it
        if equal(run(F.softmax(x, 1), labels), right) and not equal(found := run(x, labels), right):
            return iter([_fault(title, "logits (3, 4)", shown(right), shown(found))])
    return _overflowing(_compare(cases()))


# Optimizer


def _check_sgd(obj: Any) -> Iterator[Finding]:
    def losses(parameters: list[Tensor]) -> Tensor:
        return sum((one**2 * torch.arange(1, one.numel() + 1)).sum() for one in parameters)  # type: ignore[return-value]

    def trained(make: Callable[[list[Tensor]], Any]) -> Tensor:
        with torch.enable_grad():
            parameters = [torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)]
            optimizer = make(parameters)
            for _ in range(3):
                for one in parameters:
                    one.grad = None
                losses(parameters).backward()
                if hasattr(optimizer, "step"):
                    optimizer.step()
                else:
                    optimizer()
        return torch.cat([one.detach() for one in parameters])

    def cases() -> Iterator[_Case]:
        for momentum, decay in ((0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.9, 0.1)):

            def make(parameters: list[Tensor], momentum: float = momentum, decay: float = decay) -> Any:
                values = {"params": parameters, "lr": 0.05}
                values |= {key: value for key, value in (("momentum", momentum), ("weight_decay", decay)) if value}
                needed = [key for key in ("momentum", "weight_decay") if key in values]
                if _is_function(obj):
                    names = inspect.signature(obj).parameters
                    values |= {"batch_size": 1} if "batch_size" in names else {}
                    return lambda: _call(obj, values, needed)
                return _call(obj, values, needed)

            def torch_sgd(p: list[Tensor], m: float = momentum, d: float = decay, **more: Any) -> Any:
                return torch.optim.SGD(p, lr=0.05, momentum=m, weight_decay=d, **more)

            given = f"lr 0.05, momentum {momentum:g}, weight decay {decay:g}, three steps"
            altered = functools.partial(_AlteredSGD, momentum=momentum)
            suspects = {
                "the step is added instead of subtracted": functools.partial(torch_sgd, maximize=True),
                "the momentum is damped: the gradient is multiplied by 1 - momentum": functools.partial(
                    altered, decay=decay, scale=1 - momentum
                ),
                "Nesterov's momentum instead of the plain one": functools.partial(torch_sgd, nesterov=True),
                "momentum is ignored": functools.partial(torch_sgd, m=0.0),
                "weight decay is ignored": functools.partial(torch_sgd, d=0.0),
                "weight decay has the wrong sign": functools.partial(altered, decay=-decay),
            }
            tried = {name: functools.partial(trained, made) for name, made in suspects.items()}
            yield _Case(given, lambda make=make: trained(make), lambda f=torch_sgd: trained(f), tried)

    return _compare(cases())


class _AlteredSGD:
    """SGD with a typical mistake: weight decay of the wrong sign, or a gradient scaled by 1 - momentum."""

    def __init__(self, parameters: list[Tensor], momentum: float, decay: float, *, scale: float = 1.0) -> None:
        self.parameters, self.momentum, self.decay, self.scale = parameters, momentum, decay, scale
        self.velocity = [torch.zeros_like(one) for one in parameters]

    def step(self) -> None:
        with torch.no_grad():
            for one, velocity in zip(self.parameters, self.velocity, strict=True):
                assert one.grad is not None
                velocity.mul_(self.momentum).add_(self.scale * (one.grad + self.decay * one))
                one -= 0.05 * velocity


# Drop layers

_RATE = 0.25


def _dropped(obj: Any, x: Tensor, training: bool, **values: Any) -> Tensor:
    if _is_function(obj):
        return _call(obj, {"x": x, "rate": _RATE, "training": training, **values})
    module = _instance(obj, {**values, "rate": _RATE})
    if isinstance(module, nn.Module):
        module.train(training)
    return module(x)


def _rate_of(obj: Any) -> float:
    for name in _NAMES["rate"]:
        value = getattr(obj, name, None)
        if isinstance(obj, nn.Module) and isinstance(value, float):
            return value
    return _RATE


def _check_drop_path(obj: Any) -> Iterator[Finding]:
    x, rate = torch.ones(4000, 2, 2, 2), _rate_of(obj)
    y = _dropped(obj, x, True)
    alive = (y != 0).flatten(1)
    per_sample = alive.all(1) | ~alive.any(1)
    measured = float(1 - alive.float().mean())
    if not bool(per_sample.all()):
        yield _fault(
            "single values are dropped instead of whole samples",
            "",
            "each sample kept or dropped as a whole",
            "samples dropped in part",
            "that is dropout: stochastic depth drops the branch of a sample",
        )
    elif measured in (0.0, 1.0):
        yield _fault(
            "the decision is not made for each sample",
            "",
            f"a rate of {rate:g} over samples",
            f"a rate of {measured:g}",
            "samples of one batch must be dropped independently",
        )
    elif abs(measured - rate) > 0.05:
        inverse = abs(measured - (1 - rate)) < 0.05
        yield _fault(
            "the rate is the probability to keep" if inverse else "the measured rate differs from the nominal one",
            "",
            f"rate {rate:g}",
            f"measured rate {measured:.2f}",
            "rate is the probability to drop",
        )
    yield from _expectation(y, x, obj, {})


def _check_drop_block(obj: Any) -> Iterator[Finding]:
    x, rate = torch.ones(32, 8, 32, 32), _rate_of(obj)
    values = {"block_size": 5}
    y = _dropped(obj, x, True, **values)
    gone = y == 0
    measured = float(gone.float().mean())
    if abs(measured - rate) > 0.2 * rate:
        yield _fault(
            f"the measured rate is {measured:.2f} instead of {rate:g}",
            "",
            f"rate {rate:g}",
            f"measured rate {measured:.3f}",
            "centers have probability rate / block_size^2 * area / valid area (Ghiasi et al. 2018)",
        )
    if bool((gone == gone[:, :1]).all()) and measured > 0:
        yield _fault(
            "one mask for all channels",
            "",
            "a mask for each channel",
            "equal masks",
            "channels must be dropped independently",
            FAULT,
        )
    if measured > 0 and not _in_blocks(gone, 5):
        yield _fault(
            "dropped values do not form whole blocks",
            "",
            "blocks of 5x5 values",
            "smaller regions",
            "centers must be drawn where a whole block fits: single values can be inferred from their neighbors",
        )
    yield from _expectation(y, x, obj, values)


def _in_blocks(gone: Tensor, size: int) -> bool:
    """Whether dropped values are a union of whole blocks."""
    blocks = F.avg_pool2d(gone.float(), size, 1) > 1 - 1e-6
    covered = F.max_pool2d(F.pad(blocks.float(), (size - 1,) * 4), size, 1) > 0
    return bool((covered == gone).all())


def _expectation(y: Tensor, x: Tensor, obj: Any, values: dict[str, Any]) -> Iterator[Finding]:
    mean = float(y.mean())
    if abs(mean - 1) > 0.05 and float((y == 0).float().mean()) > 0:
        yield _fault(
            "kept values are not rescaled",
            "",
            "mean 1",
            f"mean {mean:.2f}",
            "divide by the fraction that is kept, so that training and evaluation agree",
        )
    calm = _dropped(obj, x[:8], False, **values)
    if not torch.equal(calm, x[:8]):
        yield _fault(
            "evaluation mode changes the input", "", "the identity", shown(calm), "predictions must not be random"
        )


_PARTS: dict[str, Callable[[Any], Iterator[Finding]]] = {
    "conv2d": _check_conv2d,
    "linear": _check_linear,
    "max_pool2d": lambda obj: _check_pool(obj, "max"),
    "avg_pool2d": lambda obj: _check_pool(obj, "average"),
    "batch_norm": _check_batch_norm,
    "relu": _check_relu,
    "softmax": _check_softmax,
    "cross_entropy": _check_cross_entropy,
    "sgd": _check_sgd,
    "drop_path": _check_drop_path,
    "drop_block": _check_drop_block,
}
PARTS = tuple(_PARTS)
"""The parts that `check` knows, as values of `like`."""
_ALIASES = {name.replace("_", ""): name for name in _PARTS} | {
    "conv": "conv2d",
    "convolution": "conv2d",
    "dense": "linear",
    "fc": "linear",
    "maxpool": "max_pool2d",
    "maxpooling": "max_pool2d",
    "pooling": "max_pool2d",
    "avgpool": "avg_pool2d",
    "averagepool": "avg_pool2d",
    "batchnorm2d": "batch_norm",
    "bn": "batch_norm",
    "normalization": "batch_norm",
    "crossentropy": "cross_entropy",
    "stochasticdepth": "drop_path",
    "dropblock2d": "drop_block",
}
