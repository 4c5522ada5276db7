"""Faults that no comparison of layers shows: in the state, the modes, the gradients and the scale of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.checking.findings import FAULT, VARIANT, Finding, Line
from resnetlab.checking.graph import Graph, Node, all_modules, answer, attempt, first_line, raised_at
from resnetlab.checking.path import Token
from resnetlab.checking.places import Built, assignment, class_line, is_yours, source_of
from resnetlab.core.randomness import torch_seeded

_SEED = 0
_CHEAP = 5e8
"""Multiply-accumulates per image of a network that can be trained for a few steps in a second or two."""
_EXPLODED = 4
"""Decades by which the scale of the last feature map may differ from the reference's."""


@dataclass(kw_only=True)
class Patient:
    """A network under examination, with what was recorded of it."""

    model: nn.Module
    graph: Graph
    tokens: list[Token]
    built: Built
    image: Tensor

    def label_of(self, path: str) -> str:
        """Returns stage and block of a module."""
        near = [path, path.rpartition(".")[0]] if "." in path else [path]
        for name in near:
            found = [
                token for token in self._all() if token.node.path == name or token.node.path.startswith(f"{name}.")
            ]
            found += [token for token in self._all() if token.node.path.startswith(f"{name}[")]
            if found:
                return found[0].label
        return ""

    def label_behind(self, node: Node | None) -> str:
        """Returns stage and block of the layer that a node reads from."""
        labels = {id(token.node): token.label for token in self._all()}
        while node is not None and id(node) not in labels:
            node = next(iter(node.inputs), None)
        return "" if node is None else labels[id(node)]

    def place_of(self, path: str, line: Line | None = None, label: str = "") -> tuple[str, Line | None]:
        """Returns the place of a module as text, and its line."""
        line = line or (self.built.line_in(self.model, path) if "[" not in path else None)
        label = label or self.label_of(path)
        parts = [str(line) if line else "", label, f"({path})" if path else ""]
        return "  ".join(part for part in parts if part), line

    def _all(self) -> Iterator[Token]:
        for token in self.tokens:
            yield token
            yield from token.shortcut


def examine(patient: Patient, reference: nn.Module | None, *, runs: bool) -> list[Finding]:
    """Returns the findings, in the order in which to fix them.

    Args:
        patient: the network; it is copied, never trained.
        reference: what the scale of values is compared with.
        runs: whether its forward pass comes to an end.
    """
    found = [*_unregistered(patient), *_shared(patient), *_lost(patient)]
    if not runs:
        return found
    found += [*_modes(patient), *_state(patient), *_probabilities(patient)]
    found += _scale(patient, reference)
    found += _training(patient)
    return found


def _finding(patient: Patient, path: str, title: str, line: Line | None = None, **values: Any) -> Finding:
    place, line = patient.place_of(path, line, values.pop("label", ""))
    return Finding(
        kind="behavior", severity=values.pop("severity", FAULT), title=title, place=place, line=line, **values
    )


# State


def _unregistered(patient: Patient) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name, module, registered in all_modules(patient.model):
        if not registered and any(True for _ in module.parameters()):
            groups.setdefault(name.partition("[")[0], []).append(name)
    for attribute, names in groups.items():
        around, _, last = attribute.rpartition(".")
        owner = patient.model.get_submodule(around) if around else patient.model
        line = assignment(type(owner), last) or patient.built.line_in(patient.model, attribute)
        label = patient.label_of(names[0]) or patient.label_of(attribute)
        stage = label.partition(".")[0] if label.startswith("stage") else label
        place = "  ".join(part for part in (str(line) if line else "", stage, f"({attribute})") if part)
        yield Finding(
            kind="behavior",
            severity=FAULT,
            title="modules in a plain Python container",
            place=place,
            line=line,
            expected="registered modules",
            found=f"{sum(name.count('.') == names[0].count('.') for name in names)} modules in a list, tuple or dict",
            why="their parameters are not registered: the optimizer does not train them, and state_dict() does not "
            "save them",
            suggestion=f"self.{last} = nn.ModuleList(...) or nn.Sequential(...)",
        )
    registered = {id(value) for value in [*patient.model.parameters(), *patient.model.buffers()]}
    hidden = {id(v) for _, module, is_known in all_modules(patient.model) if not is_known for v in module.parameters()}
    seen: set[str] = set()
    for token in patient._all():
        for role in ("weight", "bias"):
            value = token.node.tensors.get(role)
            if value is None or id(value) in registered or id(value) in hidden or token.node.path in seen:
                continue
            if token.node.is_computed or value.grad_fn is not None or value._base is not None:
                continue  # computed from parameters, as a standardized weight is
            seen.add(token.node.path)
            yield _finding(
                patient,
                token.node.path,
                f"the {role} is not registered as a parameter",
                token.node.place,
                expected="nn.Parameter",
                found=type(value).__name__,
                why="the optimizer does not train it, and state_dict() does not save it",
                suggestion="wrap it in nn.Parameter in __init__",
            )


