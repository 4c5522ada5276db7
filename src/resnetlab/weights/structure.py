"""Weights under other names: the layers of a file are matched with those of a network by structure, or by a saved map.

A file has only names, shapes and an order. Its tensors are grouped into layers, and its layers into blocks: by the
parts of their names, or by their order. In a block, layers of equal kind and shapes can correspond in several ways.
These are compared by what the names say (numbers, words such as "shortcut"), then by the order in which the layers were
registered. If two ways remain, the file is refused: they would be different networks.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cmp_to_key
from pathlib import Path
from typing import Any

from torch import Tensor

from resnetlab.core.errors import UserError, unknown
from resnetlab.core.files import printable
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.summary import blueprint
from resnetlab.weights.foreign import without_wrappers
from resnetlab.weights.maps import KeyMap

_ROLES = {
    **dict.fromkeys(("weight", "kernel", "gamma", "scale", "w"), "weight"),
    **dict.fromkeys(("bias", "beta", "shift", "b"), "bias"),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), "mean"),
    **dict.fromkeys(("running_var", "running_variance", "moving_var", "moving_variance", "var", "variance"), "var"),
    "num_batches_tracked": "counter",
}
_TENSOR = re.compile(rf"(?:(.*?)[._])?({'|'.join(sorted(_ROLES, key=len, reverse=True))})", re.IGNORECASE | re.DOTALL)
_KIND_WORDS = re.compile(
    r"(batch|layer)?_?norm(alization)?s?([123]d)?|bns?|conv(olution)?s?([123]d)?|res|scale|[cb](?=\d)"
)
_SHORTCUT = re.compile(r"short|skip|down_?samp|proj|ident|bypass|adjust|match|(^|[._])(sc|side)([._]|$)", re.IGNORECASE)
_ORDINALS = {
    word: number
    for words in (
        "first second third fourth fifth sixth seventh eighth",
        "one two three four five six seven eight",
        "start middle end",
    )
    for number, word in enumerate(words.split(), 1)
}
_MOST_WAYS = 20_000

_Identity = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Layer:
    """The tensors of one layer.

    Attributes:
        name: what their names begin with.
        kind: "conv", "norm", "linear" or "other".
        tensors: their names by role: "weight", "bias", "mean", "var".
        shapes: by role; those of a normalization have one dimension.
        position: of the layer in the file.
    """

    name: str
    kind: str
    tensors: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    position: int

    @property
    def signature(self) -> tuple:
        """What layers must have in common to correspond."""
        return self.kind, tuple(sorted(self.shapes.items()))

    def __str__(self) -> str:
        known = {role: self.shapes[role] for role in ("weight", "bias", "mean", "var", "") if role in self.shapes}
        shapes = ", ".join(f"{role} {'x'.join(map(str, shape))}".strip() for role, shape in known.items())
        return f"{self.name} ({shapes})"


@dataclass(frozen=True)
class _Member:
    """A layer of a file within its block.

    Attributes:
        layer: the layer.
        tokens: of its name in the block.
        container: the name of the module around it in the block.
        key: what equal layers of several blocks have in common: their tokens, or their number and the number of layers.
    """

    layer: Layer
    tokens: tuple[str, ...]
    container: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def identity(self) -> _Identity:
        """Kind and key."""
        return self.layer.kind, self.key


@dataclass
class _Pair:
    """A block of the network, or all layers outside of blocks, with the corresponding layers of a file."""

    wanted: Sequence[Layer]
    found: Sequence[_Member]
    chosen: dict[str, _Member] = field(default_factory=dict)


def match_structure(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> KeyMap:
    """Returns the map from a `ResNet`'s tensors to those of a file that has other names.

    The first convolution may have other input channels, and the head other classes.

    Args:
        tensors: those in the file, in its order.
        state: the network's.
        where: what messages call the file.

    Raises:
        UserError: the file has another structure, or its layers correspond in several ways.
    """
    theirs = layers_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    ours = layers_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    if difference := _first_difference(ours, theirs):
        raise UserError(f"{where} has another structure than this network. First difference: {difference}.")
    ordered = _is_in_order(list(tensors))
    pairs = _paired(_blocks_of(ours), theirs, ordered)
    if pairs is None:
        raise UserError(
            f"{where} has the layers of this network, but the tensor names do not show which layers form a "
            "block. " + _USE_A_MAP
        )
    known: dict[_Identity, str] = {}
    groups: dict[tuple, list[_Pair]] = {}
    for pair in pairs:
        names = (
            tuple(_local(layer.name) for layer in pair.wanted),
            tuple(sorted(one.identity for one in pair.found)),
        )
        groups.setdefault(names, []).append(pair)
    for group in groups.values():
        _resolve(group, known, ordered, where)
    names = {
        wanted.tensors[role]: pair.chosen[wanted.name].layer.tensors[role]
        for pair in pairs
        for wanted in pair.wanted
        for role in wanted.tensors
        if role in pair.chosen[wanted.name].layer.tensors
    }
    return KeyMap(form="structure", names=names, vectors=_vectors(state))


def saved_key_map(match: str | Path | Mapping[str, str], state: Mapping[str, Tensor]) -> KeyMap:
    """Returns a key map that was saved, for a network's tensors.

    Args:
        match: the network's names by those in the file, or the path of a JSON file with them.
        state: the network's tensors.

    Raises:
        UserError: the map cannot be read, or names a tensor that the network does not have.
    """
    read = match if isinstance(match, Mapping) else _read_json(Path(match))
    if not isinstance(read, Mapping) or not all(isinstance(text, str) for pair in read.items() for text in pair):
        raise UserError(
            "a key map maps each name in the file to a name in the network, both as text: {name in the file: "
            "name in the network}, got something else. Write it with resnetlab check FILE.py --map map.json."
        )
    for ours in read.values():
        if ours not in state:
            raise unknown("tensor of the network in the key map", ours, list(state))
    stripped, _ = without_wrappers(dict(read))  # as the names in the file when it is read
    return KeyMap(form="key map", names={ours: theirs for theirs, ours in stripped.items()}, vectors=_vectors(state))


def _vectors(state: Mapping[str, Tensor]) -> frozenset[str]:
    return frozenset(name for name, tensor in state.items() if tensor.ndim == 1)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"match expects 'names', 'structure' or the file of a key map, got {printable(path)}, which does not exist."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} cannot be read as JSON: {error}. Give the file of a key map.") from error


_USE_A_MAP = (
    "If you have the network's code, write a key map and use it: `resnetlab check FILE.py --like NAME --map map.json`, "
    "then match='map.json'."
)


def layers_of(shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Returns the layers that tensors of these names and shapes form, in order."""
    grouped: dict[str, dict[str, str]] = {}
    for name in shapes:
        found = _TENSOR.fullmatch(name)
        prefix, role = (found[1] or "", _ROLES[found[2].lower()]) if found else (name, "")
        if role in grouped.get(prefix, {}):
            prefix, role = name, ""
        grouped.setdefault(prefix, {})[role] = name
    layers = []
    for prefix, names in grouped.items():
        sizes = {role: shapes[name] for role, name in names.items() if role != "counter"}
        kernel = len(sizes.get("weight", ()))
        kind = "norm" if {"mean", "var"} <= sizes.keys() else {4: "conv", 2: "linear"}.get(kernel, "other")
        if kind == "norm":
            sizes = {role: tuple(size for size in shape if size != 1) or (1,) for role, shape in sizes.items()}
        if sizes:
            layers.append(Layer(prefix, kind, names, sizes, len(layers)))
    return layers


