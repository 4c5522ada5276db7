"""`check`: is a network that you wrote what it is meant to be, and if not, where is it wrong?"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as is_uninitialized

from resnetlab.checking.behavior import Patient, examine, smaller
from resnetlab.checking.findings import FAULT, VARIANT, CheckReport, Finding, counted, plural
from resnetlab.checking.graph import Graph, Node, answer, first_line, multiply_accumulates, record
from resnetlab.checking.parts import check_part, part_named
from resnetlab.checking.path import Edit, Token, align, convolutions, main_path, reference_labels, steps_of
from resnetlab.checking.places import Built, class_line
from resnetlab.checking.proof import key_map, randomize, repaired, replay, restore, transfer
from resnetlab.checking.structure import (
    block_rows,
    events_of,
    findings_of,
    first_block,
    place_of,
    shape_text,
    stage_depths,
)
from resnetlab.checking.subject import Subject, is_lazy, open_subject, parsed_arguments, part_object
from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary import blueprint

_TOLERANCE = 1e-4


def check(
    obj: Any,
    like: str = "auto",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    args: Mapping[str, Any] | str | None = None,
) -> CheckReport:
    """Returns the report about a network or part; `resnetlab.check` describes arguments and errors."""
    if (part := part_named(like)) is not None:
        return check_part(part_object(obj, part), part)
    if like != "auto":
        model_config(like)  # an unknown name is an error here
    if image_size is not None:
        image_size = check_integer("image_size", image_size, 1)
    if channels is not None:
        channels = check_integer("channels", channels, 1)
    arguments = parsed_arguments(args) if isinstance(args, str) else args
    with torch_seeded(0, "check"):
        subject = open_subject(obj, arguments=arguments, channels=channels)
        return _Examination(subject, like, image_size, channels).report()


@dataclass
class _Reference:
    """The network that another one is compared with."""

    name: str
    model: ResNet
    graph: Graph
    tokens: list[Token]


class _Examination:
    def __init__(self, subject: Subject, like: str, image_size: int | None, channels: int | None) -> None:
        self.subject = subject
        self.model = subject.model
        self._mode = self.model.training
        self.channels = channels or _first_channels(self.model) or 3
        size = image_size or (224 if like == "auto" else CATALOG[like].image_size)
        self.image = torch.randn(2, self.channels, size, size, generator=torch.Generator().manual_seed(0))
        if is_lazy(self.model):
            self._infer_shapes()
        self.model.eval()
        self.graph = record(self.model, self.image, subject.built)
        self.tokens = main_path(self.graph)
        self.like = nearest(self.tokens, self.channels) if like == "auto" else like
        self.chosen = like == "auto"
        self.runs = self.graph.error is None and not any(node.problem for node in self.graph.nodes)
        self.pairs: list[tuple[Token, Token]] = []

    def report(self) -> CheckReport:
        """Returns what was found."""
        try:
            return self._report()
        finally:
            self.model.train(self._mode)

    def _report(self) -> CheckReport:
        classes = self._classes()
        fields: dict[str, Any] = {"in_channels": self.channels, "num_classes": classes}
        reference = self._reference(fields)
        depth_findings = []
        changed = self._other_depths(reference)
        if changed:
            depth_findings, fields_changed = changed
            with contextlib.suppress(UserError):
                reference = self._reference({**fields, **fields_changed})
        edits, self.pairs = align(reference.tokens, self.tokens, is_cut=self.graph.error is not None)
        self.unequal = _unequal_convolutions(edits)
        other = None if changed else self._other_architecture(reference)
        events = events_of(edits, reference.tokens) if self.tokens and other is None else []
        structure = [*depth_findings, *findings_of(events)] if other is None else [other]
        shapes = self._shape_findings(structure, edits)
        patient = Patient(
            model=self.model,
            graph=self.graph,
            tokens=self.tokens,
            built=self.subject.built,
            image=smaller(self.model, self.image, multiply_accumulates(self.graph)) if self.runs else self.image,
        )
        untouched = copy.deepcopy(reference.model) if self.runs else None
        behavior = examine(patient, untouched, runs=self.runs)
        proof = self._prove(reference, structure, edits) if other is None else []
        if any(finding.severity == FAULT for finding in behavior):
            proof = [finding for finding in proof if finding.line is not None]  # the behavior explains it
        findings = _ordered([*shapes, *structure, *proof, *behavior])
        report = CheckReport(name=self.subject.name, like=self.like, findings=findings)
        report.verdict = self._verdict(reference, findings)
        steps = steps_of(reference.tokens, self.tokens, self.graph.error is not None)
        rows = {finding.block: block_rows(steps, finding.block) for finding in findings}
        report.blocks = {label: found for label, found in rows.items() if found}
        if self.runs and other is None:
            report.key_map = key_map(self.pairs, self.model, reference.model)
        if report.ok and self.subject.origin:
            channels = "" if self.channels == 1 else f" --channels {self.channels}"  # digits are gray
            report.next_step = f"resnetlab train digits{channels} --model {self.subject.origin}"
        return report

    def _infer_shapes(self) -> None:
        with torch.no_grad():
            try:
                self.model(self.image)
            except Exception:  # of your code; the recording names the place
                return
            for module in self.model.modules():  # that never run; the examination names them
                infer = getattr(module, "initialize_parameters", None)
                if infer is not None and any(map(is_uninitialized, module.parameters(recurse=False))):
                    infer(self.image.new_zeros(1, 1, 1, 1))

    def _reference(self, fields: Mapping[str, Any]) -> _Reference:
        config = model_config(self.like, fields)
        with torch_seeded(0, "reference"):
            model = ResNet(config).eval()
        graph = record(model, self.image, Built())
        tokens = main_path(graph)
        reference_labels(tokens)
        return _Reference(self.like, model, graph, tokens)

    def _classes(self) -> int:
        result = self.graph.result
        if isinstance(result, Tensor) and result.ndim >= 2:
            return int(result.shape[1])
        linear = [token for token in self.tokens if token.kind == "linear"]
        return linear[-1].values["out"] if linear else 10

    def _other_depths(self, reference: _Reference) -> tuple[list[Finding], dict[str, Any]] | None:
        """Returns findings and the fields to change if stages have other numbers of blocks or other widths."""
        if self.graph.error is not None or any(token.node.repeated for token in self.tokens if token.kind == "conv"):
            return None
        start, wanted_start = first_block(self.tokens), first_block(reference.tokens)
        if not start or not wanted_start:
            return None
        got, wanted = stage_depths(self.tokens, start), stage_depths(reference.tokens, wanted_start)
        config = reference.model.config
        if got == wanted or _has_bottlenecks(self.tokens) != (config.block == "bottleneck"):
            return None
        each = 1 if config.block == "bottleneck" else 2
        if len(got) != len(wanted):
            return self._other_stages(got, wanted, config, each)
        depths = [count / each for _, count in got]
        scales = [width / expected for (width, _), (expected, _) in zip(got, wanted, strict=True)]
        widths = [width * scale for width, scale in zip(config.widths, scales, strict=True)]
        if any(value != int(value) for value in (*depths, *widths)):
            return None
        if set(scales) != {1.0} and (config.width_per_group != 64 or config.groups != 1):
            return None
        differs = [one != other for one, other in zip(got, wanted, strict=True)]
        is_own = self.chosen and all(differs) and not _names(self.subject.name, self.like)
        found = []
        for stage, ((width, _), (expected, _)) in enumerate(zip(got, wanted, strict=True), 1):
            depth, blocks = int(depths[stage - 1]), config.depths[stage - 1]
            if depth != blocks:
                title = f"{plural(depth, 'block')} instead of {blocks}"
                found.append(self._stage_finding(stage, title, plural(blocks, "block"), plural(depth, "block")))
            if width != expected:
                title = f"width {width} instead of {expected}"
                found.append(self._stage_finding(stage, title, f"{expected} channels", f"{width} channels"))
        for finding in found:
            finding.severity = VARIANT if is_own else FAULT
        return found, {"depths": tuple(map(int, depths)), "widths": tuple(map(int, widths))}

    def _other_stages(
        self, got: list[tuple[int, int]], wanted: list[tuple[int, int]], config: ResNetConfig, each: int
    ) -> tuple[list[Finding], dict[str, Any]] | None:
        """Returns a finding and the fields to change if the last stages are missing, or if there are more."""
        common = min(len(got), len(wanted))
        extra = got[common:]
        if not common or got[:common] != wanted[:common] or wanted[0][0] != config.widths[0]:
            return None
        finding = self._stage_finding(
            common + 1 if extra else common,
            f"{plural(len(got), 'stage')} instead of {len(wanted)}",
            plural(len(wanted), "stage"),
            plural(len(got), "stage"),
        )
        last = common + 1
        finding.suggestion = f"remove stage {last}" if extra else f"add stage {last}, of {wanted[common][0]} channels"
        depths = (*config.depths[:common], *(max(1, count // each) for _, count in extra))
        return [finding], {"depths": depths, "widths": (*config.widths[:common], *(width for width, _ in extra))}

    def _stage_finding(self, stage: int, title: str, expected: str, found: str) -> Finding:
        token = self._first_of_stage(stage)
        return Finding(
            kind="structure",
            severity=FAULT,
            title=title,
            place=place_of(f"stage{stage}", token),
            line=token.node.place if token else None,
            expected=expected,
            found=found,
            why="the name of the network stands for certain depths and widths of the stages",
            suggestion=f"stage {stage}: {expected}",
        )

    def _other_architecture(self, reference: _Reference) -> Finding | None:
        """Returns a finding if the network is not a changed form of the reference, so that comparing makes no sense."""
        if self.graph.error is not None:
            return None
        found, wanted = _signature_of_path(self.tokens), _signature_of(reference.model.config)
        total, distance = sum(wanted.values()), _distance(found, wanted)
        closest = nearest(self.tokens, self.channels)
        rest = _distance(found, _signature_of(CATALOG[closest].config))
        is_unlike = distance > 0.75 * (total + sum(found.values()))
        if not is_unlike and not (2 * distance > total and 4 * rest <= distance):
            return None
        convolutions_found = sum(found.values())
        is_closer = rest < 0.5 * distance
        return Finding(
            kind="structure",
            severity=VARIANT if self.chosen else FAULT,
            title="nothing in the catalog is similar: name what you wrote with --like"
            if self.chosen
            else f"another architecture than {self.like}",
            place=self.subject.name,
            expected=f"the {total} convolutions of {self.like}",
            found=f"{convolutions_found} convolutions" + (f", most similar to {closest}" if is_closer else ""),
            why="too few layers correspond for a comparison",
            suggestion=f"compare with --like {closest}" if is_closer else "name what you wrote with --like",
        )

    def _first_of_stage(self, stage: int) -> Token | None:
        start = first_block(self.tokens)
        spatial = [token for token in self.tokens[start:] if token.kind == "conv" and token.values["kernel"] != (1, 1)]
        groups = [list(group) for _, group in itertools.groupby(spatial, key=lambda token: token.values["out"])]
        return groups[stage - 1][0] if stage <= len(groups) else None

    def _shape_findings(self, structure: list[Finding], edits: Sequence[Edit]) -> list[Finding]:
        """Returns failures of the forward pass that no difference of the structure explains."""
        found = []
        for node in self.graph.nodes:
            if not node.problem:
                continue
            token = next((token for token in _all(self.tokens) if token.node is node), None)
            label = token.label if token else ""
            explained = [
                finding
                for finding in structure
                if finding.severity == FAULT
                and label
                and (label in finding.labels or _same_stage(label, finding.labels))
            ]
            if explained:
                if explained[0].kind != "shape":
                    explained[0].why = f"{explained[0].why}. The forward pass fails here".removeprefix(". ")
                explained[0].kind = "shape"
                explained[0].rank = -1
                continue
            found.append(self._shape_finding(node, token))
        if self.graph.error is not None:
            found += self._end_finding(structure)
        return found[:2]

    def _shape_finding(self, node: Node, token: Token | None) -> Finding:
        sources = [source for source in node.inputs if source is not None]
        given = " and ".join(shape_text(source.shape) for source in sources)
        values = node.values
        title = _PROBLEMS.get(node.kind, "the shapes do not fit")
        expected, why, suggestion = "shapes that fit", "the forward pass stops here", ""
        if node.kind == "conv":
            expected = f"{values['in']} channels"
            is_first = bool(sources) and sources[0].kind == "image"
            why = (
                f"the images have {sources[0].shape[1]} channels, the first convolution expects {values['in']}"
                if is_first
                else "the layer before has another number of channels"
            )
            suggestion = f"in_channels={sources[0].shape[1]}" if sources else ""
        elif node.kind == "linear":
            expected = f"{values['in']} features"
            flat = sources[0].shape[1:] if sources else ()
            if len(flat) == 3 and math.prod(flat) == values["in"]:
                title = "flatten is missing before the linear layer"
            why = "another number of features reaches it: average the last feature map, then flatten"
            suggestion = "x = self.avgpool(x).flatten(1) before the linear layer"
        elif node.kind == "add":
            expected = "branch and shortcut of one shape"
            why = "the sum needs equal shapes: project the shortcut where channels or resolution change"
        elif node.kind == "norm":
            expected = "as many channels as the convolution before it returns"
        label = token.label if token else ""
        line = node.line or node.built
        parts = [str(node.built or node.line or ""), label, f"({node.path})" if node.path else ""]
        return Finding(
            kind="shape",
            severity=FAULT,
            title=title,
            place="  ".join(part for part in parts if part),
            expected=expected,
            found=given or "another shape",
            why=why,
            suggestion=suggestion,
            line=node.built or line,
            rank=-1,
        )

    def _end_finding(self, structure: list[Finding]) -> list[Finding]:
        """Returns the exception that ended the forward pass, unless a fault of the structure near it explains it."""
        error, line = self.graph.error, self.graph.error_line
        assert error is not None
        faults = [finding for finding in structure if finding.severity == FAULT]
        is_shape = isinstance(error, (RuntimeError, ValueError, IndexError))
        if faults and is_shape:
            faults[-1].rank = -1
            return []
        last = self.tokens[-1] if self.tokens else None
        label = last.label if last else ""
        parts = [str(line) if line else "", label, f"({self.graph.error_path})" if self.graph.error_path else ""]
        return [
            Finding(
                kind="shape" if is_shape else "behavior",
                severity=FAULT,
                title="the forward pass fails",
                place="  ".join(part for part in parts if part),
                expected=f"an answer for images of {shape_text(self.image.shape)}",
                found=f"{type(error).__name__}: {first_line(error)}"[:160],
                why="nothing after this line runs",
                line=line,
                rank=-2,
            )
        ]

    def _prove(self, reference: _Reference, structure: list[Finding], edits: Sequence[Edit]) -> list[Finding]:
        """Marks findings as proved, and returns a finding if equal structures give unequal outputs."""
        randomize(reference.model)
        with torch.no_grad():
            target = reference.model(self.image)
            faults = [finding for finding in structure if finding.severity == FAULT]
            if self.runs:
                faithful = _agree(self._replayed(), self.graph.result)
                before = transfer(self.pairs)
                try:
                    if any(token.node.is_computed for token in _all(self.tokens)):
                        return []
                    real = answer(self.model, self.image)
                    if not edits:
                        return self._equality(reference, real, target)
                    proved = faithful and _agree(self._repaired(reference), target)
                finally:
                    restore(before)
            else:
                if self.graph.error is not None:
                    return []
                proved = _agree(self._repaired(reference), target)
            for finding in faults:
                self._say(finding, proved, len(faults))
        return []

    def _say(self, finding: Finding, proved: bool, count: int) -> None:
        finding.proved = proved
        change = "this change alone" if count == 1 else f"these {count} changes"
        if proved:
            finding.proof = f"with {change} the output equals {self.like}'s"
        elif finding.suggestion:
            finding.proof = "the change could not be tried on a copy"

    def _equality(self, reference: _Reference, real: Any, target: Tensor) -> list[Finding]:
        if isinstance(real, Tensor) and _agree(real, target):
            return []
        tokens = main_path(record(self.model, self.image, self.subject.built))  # now with the reference's weights
        align(reference.tokens, tokens)  # which labels them
        differing = next((token for token in _all(tokens) if token.values.get("differs")), None)
        place = place_of(differing.label, differing) if differing else self.subject.name
        kind = type(differing.node.module).__name__ if differing and differing.node.module else "a layer"
        return [
            Finding(
                kind="equality",
                severity=FAULT,
                title=f"{kind} computes other values than {self.like}'s",
                place=place,
                expected="equal outputs for equal weights",
                found="other outputs",
                why="structure and weights are equal, so one layer computes something else",
                line=class_line(type(differing.node.module)) if differing and differing.node.module else None,
            )
        ]

    def _replayed(self) -> Tensor | None:
        try:
            return replay(self.tokens, self.image)
        except (RuntimeError, NotImplementedError, KeyError, TypeError, ValueError):
            return None

    def _repaired(self, reference: _Reference) -> Tensor | None:
        try:
            return repaired(reference.tokens, self.tokens, self.image)
        except (RuntimeError, NotImplementedError, KeyError, TypeError, ValueError):
            return None

    def _verdict(self, reference: _Reference, findings: list[Finding]) -> str:
        shape = " x ".join(map(str, (1, *self.image.shape[1:])))
        how = "nearest in the catalog; " if self.chosen else ""
        first = f"{self.subject.name} against {self.like} ({how}{shape})"
        if not findings and any(token.node.is_computed for token in _all(self.tokens)):
            return f"{first}\nNo difference from {self.like} found; weights are computed, so outputs were not compared"
        if not findings:
            own = {name for name, _ in self.model.named_parameters()}
            tensors = len(own & key_map(self.pairs, self.model, reference.model).keys())
            return f"{first}\nEqual to {self.like} up to names ({tensors} tensors)"
        total = len(convolutions(reference.tokens))
        matched = sum(one.kind == "conv" and id(one) not in self.unequal for one, _ in self.pairs)
        return f"{first}\n{counted(findings)}; {matched} of {total} convolutions match"


_PROBLEMS = {
    "conv": "the convolution expects another number of channels",
    "linear": "the linear layer expects another number of features",
    "add": "branch and shortcut have different shapes",
    "norm": "the normalization expects another number of channels",
    "maxpool": "the pooling does not fit",
}


def nearest(tokens: Sequence[Token], channels: int) -> str:
    """Returns the name of the catalog whose convolutions are most like those of a path."""
    found = _signature_of_path(tokens)
    total = sum(found.values())
    blocks = sum(token.kind == "add" for token in tokens)
    best, name = float("inf"), "resnet18"
    for candidate, entry in CATALOG.items():
        config = entry.config
        if not 0.5 <= sum(config.depths) / max(1, blocks or total // 2) <= 2:
            continue
        cost = _distance(found, _signature_of(config)) + _preference(candidate)
        if (blocks == 0) != (config.shortcut == "none"):
            cost += 2
        if cost < best:
            best, name = cost, candidate
    return name


def _preference(name: str) -> float:
    """Returns a small cost for members of the family that are meant only when they fit exactly."""
    return (
        0.5 if name.startswith(("zoo_", "table1_", "d2l_", "scratch_")) else 0.0 if name.startswith("resnet") else 0.1
    )


def _signature(pairs: Any) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def _signature_of_path(tokens: Sequence[Token]) -> dict[Any, int]:
    return _signature((token.values["kernel"], token.values["out"]) for token in convolutions(tokens))


def _has_bottlenecks(tokens: Sequence[Token]) -> bool:
    """Whether most of the convolutions along the main path are 1x1."""
    kernels = [token.values["kernel"] for token in tokens if token.kind == "conv"]
    return 2 * sum(kernel == (1, 1) for kernel in kernels) > len(kernels)


def _names(name: str, like: str) -> bool:
    """Whether a network's name has the number of the reference's, as MyResNet34 has that of resnet34."""
    return not set(re.findall(r"\d+", like)).isdisjoint(re.findall(r"\d+", name))


def _signature_of(config: ResNetConfig) -> dict[Any, int]:
    layers = [value for value in blueprint(config).parameters() if value.ndim == 4]
    return _signature((tuple(value.shape[2:]), value.shape[0]) for value in layers)


def _distance(one: Mapping[Any, int], other: Mapping[Any, int]) -> int:
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in {*one, *other})


def _first_channels(model: nn.Module) -> int | None:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.parameter.UninitializedParameter):
            return None
        if isinstance(weight, Tensor) and weight.ndim == 4:
            return int(weight.shape[1]) * int(getattr(module, "groups", 1) or 1)
    return None


def _all(tokens: Sequence[Token]) -> list[Token]:
    return [found for token in tokens for found in (token, *_all(token.shortcut))]


def _all_edits(edits: Sequence[Edit]) -> list[Edit]:
    return [found for edit in edits for found in (edit, *_all_edits(edit.inner))]


def _same_stage(label: str, labels: Sequence[str]) -> bool:
    return any(other.partition(".")[0] == label.partition(".")[0] for other in labels)


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Returns faults before variants, failures of the forward pass first."""
    kinds = {"shape": 0, "equality": 1, "part": 1, "structure": 2, "behavior": 3}
    return sorted(findings, key=lambda finding: (finding.severity != FAULT, finding.rank, kinds[finding.kind]))


def _agree(found: Any, target: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(target, Tensor) or found.numel() != target.numel():
        return False
    scale = float(target.abs().max()) + 1e-12
    return float((found.reshape(target.shape) - target).abs().max()) <= _TOLERANCE * scale


def _unequal_convolutions(edits: Sequence[Edit]) -> set[int]:
    return {
        id(edit.expected)
        for edit in _all_edits(edits)
        if edit.expected is not None and edit.expected.kind == "conv" and edit.changes.keys() - {"bias"}
    }
