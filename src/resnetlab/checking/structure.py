"""Differences from the reference in the field's terms: which layer, in which block, and why it matters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resnetlab.checking.findings import FAULT, VARIANT, Finding
from resnetlab.checking.path import Edit, Token, convolutions, differences, steps_of


@dataclass(kw_only=True)
class Event(Finding):
    """One difference in one block; those of one key in several blocks become one finding."""

    key: str
    label: str
    token: Token | None
    kind: str = "structure"
    severity: str = FAULT


def events_of(edits: Sequence[Edit], expected: Sequence[Token]) -> list[Event]:
    """Returns what the differences mean, in the order of the network."""
    total = sum(token.kind == "add" for token in expected)
    events: list[Event] = []
    for label, group in itertools.groupby(edits, key=lambda edit: edit.label):
        block = list(group)
        if label == "stem":
            events += _stem_events(block)
        elif label == "head":
            events += _head_events(block)
        else:
            events += _block_events(label, block, expected)
    return _judged(events, total, expected)


def findings_of(events: Sequence[Event]) -> list[Finding]:
    """Returns one finding for equal events; it names the first place, and the other blocks."""
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(event.key, []).append(event)
    findings = []
    for group in groups.values():
        first = group[0]
        token = next((event.token for event in group if event.token is not None), None)
        labels = list(dict.fromkeys(event.label for event in group))
        texts = {name: getattr(first, name) for name in ("kind", "severity", "expected", "found", "why", "suggestion")}
        findings.append(
            Finding(
                title=first.title + _also(labels),
                place=place_of(first.label, token),
                line=token.node.place if token is not None else None,
                labels=tuple(labels),
                **texts,
            )
        )
    return findings


def block_rows(steps: Sequence[tuple[Token | None, Token | None]], label: str) -> list[dict[str, Any]]:
    """Returns the layers of one block as `CheckReport.blocks` has them; `steps` are those of the whole path."""
    return _rows([pair for pair in steps if next(token.label for token in pair if token is not None) == label])


def _rows(steps: Sequence[tuple[Token | None, Token | None]]) -> list[dict[str, Any]]:
    places = {id(token.node): number for number, pair in enumerate(steps) for token in pair if token is not None}
    rows = []
    for one, other in steps:
        sums = [token if token is not None and token.kind in ("add", "gate") else None for token in (one, other)]
        one_side, other_side = ([] if token is None else token.shortcut for token in sums)
        rows.append(
            {
                "expected": "" if one is None else described(one),
                "found": "" if other is None else described(other),
                "differs": one is None or other is None or bool(differences(one, other)),
                "shortcut": _rows(steps_of(one_side, other_side)),
                "fork": [-1 if token is None else places.get(id(token.fork), -1) for token in sums]
                if any(sums)
                else [],
            }
        )
    return rows


def place_of(label: str, token: Token | None) -> str:
    """Returns file and line, stage and block, and the name of the module."""
    parts = []
    if token is not None and token.node.place is not None:
        parts.append(str(token.node.place))
    if label:
        parts.append(label)
    if token is not None and token.node.path:
        parts.append(f"({token.node.path})")
    return "  ".join(parts)


def shape_text(shape: Sequence[int]) -> str:
    """Returns a shape without N, such as "128x28x28"."""
    return "x".join(map(str, shape[1:]))


def described(token: Token) -> str:
    """Returns a layer in short notation, such as "3x3 convolution to 128, stride 2"."""
    values = token.values
    if token.kind == "conv":
        text = f"{values['kernel'][0]}x{values['kernel'][1]} convolution to {values['out']}"
        if values["stride"] != (1, 1):
            text += f", stride {_size(values['stride'])}"
        if values["groups"] != 1:
            text += f", {values['groups']} groups"
        if values["dilation"] != (1, 1):
            text += f", dilation {_size(values['dilation'])}"
        return text
    if token.kind in ("maxpool", "avgpool"):
        name = "max" if token.kind == "maxpool" else "average"
        return f"{_size(values['kernel'])}x{_size(values['kernel'])} {name} pooling, stride {_size(values['stride'])}"
    if token.kind == "linear":
        return f"linear layer {values['in']} -> {values['out']}"
    if token.kind == "act":
        return f"activation ({values['name']})"
    if token.kind == "other":
        return str(values.get("name", "another operation"))
    return _NAMES.get(token.kind, token.kind)


_NAMES = {
    "norm": "normalization",
    "gap": "global average pooling",
    "add": "sum with the shortcut",
    "gate": "attention gate",
    "flatten": "flatten",
    "softmax": "softmax",
    "log_softmax": "log-softmax",
    "dropout": "dropout",
    "pad": "zero padding",
    "slice": "slicing",
}


def _size(pair: Any) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"({pair[0]}, {pair[1]})"


def _also(labels: Sequence[str]) -> str:
    if len(labels) < 2:
        return ""
    if len(labels) <= 4:
        return f", also in {', '.join(labels[1:])}"
    return f", in {len(labels)} blocks"


def _shortened(token: Token) -> str:
    return token.node.path.rpartition(".")[2] or described(token)


# Stem and head


def _stem_events(edits: Sequence[Edit]) -> Iterator[Event]:
    missing = {edit.token.kind: edit for edit in edits if edit.kind == "missing"}
    done: list[Edit] = []
    conv = next((edit for edit in edits if edit.kind == "differs" and edit.token.kind == "conv"), None)
    if "norm" in missing and "act" in missing:
        edit = missing["norm"]
        done += [edit, missing["act"]]
        yield Event(
            key="stem bare",
            title="stem without normalization and activation (as in the Table 1 notebook)",
            label="stem",
            token=edit.before or edit.after,
            expected="convolution, normalization, activation",
            found="convolution alone",
            why="the first block sees unnormalized values",
            severity=VARIANT,
        )
    if "maxpool" in missing and conv is not None and conv.found and conv.found.values["stride"] == (1, 1):
        done += [conv, missing["maxpool"]]
        yield Event(
            key="stem small",
            title="stem for small images: stride 1 and no pooling",
            label="stem",
            token=conv.found,
            severity=VARIANT,
            expected=described(conv.expected) if conv.expected else "",
            found=described(conv.found),
        )
    if (
        "conv" not in missing
        and len([edit for edit in edits if edit.kind == "extra" and edit.token.kind == "conv"]) == 2
    ):
        extra = [edit for edit in edits if edit.kind == "extra" and edit.token.kind in ("conv", "norm", "act")]
        done += extra + ([conv] if conv else [])
        yield Event(
            key="stem deep",
            title="stem of three 3x3 convolutions (ResNet-C and -D)",
            label="stem",
            token=extra[0].token,
            severity=VARIANT,
        )
    rest = [edit for edit in edits if edit not in done]
    pooled = next((edit for edit in rest if edit.kind == "extra" and edit.token.kind == "maxpool"), None)
    if pooled is not None and "maxpool" in missing:
        rest = [edit for edit in rest if edit not in (pooled, missing["maxpool"])]
        yield Event(
            key="stem order",
            title="max pooling in another place of the stem",
            label="stem",
            token=pooled.token,
            why="the reference pools after normalization and activation",
            severity=VARIANT,
        )
    for edit in rest:
        yield from _plain_event("stem", edit)


def _head_events(edits: Sequence[Edit]) -> Iterator[Event]:
    for edit in edits:
        token = edit.token
        if edit.kind == "extra" and token.kind in ("softmax", "log_softmax"):
            yield Event(
                key="softmax",
                title=f"{described(token)} at the end of the network",
                label="head",
                token=token,
                expected="logits",
                found="probabilities" if token.kind == "softmax" else "log-probabilities",
                why="cross-entropy applies the softmax itself: with two, gradients become small and training slow",
                suggestion=f"return the result of the linear layer; remove the {described(token)}",
                kind="behavior" if token.kind == "softmax" else "structure",
            )
        elif edit.kind == "extra" and token.kind == "linear":
            yield Event(
                key="two heads",
                title="two linear layers in the head",
                label="head",
                token=token,
                expected="one linear layer",
                found="two linear layers",
                why="without an activation between them, two linear layers compute no more than one",
                suggestion="keep one linear layer, from the pooled features to the classes",
            )
        elif edit.kind == "extra" and token.kind == "dropout":
            yield Event(key="head dropout", title="dropout in the head", label="head", token=token, severity=VARIANT)
        elif edit.kind == "missing" and token.kind == "gap":
            flat = edit.after
            yield Event(
                key="no pooling",
                title="the last feature map is not averaged before the linear layer",
                label="head",
                token=flat or edit.before,
                expected="global average pooling, then a linear layer",
                found="no pooling" if flat is None else described(flat),
                why="the linear layer reads every position apart: it has many times the weights, and works for one "
                "image size only",
                suggestion="nn.AdaptiveAvgPool2d(1), then flatten(1), before the linear layer",
            )
        elif edit.kind == "extra" and token.kind == "flatten":
            continue  # named by the missing pooling
        else:
            yield from _plain_event("head", edit)


# Blocks


def _block_events(label: str, edits: Sequence[Edit], expected: Sequence[Token]) -> Iterator[Event]:
    rest = list(edits)
    yield from _activation_events(label, rest)
    yield from _sum_events(label, rest)
    strides = [edit for edit in rest if edit.kind == "differs" and "stride" in edit.changes]
    if strides:
        yield from _stride_events(label, strides, expected)
        for edit in strides:
            edit.changes = {key: value for key, value in edit.changes.items() if key != "stride"}
            if not edit.changes:
                rest.remove(edit)
    for edit in rest:
        yield from _plain_event(label, edit)


def _activation_events(label: str, rest: list[Edit]) -> Iterator[Event]:
    """Yields what activations in other places mean, and removes these edits."""
    early = [edit for edit in rest if edit.kind == "extra" and edit.token.kind == "act" and _is(edit.after, "add")]
    late = [edit for edit in rest if edit.kind == "missing" and edit.token.kind == "act" and _is(edit.before, "add")]
    if early and late:
        rest.remove(early[0])
        rest.remove(late[0])
        yield Event(
            key="shortcut late",
            title="the shortcut is added after the final activation",
            label=label,
            token=early[0].token,
            expected="activation(branch + shortcut)",
            found="activation(branch) + shortcut",
            why="the sum is never activated: values only grow from block to block",
            suggestion="add the shortcut first, then apply the activation",
        )
    elif early:
        rest.remove(early[0])
        yield Event(
            key="activation before",
            title="activation before the addition",
            label=label,
            token=early[0].token,
            expected="normalization, sum, activation",
            found="normalization, activation, sum",
            why="the branch can only add: it can no longer lower a value of the shortcut (He et al. 2016b, Fig. 4c)",
            suggestion="remove the activation between the last normalization and the sum",
        )
    swapped = [
        (edit, other)
        for edit in rest
        if edit.kind == "extra" and edit.token.kind == "act" and _is(edit.after, "norm")
        for other in rest
        if other.kind == "missing" and other.token.kind == "act" and other.before is edit.after
    ]
    for edit, other in swapped:
        rest.remove(edit)
        rest.remove(other)
        yield Event(
            key="activation before normalization",
            title="activation before the normalization",
            label=label,
            token=edit.token,
            expected="convolution, normalization, activation",
            found="convolution, activation, normalization",
            why="the normalization can make values negative again, so the block computes another function",
            suggestion="normalize first, then activate",
        )
    in_place = [edit for edit in rest if edit.kind == "extra" and edit.token.kind == "act" and edit.token.node.in_place]
    for edit in in_place:
        rest.remove(edit)
        yield Event(
            key="in-place",
            title="in-place activation on the input of the shortcut",
            label=label,
            token=edit.token,
            expected="the shortcut carries the block's input",
            found="the shortcut carries the activated input",
            why="an in-place activation changes the tensor that the shortcut still needs",
            suggestion="use inplace=False here, or remove the activation",
        )


def _sum_events(label: str, rest: list[Edit]) -> Iterator[Event]:
    """Yields what is different about sums, shortcuts and gates, and removes these edits."""

    def first(kind: str) -> Edit | None:
        return next((edit for edit in rest if edit.kind == kind and edit.token.kind == "add"), None)

    if (edit := first("missing")) is not None:
        rest.remove(edit)
        closest = edit.before if edit.before is not None and edit.before.label == label else edit.after or edit.before
        yield Event(
            key="no shortcut",
            title="the shortcut is missing",
            label=label,
            token=closest,
            expected="branch(x) + shortcut(x)",
            found="branch(x)",
            why="without the sum this block is plain: gradients must pass through its layers",
            suggestion="keep the input, and add it before the last activation",
        )
    if (edit := first("extra")) is not None:
        rest.remove(edit)
        yield Event(
            key="two sums",
            title="the shortcut is added twice",
            label=label,
            token=edit.token,
            expected="one sum",
            found="two sums",
            why="the input counts double, so values double with every such block",
            suggestion="add the shortcut once",
        )
    for edit in [edit for edit in rest if edit.kind == "shortcut"]:
        rest.remove(edit)
        yield from _shortcut_events(label, edit)
    for edit in [edit for edit in rest if edit.kind == "gate"]:
        rest.remove(edit)
        yield Event(key="gate", title="another attention gate", label=label, token=edit.found, severity=VARIANT)


def _is(token: Token | None, kind: str) -> bool:
    return token is not None and token.kind == kind


def _stride_events(label: str, edits: Sequence[Edit], expected: Sequence[Token]) -> Iterator[Event]:
    more = [edit for edit in edits if edit.changes["stride"][1] > edit.changes["stride"][0]]
    less = [edit for edit in edits if edit.changes["stride"][1] < edit.changes["stride"][0]]
    if more and less:
        one, other = less[0].found, more[0].found
        assert one is not None
        assert other is not None
        is_bottleneck = (1, 1) in (one.values["kernel"], other.values["kernel"])
        yield Event(
            key=f"stride moved {one.values['kernel']} {other.values['kernel']}",
            title=f"stride on the {_kernel(other)} convolution"
            + (" (as in the paper; torchvision has it on the 3x3)" if other.values["kernel"] == (1, 1) else ""),
            label=label,
            token=other,
            expected=f"stride {_size(less[0].changes['stride'][0])} in {_shortened(one)}",
            found=f"stride {_size(more[0].changes['stride'][1])} in {_shortened(other)}",
            why="the position of the stride changes which values are read, and the cost",
            suggestion=f"{_shortened(one)}: stride={_size(less[0].changes['stride'][0])}; {_shortened(other)}: "
            f"stride={_size(more[0].changes['stride'][0])}",
            severity=VARIANT if is_bottleneck else FAULT,
        )
        return
    for edit in more:
        token, (wanted, got) = edit.found, edit.changes["stride"]
        assert token is not None
        assert edit.expected is not None
        both = any(
            other.label == label and other.kind == "conv" and other.values["stride"] != (1, 1) for other in expected
        )
        yield Event(
            key=f"stride more {_shortened(token)}",
            title="stride in both convolutions" if both else f"stride {_size(got)} in a block that keeps its size",
            label=label,
            token=token,
            expected=shape_text(edit.expected.node.shape),
            found=shape_text(token.node.shape),
            why="the shortcut halves once, the branch twice: they cannot be added"
            if both
            else "the branch halves the resolution and the shortcut does not: they cannot be added",
            suggestion=f"{_shortened(token)}: stride={_size(got)} -> stride={_size(wanted)}",
        )
    for edit in less:
        token, (wanted, got) = edit.found, edit.changes["stride"]
        assert token is not None
        dilated = "dilation" in edit.changes
        yield Event(
            key=f"stride less {_shortened(token)}",
            title=f"{label.partition('.')[0]} does not halve the resolution"
            if not dilated
            else "dilation instead of stride",
            label=label,
            token=token,
            expected=f"stride {_size(wanted)}",
            found=f"stride {_size(got)}",
            why="later layers work at full resolution: many times the cost, and a smaller receptive field (if dilation "
            "was meant to replace the stride, the convolutions must use it)",
            suggestion=f"{_shortened(token)}: stride={_size(got)} -> stride={_size(wanted)}",
            severity=VARIANT if dilated else FAULT,
        )


def _change(projection: Token) -> str:
    """Returns what a block does to the shape of its input, from the projection of its shortcut in the reference."""
    values = projection.values
    parts = [f"changes {values['in']} channels to {values['out']}"] if values["in"] != values["out"] else []
    parts += [f"divides height and width by {values['stride'][0]}"] if values["stride"][0] > 1 else []
    return " and ".join(parts) or "changes its input"


def _shortcut_events(label: str, edit: Edit) -> Iterator[Event]:
    assert edit.expected is not None
    assert edit.found is not None
    wanted, got = edit.expected.shortcut, edit.found.shortcut
    token = got[0] if got else edit.found
    activated = next((side for side in got if side.kind == "act"), None)
    if activated is not None and not any(side.kind == "act" for side in wanted):
        in_place = activated.node.in_place
        yield Event(
            key="activated shortcut",
            title="in-place activation changes the input of the shortcut" if in_place else "activation on the shortcut",
            label=label,
            token=activated,
            expected=_form(wanted),
            found=_form(got),
            why="the shortcut must carry the input unchanged, or projected: an activation blocks negative values"
            + (", and in place it also changes what the branch reads" if in_place else ""),
            suggestion="remove it from the shortcut" if not in_place else "use inplace=False",
        )
        return
    has = {
        kind: [side for side in side_tokens if side.kind == "conv"] for kind, side_tokens in (("w", wanted), ("g", got))
    }
    if has["w"] and not has["g"]:
        padded = [side for side in got if side.kind in ("pad", "slice", "avgpool", "maxpool", "other")]
        yield Event(
            key="option A" if padded else "no projection",
            title="zero-padded shortcut (option A)" if padded else "the shortcut has no projection",
            label=label,
            token=token,
            expected=_form(wanted),
            found=_form(got),
            why="" if padded else f"the branch {_change(has['w'][0])}, so the input cannot be added unchanged",
            suggestion=""
            if padded
            else f"project it: 1x1 convolution with stride {has['w'][0].values['stride'][0]}, then normalization. "
            "If other blocks have a projection, look at the condition that creates it",
            severity=VARIANT if padded else FAULT,
        )
        return
    if not has["w"] and has["g"]:
        yield Event(
            key="option B" if wanted else "option C",
            title="projection instead of zero padding (option B)"
            if wanted
            else "projection where the shape does not change (option C)",
            label=label,
            token=token,
            expected=_form(wanted),
            found=_form(got),
            why="padding needs no weights"
            if wanted
            else "an identity needs no weights and lets gradients through unchanged",
            severity=VARIANT,
        )
        return
    yield from _projection_events(label, edit, token)


def _projection_events(label: str, edit: Edit, token: Token) -> Iterator[Event]:
    """Yields the differences between two projections."""
    for inner in edit.inner:
        kind = inner.token.kind
        if inner.kind == "missing" and kind == "norm":
            yield Event(
                key="bare projection",
                title="projections without normalization (as in d2l)",
                label=label,
                token=token,
                expected="1x1 convolution, normalization",
                found="1x1 convolution",
                severity=VARIANT,
            )
        elif inner.kind == "extra" and kind in ("avgpool", "maxpool"):
            yield Event(
                key="pooled projection",
                title="the shortcut pools before it projects (ResNet-D)",
                label=label,
                token=inner.token,
                severity=VARIANT,
            )
        elif inner.kind == "differs" and "stride" in inner.changes:
            if any(other.kind == "extra" and other.token.kind in ("avgpool", "maxpool") for other in edit.inner):
                continue
            expected, found = inner.changes["stride"]
            yield Event(
                key="projection stride",
                title="the projection has another stride than the branch should have",
                label=label,
                token=inner.token,
                expected=f"stride {_size(expected)}",
                found=f"stride {_size(found)}",
                why="branch and shortcut must have the same resolution",
                suggestion=f"{_shortened(inner.token)}: stride={_size(found)} -> stride={_size(expected)}",
            )
        else:
            yield from _plain_event(label, inner)


def _form(tokens: Sequence[Token]) -> str:
    return ", ".join(described(token) for token in tokens) or "identity"


def _kernel(token: Token) -> str:
    return f"{token.values['kernel'][0]}x{token.values['kernel'][1]}"


# Single layers

_WHY = {
    "norm": "without it values and gradients change scale from layer to layer, and a deep network trains badly",
    "act": "without it the layers around it are one linear map",
    "conv": "the network computes something else",
    "maxpool": "the blocks work at twice the resolution, at four times the cost",
    "gap": "the linear layer must read one value per channel",
}
_CHANGES = {
    "kernel": "another receptive field and another cost",
    "padding": "without padding of half the kernel a convolution loses its border, and sizes no longer halve exactly",
    "dilation": "dilation replaces the stride: without it the receptive field is smaller than the weights expect",
    "groups": "grouped and full convolutions have other weights and another cost",
    "out": "the width decides capacity and cost, and weights of the reference do not fit",
}


def _plain_event(label: str, edit: Edit) -> Iterator[Event]:
    token = edit.token
    name = described(token)
    if edit.kind == "missing":
        near = edit.before if edit.before is not None else edit.after
        if token.kind in ("dropout", "pad", "flatten"):
            return
        short = "activation" if token.kind == "act" else name
        after = f" after {_shortened(near)}" if near is not None and near.kind in ("conv", "norm") else ""
        yield Event(
            key=f"missing {token.kind} {after}",
            title=f"the {short} is missing{after}",
            label=label,
            token=near,
            expected=name,
            found="nothing",
            why=_WHY.get(token.kind, "the reference has it"),
            suggestion=f"add the {short}{after}",
        )
    elif edit.kind == "extra":
        variant = token.kind in ("dropout", "gate", "avgpool", "pad") or (
            token.kind == "other" and token.node.module is not None
        )
        yield Event(
            key=f"extra {token.kind} {_shortened(token)}",
            title=f"{name}, which the reference does not have",
            label=label,
            token=token,
            expected="nothing",
            found=name,
            why="the network computes something else than the reference",
            suggestion="" if variant else f"remove the {name}",
            severity=VARIANT if variant else FAULT,
        )
    else:
        for change, (expected, found) in edit.changes.items():
            yield _change_event(label, edit, change, expected, found)


def _change_event(label: str, edit: Edit, change: str, expected: Any, found: Any) -> Event:
    token = edit.token
    pair = isinstance(expected, tuple)
    texts = [_size(value) if pair else str(value) for value in (expected, found)]
    title = {
        "bias": "convolutions with a bias" if found else "convolutions without a bias",
        "eps": f"normalization with eps {found} instead of {expected}",
        "affine": "normalization without scale and shift" if not found else "normalization with scale and shift",
        "name": f"{found} instead of {expected}",
        "kind": f"{described(token)} instead of {_NAMES.get(str(expected), str(expected))}",
        "fork": f"the shortcut goes around {found} convolutions instead of {expected}"
        if found
        else "the branch is added to itself, not to the shortcut",
        "out": f"{found} channels instead of {expected}",
    }.get(change, f"{change} {texts[1]} instead of {texts[0]}")
    if change == "bias" and token.kind == "linear":
        title = "the linear layer has no bias" if not found else "the linear layer has a bias"
    variant = change in ("bias", "eps", "affine") or (change == "name" and token.kind in ("act", "norm"))
    variant = variant or (change == "kind" and {expected, found} == {"gap", "avgpool"})
    attribute = {"out": "out_channels", "kernel": "kernel_size"}.get(change, change)
    return Event(
        key=f"{token.kind} {change} {texts} {token.role}",
        title=title,
        label=label,
        token=token,
        expected=f"{change} {texts[0]}" if change != "kind" else _NAMES.get(str(expected), str(expected)),
        found=f"{change} {texts[1]}" if change != "kind" else described(token),
        why=_CHANGES.get(change, ""),
        suggestion=f"{_shortened(token)}: {attribute}={texts[1]} -> {attribute}={texts[0]}"
        if pair or change == "out"
        else "",
        severity=VARIANT if variant else FAULT,
    )


# The whole network


def stage_depths(tokens: Sequence[Token], start: int) -> list[tuple[int, int]]:
    """Returns width and number of spatial convolutions of each stage, along the main path from a place on."""
    widths = [
        token.values["out"] for token in tokens[start:] if token.kind == "conv" and token.values["kernel"] != (1, 1)
    ]
    return [(width, len(list(group))) for width, group in itertools.groupby(widths)]


def first_block(tokens: Sequence[Token]) -> int:
    """Returns the position at which the first residual block begins, or 0 without one."""
    add = next((token for token in tokens if token.kind == "add" and token.values.get("around")), None)
    if add is None:
        return 0
    return next((place + 1 for place, token in enumerate(tokens) if token.node is add.fork), 0)


def _judged(events: list[Event], total: int, expected: Sequence[Token]) -> list[Event]:
    """Sets severities that depend on how often something occurs."""
    projections = [event for event in events if event.key == "option C"]
    bare = [event for event in events if event.key == "bare projection"]
    wanted = sum(token.kind == "add" and bool(convolutions(token.shortcut)) for token in expected)
    labels = {event.label for event in events if event.key == "no shortcut"}
    for event in projections:
        if len(projections) == total - wanted and total > 1:
            event.title = "projection in every block (option C)"
    if wanted and 0 < len(bare) < wanted:
        for event in bare:
            event.severity, event.title = FAULT, "the projection is not normalized, others are"
            event.why = "branch and shortcut have different scales in this block only"
            event.suggestion = "add a normalization after the 1x1 convolution"
    if total and len(labels) == total:
        for event in events:
            if event.key == "no shortcut":
                event.title = "no block has a shortcut: this is a plain network"
    for event in events:
        if event.key.startswith("stride less") and re.search(r"stage\d", event.label):
            event.key = "stride less"
    return _without_consequences(events)


def _without_consequences(events: list[Event]) -> list[Event]:
    """Leaves out strides of projections that repeat those of their branches."""
    unhalved = {event.label for event in events if event.key == "stride less"}
    return [event for event in events if not (event.key == "projection stride" and event.label in unhalved)]