def same_structure(
    tensors: Mapping[str, Tensor], candidates: Mapping[str, ResNetConfig] | None = None
) -> dict[str, ResNetConfig]:
    """Returns the networks that have the layers of a file, whatever its names, with the file's channels and classes.

    Args:
        tensors: those in the file.
        candidates: configurations by name; by default the catalog's.
    """
    theirs = layers_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    kernels = sum(layer.kind == "conv" for layer in theirs)
    found = {}
    for name, config in (candidates or {name: entry.config for name, entry in CATALOG.items()}).items():
        blocks = sum(config.depths)
        if not 2 * blocks <= kernels <= 6 * blocks + 4:
            continue
        ours = layers_of({name: tuple(value.shape) for name, value in blueprint(config).state_dict().items()})
        missing, left, ends = _compared_layers(ours, theirs)
        if missing or left:
            continue
        sizes = {layer.kind: layer.shapes["weight"] for layer in ends}
        changes = {}
        if "conv" in sizes:
            changes["in_channels"] = sizes["conv"][1]
        if "linear" in sizes:
            changes["num_classes"] = sizes["linear"][0]
        found[name] = dataclasses.replace(config, **changes)
    return found


def _first_difference(ours: Sequence[Layer], theirs: Sequence[Layer]) -> str:
    """Returns the network's first layer that the file does not have, or the first that only the file has; "" if none.

    The first convolution may have other input channels, and the head other classes.
    """
    missing, left, _ = _compared_layers(ours, theirs)
    if not missing:
        return f"expected no further layer, found {left[0]}" if left else ""
    wanted = missing[0]
    partner = next((layer for layer in left if layer.kind == wanted.kind), left[0] if left else None)
    if partner is not None:
        return f"expected {wanted}, found {partner}"
    counts = [sum(layer.signature == wanted.signature for layer in layers) for layers in (ours, theirs)]
    return f"expected {wanted}, found no further layer of these shapes: the file has {counts[1]} of {counts[0]}"