def _shared(patient: Patient) -> Iterator[Finding]:
    """Yields one finding for equal modules that run more than once; of nested ones only the outermost is named."""
    calls = patient.graph.calls
    groups: dict[tuple[str, Line | None, int], list[str]] = {}
    for name, module, _ in all_modules(patient.model):
        around = name.rpartition(".")[0]
        if name and calls.get(name, 0) > max(1, calls.get(around, 0)) and next(module.parameters(), None) is not None:
            line = patient.built.line_in(patient.model, name) if "[" not in name else None
            groups.setdefault((type(module).__name__, line, calls[name]), []).append(name)
    for (kind, _, count), names in groups.items():
        labels = list(dict.fromkeys(filter(None, map(patient.label_of, names))))
        more = f", in {len(names)} blocks" if len(names) > 1 and len(labels) == len(names) else ""
        yield _finding(
            patient,
            names[0],
            f"one {kind} is used {count} times{more}",
            rank=-0.5,
            expected="a layer of its own in each place",
            found=f"{names[0]} in {count} places",
            why="both places share weights and running statistics, although their inputs have different distributions",
            suggestion="make one layer per place in __init__",
        )


def _lost(patient: Patient) -> Iterator[Finding]:
    """Yields one finding for layers that one line calls and whose result nothing uses."""
    groups: dict[Line | None, list[tuple[str, Node]]] = {}
    for node in patient.graph.lost:
        path, line = node.returned or (node.path, node.line)
        groups.setdefault(line, []).append((path, node))
    for line, nodes in groups.items():
        path, first = nodes[0]
        name = path.rpartition(".")[2] if first.returned else first.values.get("name", first.kind)
        yield _finding(
            patient,
            path,
            f"the result of {name} is not used" + _in_places([path for path, _ in nodes]),
            line,
            label=patient.label_of(path) if first.returned else patient.label_behind(first),
            rank=-1.5,
            expected="a result that the next layer reads",
            found="a result that nothing reads",
            why="the layer runs and changes nothing: its result is not assigned, or the next line reads another value",
            suggestion=f"assign the result of {name}, and pass it on",
        )


def _state(patient: Patient) -> Iterator[Finding]:
    """Yields a finding if a trained copy's state_dict does not lead to the same network."""
    fresh, trained = copy.deepcopy(patient.model), copy.deepcopy(patient.model)
    image = patient.image
    try:
        with torch_seeded(_SEED, "check"), torch.enable_grad():
            trained.train()
            for _ in range(2):
                trained(image * 2 + 1)
        fresh.load_state_dict(trained.state_dict())
    except Exception as error:  # of your code
        yield _finding(
            patient,
            "",
            "state_dict() cannot be loaded again",
            class_line(type(patient.model)),
            why="saved weights are lost",
            found=_first_line(error),
        )
        return
    with torch.no_grad():
        fresh.eval()
        trained.eval()
        one, other = (_seeded_logits(model, image) for model in (fresh, trained))
    if one is None or other is None or _close(one, other):
        return
    path = _first_different(fresh, trained, image)
    module = dict(trained.named_modules()).get(path, trained)
    yield _finding(
        patient,
        path,
        f"{type(module).__name__} keeps values outside the saved state",
        class_line(type(module)),
        expected="the same outputs from state_dict()",
        found="other outputs after loading",
        why="what training has learned here is neither saved nor moved to the GPU",
        suggestion="register the tensors with self.register_buffer(name, tensor)",
    )


# Modes


