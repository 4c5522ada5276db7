"""The contents of a weights file, read without building a network."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from resnetlab.core.console import render
from resnetlab.core.files import printable
from resnetlab.core.runs import Run
from resnetlab.models.config import ResNetConfig
from resnetlab.weights.file import weights_path
from resnetlab.weights.foreign import read_head, read_weights_file
from resnetlab.weights.structure import same_structure
from resnetlab.weights.tensors import (
    TensorInfo,
    is_checkpoint,
    is_ours,
    is_safetensors,
    matches_digest,
    network_prefix,
    read_description,
    read_header,
    read_safetensors,
    shown,
    without_prefix,
)

_BUFFERS = ("running_", "moving_", "num_batches")
"""Parts of the names of tensors that normalization counts and does not learn, in torch and Gluon."""
_FORMS = {
    "safetensors": "a safetensors file of another program",
    "torch": "a file of torch.save",
    "gluon": "a .params file of Gluon",
}
_VERDICTS = {True: "matches the content", False: "DOES NOT MATCH the content: the file is damaged", None: "not checked"}
_NETWORK_KEYS = ("schema", "config", "class_names", "preprocessing", "training")
_SHOWN_CLASSES, _SHOWN_TENSORS, _SHOWN_NETWORKS, _LONGEST, _DEEPEST = 8, 3, 3, 300, 5


@dataclass(frozen=True, kw_only=True)
class WeightsSummary:
    """The contents of a weights file; `print` shows them.

    Attributes:
        path: the file.
        form: "resnetlab", "safetensors", "torch" or "gluon".
        size: the file's size in bytes.
        tensors: all tensors.
        description: the header of a resnetlab file: "schema", "config", "class_names", "preprocessing", "provenance".
        digest: the digest in that header.
        digest_matches: whether tensors and description match the digest; None if it was not checked.
        nesting: how the tensors of another program's file were nested, such as "'state_dict', names without 'module.'".
        ignored: other entries of such a file.
        networks: of another program's file, the networks of the catalog that have its layers; names do not matter.
        sizes: input channels and classes of these networks, or None.
        lists_tensors: whether `print` lists all tensors.
    """

    path: Path
    form: str
    size: int
    tensors: tuple[TensorInfo, ...]
    description: Mapping[str, Any] | None = None
    digest: str | None = None
    digest_matches: bool | None = None
    nesting: str = ""
    ignored: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    sizes: tuple[int, int] | None = None
    lists_tensors: bool = False

    @property
    def parameters(self) -> int:
        """Number of learned values: all but running statistics and counters."""
        learned = [tensor for tensor in self.tensors if not any(part in tensor.name for part in _BUFFERS)]
        return sum(math.prod(tensor.shape) for tensor in learned)

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())

    @property
    def architecture(self) -> dict[str, Any]:
        """Fields of a resnetlab file's configuration that differ from the defaults of `ResNetConfig`."""
        config = _mapping(_mapping(self.description).get("config"))
        defaults = {field.name: field.default for field in dataclasses.fields(ResNetConfig)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
        return {name: value for name, value in config.items() if name not in plain or plain[name] != value}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for title, text in (*self._description_rows(), *self._content_rows()):
            table.add_row(Text(shown(title[:40])), Text(shown(text)))
        yield table
        if self.lists_tensors:
            yield ""
            yield _tensor_table(self.tensors)
        elif self.description is None:
            left_out = len(self.tensors) > 2 * _SHOWN_TENSORS
            ends = (*self.tensors[:_SHOWN_TENSORS], *self.tensors[-_SHOWN_TENSORS:]) if left_out else self.tensors
            yield ""
            yield _tensor_table(ends, gap_after=_SHOWN_TENSORS if left_out else None)

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in render(self).splitlines())

    def _description_rows(self) -> Iterator[tuple[str, str]]:
        yield "file", printable(self.path)
        if self.description is None:
            yield "form", _FORMS[self.form]
            yield from [("unwrapped", self.nesting)] if self.nesting else []
            yield from [("ignored", _short(", ".join(self.ignored)))] if self.ignored else []
            if self.sizes is not None:
                names = " or ".join(self.networks[:_SHOWN_NETWORKS])
                yield (
                    "structure",
                    f"{names}, {self.sizes[0]} channel{'' if self.sizes[0] == 1 else 's'}, {self.sizes[1]:,} classes",
                )
            return
        is_network = "config" in self.description
        kind = "a network of resnetlab" if is_network else "tensors of resnetlab without a network"
        yield "form", f"{kind}, schema {_text(self.description.get('schema'))}"
        if is_network:
            yield "architecture", _text(self.architecture) or "defaults of ResNetConfig"
            yield "classes", _classes(self.description.get("class_names"))
            yield "preprocessing", _text(self.description.get("preprocessing"))
            yield from [("training", trained)] if (trained := _trained(self.description)) else []
        others = {key: value for key, value in self.description.items() if key not in (*_NETWORK_KEYS, "progress")}
        for key, value in (*_mapping(others.pop("provenance", None)).items(), *others.items()):
            yield key.replace("_", " "), _text(value)
        yield "digest", f"{_text(self.digest)}, {_VERDICTS[self.digest_matches]}"

    def _content_rows(self) -> Iterator[tuple[str, str]]:
        kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in self.dtypes.items())
        yield "tensors", f"{len(self.tensors):,}: {kinds}"
        yield "parameters", f"{self.parameters:,}"
        yield "size", f"{self.size:,} bytes"