def _compared_layers(ours: Sequence[Layer], theirs: Sequence[Layer]) -> tuple[list[Layer], list[Layer], list[Layer]]:
    """Returns the network's layers that the file lacks, the file's other layers, and its ends if they differ in size.

    An end is the first convolution, with other input channels, or the head, with other classes.
    """
    rest = Counter(layer.signature for layer in theirs)
    missing, left, ends = [], [], []
    for layer in ours:
        if rest[layer.signature]:
            rest[layer.signature] -= 1
        else:
            missing.append(layer)
    for layer in reversed(theirs):  # of equal layers the last ones are those that the network does not have
        if rest[layer.signature]:
            rest[layer.signature] -= 1
            left.insert(0, layer)
    first = next((layer for layer in ours if layer.kind == "conv"), None)
    for layer in [layer for layer in missing if layer is first or layer.kind == "linear"]:
        partner = next((other for other in left if _fits(layer, other, is_end=True)), None)
        if partner is not None:
            missing.remove(layer)
            left.remove(partner)
            ends.append(partner)
    return missing, left, ends


def _fits(wanted: Layer, found: Layer, *, is_end: bool = False) -> bool:
    """Whether a layer of a file can be one of the network; at an end of it, input channels and classes may differ."""
    if wanted.kind != found.kind or wanted.shapes.keys() != found.shapes.keys():
        return False
    if is_end and wanted.kind == "conv":
        one, other = wanted.shapes["weight"], found.shapes["weight"]
        return (one[0], *one[2:]) == (other[0], *other[2:]) and other[1] <= 4
    if is_end and wanted.kind == "linear":
        return wanted.shapes["weight"][1] == found.shapes["weight"][1]
    return wanted.signature == found.signature


# Blocks


