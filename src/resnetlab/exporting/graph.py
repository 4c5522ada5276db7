"""From a network to an ONNX graph: uint8 images in, normalization inside, all answers out."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.evaluation.forward import trained_on
from resnetlab.exporting.resizing import Square
from resnetlab.exporting.session import METADATA_KEY, OUTPUTS
from resnetlab.models.adapters import ModuleNetwork, TimmNetwork
from resnetlab.models.folding import answers_alike, fold_batch_norm
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet

TOP = 5
"""Classes in the outputs top_classes, top_scores and attention, if the network has as many."""
OPSET = 18
_OTHER_SIZE = 5, 9  # a size equal to the network's would be taken for the only one
_EXAMPLES = 2  # a batch of one would be taken for the only size


class ExportedGraph(nn.Module):
    """What the file computes: uint8 images (N, H, W, C) -> the outputs that `names` lists.

    Args:
        network: in evaluation mode and float32, on the CPU.
        preprocessing: how the training images were normalized.
        any_size: crop and resize the images too.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, preprocessing: Preprocessing, *, any_size: bool = False) -> None:
        super().__init__()
        self.square = Square(preprocessing.framing) if any_size else None
        self.network, self.temperature = network, network.temperature
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
        for name, values in (("scale", 1 / (255 * std)), ("shift", -mean / std)):
            # For a whole row (W, C) at once: ONNX Runtime is six times slower if it broadcasts over three channels.
            shaped = values.reshape(-1, 1, 1) if any_size else values.repeat(preprocessing.image_size, 1)
            self.register_buffer(name, shaped.float())
        height, width = (preprocessing.image_size + (more if any_size else 0) for more in _OTHER_SIZE)
        self.example = torch.zeros(_EXAMPLES, height, width, preprocessing.channels, dtype=torch.uint8)
        self.has_embedding = not isinstance(network, ModuleNetwork) or bool(network.classifiers())
        self.has_maps = isinstance(network, (ResNet, TimmNetwork)) and isinstance(classifier(network), nn.Linear)
        with torch.no_grad():
            logits, _, features = self._answers(self.example)
            self.has_maps &= features is not None and _explains(classifier(network), features, logits)
        has = {"embedding": self.has_embedding, "attention": self.has_maps}
        self.names = tuple(name for name in OUTPUTS if has.get(name, True))
        self.top = min(TOP, logits.shape[1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs in the order of `names`."""
        logits, embedding, features = self._answers(images)
        probabilities = (logits / self.temperature).softmax(1)
        classes = logits.topk(self.top).indices  # of logits, since probabilities can be equal by rounding
        found = {
            "probabilities": probabilities,
            "logits": logits,
            "embedding": embedding,
            "top_classes": classes,
            "top_scores": probabilities.gather(1, classes),
        }
        if self.has_maps and features is not None:
            weights = classifier(self.network).get_parameter("weight")[classes]  # (N, k, D)
            maps = weights @ features.flatten(2)  # (N, k, D) by (N, D, h w)
            found["attention"] = maps.unflatten(2, features.shape[2:])
        return tuple(found[name] for name in self.names)

    def _answers(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns logits, embedding and, if the network has one, the feature map that it pools."""
        network = self.network
        if self.square is None:
            batch = (images.float() * self.scale + self.shift).permute(0, 3, 1, 2)
            batch = batch.clone(memory_format=torch.contiguous_format)  # or else pooling is exported as a Gather
        else:
            batch = self.square(images) * self.scale + self.shift
        if isinstance(network, ResNet):
            taps = network.features(batch)
            return taps["logits"], taps["embedding"], taps["final"]
        if isinstance(network, TimmNetwork) and self.has_maps:
            module = network.network
            features = module.forward_features(batch)
            embedding = module.forward_head(features, pre_logits=True).flatten(1)
            return classifier(network)(embedding), embedding, features
        logits, embedding = network(batch, return_features=True)
        return logits, embedding, None


def classifier(network: Network) -> nn.Module:
    """Returns the layer that computes the logits."""
    found = [network.fc] if isinstance(network, ResNet) else network.classifiers()  # type: ignore[attr-defined]
    return found[0] if len(found) == 1 else nn.Identity()


def prepared(network: Network) -> Network:
    """Returns a copy for export: in float32 on the CPU, from torch's layers, with batch normalization folded.

    Raises:
        UserError: the network is untrained, in training mode, has no classes, or has weights that are not finite.
    """
    preprocessing, class_names = trained_on(network)
    if any(module.training for module in network.modules()):
        raise UserError(
            "only a network in evaluation mode can be exported, and this one is in training mode. Call model.eval()."
        )
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise UserError(
                f"the weights of {name.removeprefix('network.')} are not finite, so the network cannot be exported. "
                "Train it again with a lower learning rate, or export an earlier checkpoint."
            )
    if network.config.num_classes < 1:
        raise UserError("the network has no head (num_classes=0). Export a network with num_classes above 0.")
    with torch.random.fork_rng(devices=[]):
        twin = _torch_twin(network) if isinstance(network, ResNet) else copy.deepcopy(network)
    twin.class_names, twin.preprocessing, twin.temperature = class_names, preprocessing, network.temperature
    twin = twin.cpu().float().requires_grad_(False).eval()
    return _folded(twin) if isinstance(twin, ResNet) else twin


def to_onnx(network: Network, metadata: Mapping[str, Any]) -> Any:
    """Returns the `onnx.ModelProto` of what `prepared` returned.

    Args:
        network: the network.
        metadata: what the file says about it, as values that JSON can hold. If its "any_size" is true, the graph crops
            and resizes images.

    Raises:
        UserError: a package is missing, or torch cannot express the network in ONNX.
    """
    for package in ("onnx", "onnxscript"):
        import_extra(package, "export")
    any_size = bool(metadata.get("any_size"))
    graph = ExportedGraph(network, trained_on(network)[0], any_size=any_size).eval()
    sizes = {1: torch.export.Dim("H"), 2: torch.export.Dim("W")} if any_size else {}
    try:
        with _silenced(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (graph.example,),
                input_names=["images"],
                output_names=list(graph.names),
                dynamic_shapes=({0: torch.export.Dim("N"), **sizes},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch has many kinds, with long traces
        raise UserError(
            f"torch cannot export the network to ONNX with a batch of any size: {_reason(error)}. In forward, "
            "avoid Python control flow that depends on the values of tensors, and a fixed batch size, as in "
            "x.view(32, -1)."
        ) from error
    assert program is not None
    return finished(program.model_proto, metadata)


def finished(model: Any, metadata: Mapping[str, Any]) -> Any:
    """Returns a graph without what the exporter notes about this machine, and with our metadata; in place."""
    graph = model.graph
    entries = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions]
    for function in model.functions:
        entries += function.node
    for entry in entries:
        entry.doc_string = ""
        del entry.metadata_props[:]
    del graph.value_info[:]
    graph.name, model.producer_name, model.producer_version = "network", "resnetlab", version("resnetlab")
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(dict(metadata), ensure_ascii=False))
    return model


def _torch_twin(network: ResNet) -> ResNet:
    """Returns a copy that is made of torch's layers: from those of `scratch` the graph would be ten times as large."""
    if network.config.parts == "torch" or network.altered:
        return copy.deepcopy(network)
    twin = ResNet(dataclasses.replace(network.config, parts="torch"))
    twin.load_state_dict(network.state_dict())
    return twin


def _folded(network: ResNet) -> ResNet:
    """Returns a copy with folded batch normalization, or the network if a registered block does not allow that."""
    preprocessing, _ = trained_on(network)
    size = preprocessing.image_size
    images = torch.randn(_EXAMPLES, network.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norm(copy.deepcopy(network).double()).float()
    folded.class_names, folded.preprocessing = network.class_names, network.preprocessing
    folded.temperature = network.temperature
    try:
        return folded if answers_alike(network, folded, images) else network
    except Exception:  # the block looks for its normalization
        return network


def _explains(head: nn.Module, features: Tensor, logits: Tensor) -> bool:
    """Whether the logits are exactly what the head makes of the mean of the feature map."""
    if features.ndim != 4 or features.shape[1] != head.get_parameter("weight").shape[1]:
        return False
    return torch.allclose(head(features.mean((2, 3))), logits, rtol=1e-4, atol=1e-4)


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides the progress and the advice of torch's exporter, which are for its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Returns the first line of the innermost cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}"