def _modes(patient: Patient) -> Iterator[Finding]:
    model, image = copy.deepcopy(patient.model).eval(), patient.image
    for _, module, _ in all_modules(model):
        module.training = False  # also of modules in plain containers, which eval() does not reach
    tests: tuple[tuple[str, Callable[[Callable[[Tensor], Any], Tensor], bool], dict[str, str]], ...] = (
        (
            "gives random answers in evaluation mode",
            _same_again,
            {
                "expected": "the same output for the same image",
                "found": "different outputs",
                "why": "predictions change from call to call",
                "suggestion": "pass training=self.training, or use a module such as nn.Dropout",
            },
        ),
        (
            "chooses its mode by whether gradients are enabled",
            _same_with_gradients,
            {
                "expected": "the same output with and without torch.no_grad()",
                "found": "different outputs in evaluation mode",
                "why": "model.eval() alone must decide: with gradients, as for attention maps, and in training without "
                "them, the layer does the wrong thing",
                "suggestion": "use self.training instead of torch.is_grad_enabled()",
            },
        ),
        (
            "uses the statistics of the batch in evaluation mode",
            _same_alone,
            {
                "expected": "an answer that depends on its own image only",
                "found": "an answer that changes with the rest of the batch",
                "why": "an image gets another prediction in another batch, and a batch of one is useless",
                "suggestion": "in evaluation mode, normalize with the running statistics, and do not update them",
            },
        ),
    )
    inputs = _inputs_of_leaves(model, image)
    random: set[str] = set()  # what gives random answers fails the other tests too
    for title, test, texts in tests:
        known = [one for one in inputs if one[0] not in random]
        guilty = [(name, module) for name, module, given in known if not _holds(test, module, given)]
        if test is _same_again:
            random = {name for name, _ in guilty}
        if guilty:
            name, module = guilty[0]
            kinds = {type(other) for _, other in guilty}
            line = class_line(type(module)) if is_yours(source_of(type(module))) else None
            more = f", in {len(guilty)} places" if len(guilty) > 1 and len(kinds) == 1 else ""
            yield _finding(patient, name, f"{type(module).__name__} {title}{more}", line, **texts)
        elif "" not in random and not _holds(test, model, image):
            random |= {""} if test is _same_again else set()
            token = next((token for token in patient._all() if token.node.is_training), None)
            path = token.node.path if token else ""
            line = token.node.line if token else class_line(type(patient.model))
            what = token.node.values.get("name", token.kind) if token else "the network"
            yield _finding(patient, path, f"{what} {title}", line, **texts)
    yield from _updated_in_evaluation(patient, inputs)


def _updated_in_evaluation(patient: Patient, inputs: list[tuple[str, nn.Module, Tensor]]) -> Iterator[Finding]:
    for name, module, given in inputs:
        state = _own_tensors(module)
        before = {key: value.detach().clone() for key, value in state.items()}
        with torch.no_grad():
            if attempt(module, given * 3 + 1) is None:
                continue
        after = _own_tensors(module)
        moved = [key for key, value in after.items() if key in before and not torch.equal(before[key], value)]
        if moved:
            yield _finding(
                patient,
                name,
                f"{type(module).__name__} updates {moved[0]} in evaluation mode",
                class_line(type(module)),
                expected="running statistics that only training changes",
                found=f"{', '.join(moved)} changed",
                why="predictions depend on the images that were seen before",
                suggestion="update running statistics only if self.training",
            )
            return


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    found = dict(module.named_buffers(recurse=False))
    return found | {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}