def _blocks_of(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Returns the layers of the network's stem and head, then those of each block."""
    blocks: dict[str, list[Layer]] = {"": []}
    for layer in layers:
        found = re.match(r"layer\d+\.\d+\.", layer.name)
        blocks.setdefault(found[0] if found else "", []).append(layer)
    return list(blocks.values())


def _local(name: str) -> str:
    """Returns the name of a layer of the network within its block."""
    return re.sub(r"^layer\d+\.\d+\.", "", name)


def _paired(blocks: Sequence[list[Layer]], theirs: Sequence[Layer], ordered: bool) -> list[_Pair] | None:
    """Returns the file's layers by block: as their names group them, else as they follow each other."""
    for parts in (_parts, _tokens):
        if pairs := _paired_by_names(blocks, theirs, parts, ordered):
            return pairs
    in_turn = sorted(theirs, key=cmp_to_key(_by_numbers))
    is_clear = all(
        _by_numbers(one, other) for one, other in itertools.combinations(theirs, 2) if one.kind == other.kind
    )
    for layers in [*([in_turn] if is_clear else []), *([theirs] if ordered else [])]:
        if pairs := _paired_in_turn(blocks, layers):
            return pairs
    return None


def _paired_by_names(
    blocks: Sequence[list[Layer]], theirs: Sequence[Layer], parts: Callable[[str], tuple[str, ...]], ordered: bool
) -> list[_Pair] | None:
    outside, *rest = blocks
    kinds = {_kinds(block) for block in rest}
    found: dict[frozenset, list[tuple[tuple[str, ...], list[Layer]]]] = {}
    loose: list[Layer] = []
    for depth, layers in _nodes(theirs, parts, kinds, 0):
        if depth is None:
            loose += layers
        else:
            found.setdefault(_kinds(layers), []).append((parts(layers[0].name)[:depth], layers))
    if Counter(_kinds(block) for block in rest) != Counter({kind: len(groups) for kind, groups in found.items()}):
        return None
    if len(loose) != len(outside):
        return None
    pairs = [_Pair(outside, [_Member(one, _tokens(one.name), parts(one.name)[:-1], _parts(one.name)) for one in loose])]
    queues = {}
    for kind, groups in found.items():
        queue = _in_order(groups, ordered)
        if queue is None:
            return None
        queues[kind] = iter(queue)
    for block in rest:
        prefix, layers = next(queues[_kinds(block)])
        members = []
        for layer in layers:
            local = parts(layer.name)[len(prefix) :]
            members.append(_Member(layer, _tokens(".".join(local)), local[:-1], local))
        pairs.append(_Pair(block, members))
    return pairs


def _nodes(
    layers: Sequence[Layer], parts: Callable[[str], tuple[str, ...]], kinds: set[frozenset], depth: int
) -> Iterator[tuple[int | None, list[Layer]]]:
    """Yields the layers of each module that is a block, with the depth of its name; None for layers outside of any."""
    below: dict[str | None, list[Layer]] = {}
    for layer in layers:
        name = parts(layer.name)
        below.setdefault(name[depth] if depth < len(name) else None, []).append(layer)
    if len(below) > 1 and _kinds(layers) in kinds:
        yield depth, list(layers)
        return
    for part, group in below.items():
        if part is None:
            yield None, group
        else:
            yield from _nodes(group, parts, kinds, depth + 1)


def _kinds(layers: Iterable[Layer]) -> frozenset:
    return frozenset(Counter(layer.signature for layer in layers).items())


def _in_order(
    groups: list[tuple[tuple[str, ...], list[Layer]]], ordered: bool
) -> list[tuple[tuple[str, ...], list[Layer]]] | None:
    """Returns equal blocks by their numbers, else as they were registered; None if neither tells."""
    names = {prefix: _tokens(".".join(prefix)) for prefix, _ in groups}
    if all(_compared(names[one], names[other]) for (one, _), (other, _) in itertools.combinations(groups, 2)):
        return sorted(groups, key=cmp_to_key(lambda one, other: _compared(names[one[0]], names[other[0]])))
    return groups if ordered else None


def _paired_in_turn(blocks: Sequence[list[Layer]], layers: Sequence[Layer]) -> list[_Pair] | None:
    """Returns consecutive layers as blocks, after those of the stem; those with a shortcut's name may stand apart."""
    outside, *rest = blocks
    head = [layer for layer in outside if layer.name.split(".")[0] in ("norm", "fc")]
    stem = [layer for layer in outside if layer not in head]
    linear = [layer for layer in layers if layer.kind == "linear"]
    body = [layer for layer in layers if layer.kind != "linear"]
    aside = [layer for layer in body if _SHORTCUT.search(layer.name)]
    for apart in ([], aside) if aside else ([],):
        queue = [layer for layer in body if layer not in apart]
        extra = list(apart)
        pairs: list[tuple[Sequence[Layer], list[Layer]]] = []
        for block in (stem, *rest):
            needed = [layer for layer in block if not (apart and _is_shortcut(layer))]
            taken, queue = queue[: len(needed)], queue[len(needed) :]
            for layer in block:
                partner = next((one for one in extra if layer not in needed and _fits(layer, one)), None)
                if partner is not None:
                    extra.remove(partner)
                    taken.append(partner)
            if block is not stem and _kinds(taken) != _kinds(block):
                break
            pairs.append((block, taken))
        else:
            pairs[0] = outside, [*pairs[0][1], *queue, *linear]
            if len(pairs[0][1]) != len(outside) or extra:
                continue
            return [
                _Pair(
                    block,
                    [
                        _Member(one, _tokens(one.name), (), (str(place), str(len(taken))))
                        for place, one in enumerate(taken)
                    ],
                )
                for block, taken in pairs
            ]
    return None


# Layers of a block


def _resolve(group: Sequence[_Pair], known: dict[_Identity, str], ordered: bool, where: str) -> None:
    """Chooses the layers of blocks whose layers have the same names, in the same way for all of them."""
    members = [{one.identity: one for one in pair.found} for pair in group]
    first, names = group[0].wanted, list(members[0])

    def options(place: int) -> list[_Identity]:
        """Returns which layers can be this one of the network, in all of these blocks."""
        is_end = _is_end(first, place)
        blocks = list(zip(group, members, strict=True))
        return [
            name
            for name in names
            if all(_fits(pair.wanted[place], found[name].layer, is_end=is_end) for pair, found in blocks)
        ]

    ways = list(itertools.islice(_ways([options(place) for place in range(len(first))]), _MOST_WAYS + 1))
    best: list[tuple[_Identity, ...]] = []
    score: tuple[int, ...] = ()
    for way in ways:
        mine = {wanted.name: members[0][name] for wanted, name in zip(first, way, strict=True)}
        found = _score(first, mine, known, ordered)
        if not best or found > score:
            best, score = [way], found
        elif found == score:
            best.append(way)
    if not best or len(ways) > _MOST_WAYS:
        raise UserError(f"{where} has the layers of this network, but in other blocks. {_USE_A_MAP}")
    if len(best) > 1:
        place = next(place for place in range(len(first)) if len({way[place] for way in best}) > 1)
        possible = [members[0][name].layer.name for name in dict.fromkeys(way[place] for way in best)]
        raise UserError(
            f"{where} has the structure of this network, but {first[place].name} could be "
            f"{' or '.join(possible[:3])}: neither names nor order show which one. {_USE_A_MAP}"
        )
    for pair, by_name in zip(group, members, strict=True):
        pair.chosen = {wanted.name: by_name[name] for wanted, name in zip(pair.wanted, best[0], strict=True)}
    for wanted, name in zip(first, best[0], strict=True):
        if wanted.name != _local(wanted.name):
            known.setdefault(name, _local(wanted.name))


def _ways(options: Sequence[Sequence[_Identity]]) -> Iterator[tuple[_Identity, ...]]:
    """Yields every choice of one option per place that takes none twice."""

    def choose(place: int, taken: tuple) -> Iterator[tuple]:
        if place == len(options):
            yield taken
            return
        for option in options[place]:
            if option not in taken:
                yield from choose(place + 1, (*taken, option))

    return choose(0, ())


def _is_end(wanted: Sequence[Layer], place: int) -> bool:
    layer = wanted[place]
    convolutions = [one for one in wanted if one.kind == "conv"]
    return layer.name == _local(layer.name) and (layer.kind == "linear" or layer in convolutions[:1])


def _is_shortcut(layer: Layer) -> bool:
    return _local(layer.name).startswith("downsample")


def _score(
    wanted: Sequence[Layer], chosen: Mapping[str, _Member], known: Mapping[_Identity, str], ordered: bool
) -> tuple[int, ...]:
    """Returns how well a choice agrees with other blocks, words, shared names, numbers, order: the first counts most.

    A normalization belongs to the convolution next to it in the network.
    """
    agrees = words = shared = numbers = order = 0
    everything = list(chosen.values())
    for layer in wanted:
        one = chosen[layer.name]
        agrees += known.get(one.identity) == _local(layer.name)
        words += bool(_SHORTCUT.search(".".join((*one.container, *one.tokens)))) == _is_shortcut(layer)
    for layer, other in itertools.combinations(wanted, 2):
        one, two = chosen[layer.name], chosen[other.name]
        same_path = _is_shortcut(layer) == _is_shortcut(other)
        if one.container and one.container == two.container:
            words += same_path
        if layer.kind == other.kind and same_path:
            numbers += _compared(one.tokens, two.tokens) < 0
            order += one.layer.position < two.layer.position
    for layer, other in itertools.pairwise(wanted):
        if {layer.kind, other.kind} == {"conv", "norm"} and _is_shortcut(layer) == _is_shortcut(other):
            one, two = chosen[layer.name], chosen[other.name]
            shared += one.tokens == two.tokens or _follows(one, two, everything)
            order += two.layer.position == one.layer.position + 1
    return agrees, words, shared, numbers, order if ordered else 0


def _follows(one: _Member, other: _Member, everything: Sequence[_Member]) -> bool:
    """Whether a layer has the next number after another one in the same module, as in a `Sequential`."""
    numbers = {
        int(member.tokens[-1])
        for member in everything
        if member.container == one.container and member.tokens[:-1] == one.tokens[:-1] and member.tokens[-1:] and
        member.tokens[-1].isdigit()
    }  # fmt: skip
    if other.container != one.container or other.tokens[:-1] != one.tokens[:-1] or not one.tokens or not other.tokens:
        return False
    if not one.tokens[-1].isdigit() or not other.tokens[-1].isdigit():
        return False
    return int(other.tokens[-1]) == min((number for number in numbers if number > int(one.tokens[-1])), default=-1)


# Names


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


@cache
def _tokens(name: str) -> tuple[str, ...]:
    """Returns words and numbers of a name, without those that only say the kind of a layer: bn2 is ("2",)."""
    tokens = []
    for part in re.split(r"[._]", re.sub(r"([a-z])([A-Z])", r"\1_\2", name)):
        part = part.lower()
        found = _KIND_WORDS.match(part)
        rest = part[found.end() :] if found else part
        tokens += re.findall(r"\d+|[^\W\d]+", part if len(rest) > 1 and rest[:2].isalpha() else rest)
    return tuple(tokens)


def _compared(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns -1 or 1 if the numbers in two names tell which comes first, else 0."""
    for a, b in itertools.zip_longest(one, other):
        if a == b:
            continue
        if a is None or b is None:  # conv, conv2
            return (-1 if a is None else 1) if str(a or b).isdigit() else 0
        if a.isdigit() and b.isdigit():
            return -1 if int(a) < int(b) else int(int(a) > int(b))
        if a in _ORDINALS and b in _ORDINALS:
            return -1 if _ORDINALS[a] < _ORDINALS[b] else 1
        return 0 if len(a) > 1 or len(b) > 1 else -1 if a < b else 1
    return 0


def _by_numbers(one: Layer, other: Layer) -> int:
    return _compared(_tokens(one.name), _tokens(other.name))


def _is_in_order(names: Sequence[str]) -> bool:
    """Whether names are in the order in which a module registered them: no file format or program sorted them."""
    closed: set[str] = set()
    before: list[str] = []
    for name in names:
        parts = name.split(".")[:-1]
        prefixes = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if closed.intersection(prefixes):
            return False
        closed.update(prefix for prefix in before if prefix not in prefixes)
        before = prefixes
    places = {name: place for place, name in enumerate(names)}
    layers = layers_of(dict.fromkeys(names, ()))
    return all(
        places[layer.tensors["weight"]] < places[layer.tensors["bias"]]
        for layer in layers
        if {"weight", "bias"} <= layer.tensors.keys()
    )