def inspect_weights(path: str | Path | Run, *, tensors: bool = False, verify: bool = True) -> WeightsSummary:
    """Returns the contents of a weights file. No network is built, and nothing in the file is executed.

    Args:
        path: a file of resnetlab, safetensors, torch.save or Gluon; or a run, for its trained network.
        tensors: whether `print` lists every tensor.
        verify: whether to check the digest of a resnetlab file, which reads its tensors; otherwise only the header is
            read.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    path = weights_path(path)
    if is_safetensors(read_head(path)):
        header = read_header(path)
        if is_ours(header.metadata):
            description, digest = read_description(path, header.metadata)
            matches = matches_digest(path, read_safetensors(path)[0], description, digest) if verify else None
            return WeightsSummary(
                path=path,
                form="resnetlab",
                size=path.stat().st_size,
                tensors=_of_network(header.tensors, description),
                description=description,
                digest=digest,
                digest_matches=matches,
                lists_tensors=tensors,
            )
    found = read_weights_file(path)
    alike = same_structure(found.tensors)
    return WeightsSummary(
        path=path,
        form=found.form,
        size=path.stat().st_size,
        tensors=tuple(
            TensorInfo(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
            for name, tensor in found.tensors.items()
        ),
        nesting=found.nesting,
        ignored=found.ignored,
        networks=tuple(alike),
        sizes=next(((config.in_channels, config.num_classes) for config in alike.values()), None),
        lists_tensors=tensors,
    )


def _of_network(tensors: Sequence[TensorInfo], description: Mapping[str, Any]) -> tuple[TensorInfo, ...]:
    """Returns the tensors of the network; a checkpoint has others too."""
    prefix = network_prefix([tensor.name for tensor in tensors], description)
    named = without_prefix({tensor.name: tensor for tensor in tensors}, prefix)
    return tuple(dataclasses.replace(tensor, name=name) for name, tensor in named.items())


def _tensor_table(tensors: Sequence[TensorInfo], *, gap_after: int | None = None) -> Table:
    table = Table("tensor", "type", "shape", box=None, pad_edge=False)
    for place, tensor in enumerate(tensors):
        if place == gap_after:
            table.add_row("...")
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(shown(tensor.name), overflow="fold"), tensor.dtype, Text(_short(shape)))
    return table


def _classes(names: Any) -> str:
    if not isinstance(names, list):
        return _text(names)
    shown_names = ", ".join(_text(name) for name in names[:_SHOWN_CLASSES])
    return f"{len(names):,}: {shown_names}{', ...' if len(names) > _SHOWN_CLASSES else ''}"


def _text(value: Any, depth: int = 0) -> str:
    """Returns any JSON value as a short text."""
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        entries = (f"{key.replace('_', ' ')} {_text(entry, depth + 1)}" for key, entry in value.items())
        return _short(", ".join(entries) if depth == 0 else f"({', '.join(entries)})")
    if isinstance(value, list):
        return _short(f"({', '.join(_text(entry, depth + 1) for entry in value)})")
    return _short("none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _trained(description: Mapping[str, Any]) -> str:
    """Returns how far the training of the network is, if that is recorded."""
    training = _mapping(description.get("training"))
    if not {"epoch", "epochs"} <= training.keys():
        return ""
    done = f"{_text(training['epoch'])} of {_text(training['epochs'])} epochs"
    return f"{done}, a checkpoint of an unfinished training" if is_checkpoint(description) else done


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