def _inputs_of_leaves(model: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Returns the modules without children, in the order of their first call, with the input of that call."""
    found: dict[str, tuple[str, nn.Module, Tensor]] = {}
    handles = []
    for name, module, _ in all_modules(model):
        if next(module.children(), None) is not None or isinstance(module, _PLAIN):
            continue

        def keep(module: nn.Module, inputs: tuple, output: Any, name: str = name) -> None:
            if name not in found and inputs and isinstance(inputs[0], Tensor):
                found[name] = name, module, inputs[0].detach().clone()

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        attempt(model, image)
    for handle in handles:
        handle.remove()
    return list(found.values())


_PLAIN = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Identity)


def _same_with_gradients(module: Callable[[Tensor], Any], x: Tensor) -> bool:
    with torch.no_grad():
        one = _tensor(module(x.clone()))
    with torch.enable_grad():
        other = _tensor(module(x.clone())).detach()
    return _close(one, other)


def _same_again(module: Callable[[Tensor], Any], x: Tensor) -> bool:
    with torch.no_grad():
        return _close(_tensor(module(x.clone())), _tensor(module(x.clone())))


def _same_alone(module: Callable[[Tensor], Any], x: Tensor) -> bool:
    if len(x) < 2:
        return True
    with torch.no_grad():
        whole = _tensor(module(x.clone()))
        try:
            alone = _tensor(module(x[:1].clone()))
        except ValueError:  # torch's batch normalization refuses a single value per channel in training mode
            return False
    return whole.shape[:1] != x.shape[:1] or _close(whole[:1], alone)


def _holds(test: Callable[[Callable[[Tensor], Any], Tensor], bool], module: nn.Module, x: Tensor) -> bool:
    """Whether a test holds, with calls that all start from the same buffers."""
    modules = [other for _, other, _ in all_modules(module)]
    state = [{key: value.detach().clone() for key, value in _own_tensors(other).items()} for other in modules]

    def call(given: Tensor) -> Any:
        try:
            return module(given)
        finally:
            with torch.no_grad():
                for other, before in zip(modules, state, strict=True):
                    for key, now in _own_tensors(other).items():
                        if key in before and now.shape == before[key].shape and not torch.equal(now, before[key]):
                            now.copy_(before[key])

    try:
        with torch_seeded(_SEED, "check"):
            return test(call, x)
    except Exception:  # of your code
        return True


# Outputs and gradients


def _probabilities(patient: Patient) -> Iterator[Finding]:
    if any(token.kind in ("softmax", "log_softmax") for token in patient.tokens):
        return  # named by the comparison with the reference
    result = patient.graph.result
    if not isinstance(result, Tensor) or result.ndim != 2:
        return
    sums = result.float().sum(1)
    if bool((result >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        output = patient.graph.output
        yield _finding(
            patient,
            output.path if output else "",
            "the network returns probabilities",
            output.place if output else class_line(type(patient.model)),
            expected="logits",
            found="values from 0 to 1 with sum 1",
            why="cross-entropy applies the softmax itself: with two, gradients become small and training slow",
            suggestion="return the result of the linear layer",
        )


def _scale(patient: Patient, reference: nn.Module | None) -> Iterator[Finding]:
    """Compares the scale of the last feature map, in evaluation mode at initial statistics, with the reference's."""
    found = _scales(patient.model, patient.image)
    if not found:
        return
    exploded = next((name for name, value in found if not math.isfinite(value)), None)
    wanted = [] if reference is None else _scales(reference, patient.image)
    if exploded is None and not wanted:
        return
    decades = 0.0 if exploded is not None else _decades(found[-1][1]) - _decades(wanted[-1][1])
    if exploded is None and abs(decades) <= _EXPLODED:
        return
    grows = exploded is not None or decades > 0
    if not grows and any(token.kind == "norm" for token in patient._all()):
        trained = (
            []
            if reference is None
            else [_scales(model, patient.image, training=True)[-1][1] for model in (patient.model, reference)]
        )
        if not trained or _decades(trained[0]) - _decades(trained[1]) >= -_EXPLODED:
            return  # training normalizes
    steps = [(name, _decades(value)) for name, value in found if math.isfinite(value)]
    name = exploded or _largest_step(steps, 1 if grows else -1)
    yield _finding(
        patient,
        name,
        f"the signal {'explodes' if grows else 'vanishes'} with depth at the initial weights",
        expected="a last feature map of standard deviation "
        + (f"{wanted[-1][1]:.2g}, as in the reference" if wanted else "about 1"),
        found="infinite or NaN values" if exploded is not None else f"{found[-1][1]:.2g}",
        why="the gradients explode or vanish in the same way, so the loss becomes NaN or does not fall",
        suggestion="initialize convolutions with nn.init.kaiming_normal_(weight, mode='fan_out', nonlinearity='relu')",
    )


def _scales(model: nn.Module, image: Tensor, *, training: bool = False) -> list[tuple[str, float]]:
    """Returns name and standard deviation of the outputs of all convolutions, in order."""
    found: list[tuple[str, float]] = []
    handles = []
    twin = copy.deepcopy(model).train(training)
    for name, module, _ in all_modules(twin):

        def keep(module: nn.Module, inputs: tuple, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.append((name, float(output.float().std())))

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        attempt(twin, image)
    return found


def _decades(value: float) -> float:
    return math.log10(max(value, 1e-30))


def _largest_step(steps: list[tuple[str, float]], sign: int) -> str:
    best, place, before = -math.inf, "", 0.0
    for name, value in steps:
        if sign * (value - before) > best and name:
            best, place = sign * (value - before), name
        before = value
    return place


def _training(patient: Patient) -> Iterator[Finding]:
    """Trains a copy for a few steps on one batch, and looks at the gradients."""
    model = copy.deepcopy(patient.model).train()
    image = patient.image
    image = torch.cat([image, image.flip(3) * 0.7 + 0.1])
    classes = patient.graph.result.shape[1] if isinstance(patient.graph.result, Tensor) else 10
    labels = torch.arange(len(image)) % max(1, classes)
    parameters = [value for value in model.parameters() if value.requires_grad]
    if not parameters:
        yield _finding(patient, "", "the network has no parameters to train", class_line(type(patient.model)))
        return
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    losses: list[float] = []
    before = {name: value.clone() for name, value in model.named_buffers()}
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        with torch_seeded(_SEED, "check"), torch.enable_grad():
            for _ in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(_tensor(model(image)).float(), labels)
                loss.backward()
                losses.append(float(loss.detach()))
                if len(losses) < 3:
                    nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
    except Exception as error:  # of your code
        yield from _failed_training(patient, error)
        return
    yield from _changed_modes(patient, modes, model)
    yield from _frozen(patient, before, model)
    yield from _dead(patient, model)


def _changed_modes(patient: Patient, before: dict[str, bool], trained: nn.Module) -> Iterator[Finding]:
    for name, module in trained.named_modules():
        if module.training != before[name]:
            yield _finding(
                patient,
                name,
                "the forward pass changes the mode of the network",
                class_line(type(module)),
                expected="a forward pass that leaves train() and eval() to the caller",
                found="eval() in forward" if before[name] else "train() in forward",
                why="normalization and dropout then stay in one mode, whatever train() or eval() the caller sets",
                suggestion="remove self.eval() and self.train() from forward",
            )
            return


def _frozen(patient: Patient, before: dict[str, Tensor], trained: nn.Module) -> Iterator[Finding]:
    """Yields running statistics that training does not change, and weights that no optimizer can change."""
    names = {id(value): name for name, value in [*patient.model.named_buffers(), *patient.model.named_parameters()]}
    after, fixed, frozen = dict(trained.named_buffers()), [], []
    for token in patient._all():
        variance, weight = (token.node.tensors.get(role) for role in ("var", "weight"))
        name = names.get(id(variance), "")
        if name in before and name in after and torch.equal(before[name], after[name]):
            fixed.append(token.node.path)
        if id(weight) in names and isinstance(weight, nn.Parameter) and not weight.requires_grad:
            frozen.append(token.node.path)
    if fixed and trained.training:
        yield _finding(
            patient,
            fixed[0],
            "training does not change the running statistics" + _in_places(fixed),
            expected="a running variance that follows the batches",
            found="the initial values after three steps",
            why="in evaluation mode, the normalization then uses values that have nothing to do with the images",
            suggestion="momentum=0.1 (0 keeps the old value), and update the statistics if self.training",
        )
    if frozen:
        yield _finding(
            patient,
            frozen[0],
            "weights that do not require gradients" + _in_places(frozen),
            severity=VARIANT,
            expected="requires_grad=True",
            found="requires_grad=False",
            why="the optimizer does not change them, so these layers keep their random values",
            suggestion="remove requires_grad=False, unless the weights are pretrained",
        )


def _in_places(paths: list[str]) -> str:
    return f", in {len(paths)} places" if len(paths) > 1 else ""


def _failed_training(patient: Patient, error: Exception) -> Iterator[Finding]:
    text = str(error)
    line = raised_at(error)
    if "inplace operation" in text or "in-place" in text:
        token = next((token for token in patient._all() if token.node.in_place), None)
        yield _finding(
            patient,
            token.node.path if token else "",
            "an in-place operation destroys a value that the gradient needs",
            token.node.line if token else line,
            expected="a backward pass",
            found=_first_line(error),
            why="the backward pass needs the value from before",
            suggestion="use the operation that returns a new tensor (inplace=False, x = x + y)",
        )
        return
    yield _finding(
        patient,
        "",
        "a training step fails",
        line or class_line(type(patient.model)),
        expected="forward and backward pass in training mode",
        found=_first_line(error),
        why="the network works in evaluation mode only",
    )


def _dead(patient: Patient, model: nn.Module) -> Iterator[Finding]:
    """Yields parameters that get no gradient in the third step, when zero-initialized scales have moved."""
    used = {id(value) for token in patient._all() for value in token.node.tensors.values()}
    names = {id(value): name for name, value in patient.model.named_parameters()}
    running = {name for key, name in names.items() if key in used}
    unused: list[str] = []
    dead: list[str] = []
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        if value.grad is None:
            (dead if name in running else unused).append(name)
        elif value.ndim >= 2 and not bool(value.grad.any()):
            dead.append(name)
    for names, title, why, severity in (
        (unused, "never used in the forward pass", "it costs memory, and weight decay changes it for nothing", FAULT),
        (
            dead,
            "gets no gradient",
            "it never learns: inputs or later weights are zero, or detach() or no_grad() cuts the gradient off",
            FAULT,
        ),
    ):
        if not names:
            continue
        path = names[0].rpartition(".")[0]
        around = path.rpartition(".")[0] if len(names) > 1 and path.count(".") > 1 else path
        more = f", and {len(names) - 1} more" if len(names) > 1 else ""
        yield _finding(
            patient,
            path,
            f"{names[0]} {title}{more}",
            severity=severity,
            expected="a gradient in every layer",
            found=f"none in {names[0]}",
            why=why,
            suggestion="remove it, or use it in forward"
            if title.startswith("never")
            else f"remove detach() and no_grad(), and initialize {around or names[0]} with other values than zeros",
        )


def smaller(model: nn.Module, image: Tensor, macs: int) -> Tensor:
    """Returns a smaller image if the network takes it, so that training steps are quick.

    Args:
        model: the network.
        image: (N, C, H, W).
        macs: multiply-accumulates of one such image.
    """
    size = image.shape[2]
    for smaller_size in (64, 48, 32):
        if smaller_size >= size:
            continue
        small = F.interpolate(image, (smaller_size, smaller_size), mode="bilinear", antialias=True)
        with torch.no_grad():
            if attempt(model, small) is None:
                return image
        image = small
        if macs * (smaller_size / size) ** 2 < _CHEAP:
            break
    return image


def _first_different(one: nn.Module, other: nn.Module, image: Tensor) -> str:
    """Returns the first module without children whose output differs between two networks."""
    outputs: list[dict[str, Tensor]] = []
    for model in (one, other):
        found: dict[str, Tensor] = {}
        handles = []
        for name, module in model.named_modules():
            if next(module.children(), None) is None:

                def keep(module: nn.Module, inputs: tuple, output: Any, name: str = name, to: dict = found) -> None:
                    if isinstance(output, Tensor):
                        to.setdefault(name, output.detach().clone())

                handles.append(module.register_forward_hook(keep))
        with torch.no_grad():
            attempt(model, image)
        for handle in handles:
            handle.remove()
        outputs.append(found)
    return next((name for name, value in outputs[0].items() if not _close(value, outputs[1].get(name, value))), "")


def _seeded_logits(model: nn.Module, image: Tensor) -> Tensor | None:
    with torch_seeded(_SEED, "check"):
        return answer(model, image)


def _tensor(result: Any) -> Tensor:
    while isinstance(result, (tuple, list)):
        result = result[0]
    if not isinstance(result, Tensor):
        raise TypeError(f"expected a tensor, got {type(result).__name__}")
    return result


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(1e-6, float(one.detach().abs().max()))
    return bool(((one - other).abs() <= 1e-4 * scale).all()) or (
        torch.equal(one.isnan(), other.isnan()) and bool(one.isnan().any())
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:160]
