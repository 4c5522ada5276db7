"""What people type who come from timm, torchvision, fastai, Keras, Hugging Face or d2l, and our names for it.

To add a name, add it to the line of ours in `_NAMES`, or a sentence to `_SENTENCES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from resnetlab.core.errors import brief

NETWORK, TRAINING, DATA, SUMMARY, PREDICTION, WEIGHTS = (
    "network", "training", "data", "summary", "prediction", "weights",
)  # fmt: skip
_CALLS = {
    NETWORK: "create_model(NAME, {})",
    TRAINING: "fit(model, data, {})",
    DATA: "load_data(source, {})",
    SUMMARY: "summarize(model, {})",
    PREDICTION: "predict(run, images, {})",
    WEIGHTS: "load(run, {})",
}
LISTED_BY = {NETWORK: "resnetlab list models --fields", TRAINING: "resnetlab list recipes --fields"}
"""The commands that list all fields."""

_NAMES = {
    NETWORK: {
        "in_channels": "in_chans input_channels in_ch n_channels num_channels num_input_channels nchannels in_dim",
        "num_classes": "num_class n_classes classes nclass nclasses num_labels class_num c_out n_out num_outputs "
        "n_class output_dim number_of_classes",
        "depths": "num_blocks layers layer_list stage_depths block_counts blocks depth_list",
        "widths": "hidden_sizes stage_widths planes filters num_channels_per_stage num_filters",
        "block": "block_type block_cls block_fn layer_type block_class",
        "groups": "cardinality",
        "width_per_group": "base_width",
        "bottleneck_multiplier": "bot_mul bottle_ratio bottleneck_ratio",
        "dilate": "replace_stride_with_dilation output_stride",
        "activation": "act_layer act act_fn act_func activation_fn activation_layer act_type hidden_act nonlinearity",
        "shortcut": "shortcut_type downsample_type option",
        "stem": "stem_type",
        "stem_width": "embedding_size",
        "drop_path": "drop_path_rate stochastic_depth_prob drop_connect_rate stochastic_depth survival_prob",
        "drop_block": "drop_block_rate dropblock",
        "squeeze_excite": "se use_se with_se",
        "attention": "attn_layer se_layer attn",
        "norm": "norm_layer norm_type norm_fn",
        "norm_groups": "num_groups",
        "antialias": "aa_layer antialiasing blurpool",
        "stem_pool": "replace_stem_pool",
        "shortcut_kernel": "down_kernel_size",
        "first_reduction": "block_reduce_first reduce_first",
        "dropout": "drop_rate dropout_rate drop drop_prob",
        "zero_init_residual": "zero_init_last zero_init_last_bn zero_init",
        "preactivation": "preact pre_act pre_activation use_preactivation",
        "init": "weight_init init_weights initializer kernel_initializer",
        "conv_bias": "use_bias bias",
    },
    TRAINING: {
        "lr": "learning_rate lr0 lr_max max_lr base_lr init_lr initial_lr learning_rate_init eta",
        "epochs": "epoch n_epoch n_epochs num_epochs max_epochs nb_epoch nb_epochs num_train_epochs",
        "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size n_batch",
        "weight_decay": "wd l2 weightdecay decay",
        "optimizer": "opt opt_func optim optimiser solver",
        "momentum": "mom",
        "schedule": "sched scheduler lr_scheduler lr_schedule lr_scheduler_type lrs",
        "warmup": "warmup_ratio pct_start",
        "label_smoothing": "smoothing label_smooth label_smoothing_factor",
        "loss": "loss_fn loss_func criterion",
        "clip_norm": "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val gradient_clip_norm",
        "accumulate": "accum accumulate_grad_batches gradient_accumulation_steps grad_accum",
        "average": "ema ema_decay model_ema model_ema_decay",
        "patience": "early_stopping early_stopping_patience",
        "augment.mixup": "mixup mixup_alpha",
        "augment.cutmix": "cutmix cutmix_alpha",
        "augment.flip": "flip hflip horizontal_flip fliplr",
        "augment.rotation": "rotation rotation_range degrees",
        "augment.erase_p": "reprob random_erase random_erasing erasing",
        "precision": "amp fp16 bf16 mixed_precision amp_dtype",
        "device": "gpu gpus accelerator cuda use_gpu",
        "seed": "random_state random_seed manual_seed",
        "out": "output_dir save_dir logdir log_dir default_root_dir checkpoint_dir project output",
    },
    DATA: {
        "image_size": "imgsz img_size img_height input_size resize target_size size item_tfms",
        "validation_fraction": "validation_split val_split valid_pct val_size val_fraction valid_fraction val_ratio",
        "test_fraction": "test_split test_size test_ratio",
        "workers": "num_workers n_workers dataloader_num_workers",
        "split_seed": "seed random_state random_seed",
        "data_root": "root data_dir cache_dir root_dir",
        "crop_mode": "resize_mode crop_to_aspect_ratio",
        "class_names": "labels label_names",
    },
    SUMMARY: {
        "input_shape": "input_size input_data size shape image_size img_size",
        "style": "col_names verbose depth",
    },
    PREDICTION: {
        "top": "topk top_k k",
        "mirrored": "tta flip test_time_augmentation augment",
        "images": "source paths path files imgs x",
    },
}  # fmt: skip
"""Our names, and those that others have for the same, separated by spaces."""

_FROM_DATA = "fit takes the channels and classes from the data. Omit it."
_SENTENCES = {
    NETWORK: {
        "include_top": "Use num_classes=0 for a network without its head; it returns the pooled embedding.",
        "global_pool pooling pool_type": "The head always uses global average pooling. For feature maps call "
        "model.features(images).",
        "features_only out_indices return_layers": "Build the network as usual and call model.features(images), which "
        "returns the feature maps by name.",
        "return_features": "Build the network without it and call model(images, return_features=True).",
        "progress scriptable exportable no_jit jit classifier_activation input_tensor name": "Omit it.",
        "depth num_layers n_layers resnet_depth": "The depth is part of the name, such as resnet50. "
        "depths=(3, 4, 6, 3) sets the blocks in each stage.",
        "input_shape input_size img_size image_shape img_dim": "Use in_channels for the channels. The height and width "
        "are not part of the network; image_size=32 with stem='auto' chooses a stem for them.",
        "arch": "Use depths, the blocks in each stage, and widths, their channels.",
        "lazy device dtype": "Build the network and move it with model.to(...).",
        "use_1x1conv": "Use shortcut='B', which projects where the shape changes, or shortcut='C'.",
    },
    TRAINING: {
        "in_channels num_classes in_chans n_classes num_class n_out c_out num_labels classes": _FROM_DATA,
        "nesterov_momentum": "Use momentum=0.9 and nesterov=True.",
        "verbose progress": "Use quiet=True to show no progress.",
        "callbacks cbs callback_list": "Use on_step or on_epoch, functions of the state of the training. history.csv "
        "has a row per epoch, and tensorboard=True writes a log.",
        "metrics": "fit always measures loss and top-1 accuracy; evaluate(run) measures everything else. Omit it.",
        "validation_data valid_data val_data valid_dl valid_loader val_loader test_loader eval_dataset": "Pass one "
        "data set with its splits: fit(model, load_data({'train': (images, labels), 'validation': (...)})).",
        "shuffle": "Training images are always shuffled. Omit it.",
        "freeze freeze_backbone freeze_encoder trainable freeze_layers": "Use rates={'stem': 0, 'stage1': 0}: a "
        "section with rate 0 is frozen. unfreeze=1 trains only the head in the first epoch.",
        "steps_per_epoch max_steps total_steps iterations": "Use epochs and batch_size, which give the steps.",
        "resume resume_from_checkpoint ckpt_path": "Use resnetlab.resume(RUN), or resnetlab train --resume RUN.",
        "auto_augment aa policy randaugment trivialaugment": "Use the policy of the augmentation: "
        "augment.policy='trivial' or 'rand'.",
        "lr_gamma gamma step_size lr_step_size milestones": "Use schedule='every(3, factor=0.5)' or 'steps(0.5, 0.75, "
        "factor=0.1)'.",
        "lr_mult lr_ratio layerwise_lr_decay llrd slice": "Use rates={'layer_decay': 0.7}.",
        "find_lr lr_find auto_lr_find": "Use resnetlab.find_lr(model, data).",
    },
    DATA: {
        "color_mode grayscale convert_mode": "Use channels=1 for gray or channels=3 for RGB.",
        "batch_size bs shuffle drop_last": "Training decides it: fit(model, data, batch_size=64).",
        "transform transforms transform_train batch_tfms augment": "Augmentation belongs to training: fit(model, data, "
        "augment={'rotation': 10}). Mean and standard deviation are taken from the training images.",
        "train is_train split": "load_data returns all splits: data.splits['train'].",
        "label_mode": "Omit it: labels are always one class per image.",
    },
    WEIGHTS: {
        "map_location device": "A network is loaded on the CPU. Move it with model.to(...).",
        "weights_only": "Omit it: files are always read without executing anything.",
        "strict": "Omit it: all tensors must match. load_weights(model, source, min_match=0.5) takes what fits.",
        "num_classes in_channels in_chans": "A file has its own classes and channels. To change them: "
        "create_model(NAME, num_classes=10, pretrained=FILE).",
    },
    SUMMARY: {
        "batch_size batch_dim": "Omit it: shapes are those of one image.",
        "device dtypes": "Omit it: the network is not run.",
    },
    PREDICTION: {
        "batch_size bs num_workers workers": "Omit it: batches are chosen by the size of the images.",
        "image_size imgsz img_size transform transforms class_names names": "Omit it: the network has its own "
        "preprocessing and class names.",
        "conf threshold": "Omit it: compare the column confidence.",
    },
}  # fmt: skip

_ALIASES = {
    "resnetmnist": "small_resnet14", "resnet14": "small_resnet14", "resnet8": "quick_resnet",
    "resnet9": "quick_resnet", "resnet12": "quick_resnet", "resnet10": "resnet18", "resnet": "resnet18",
    "resnet164": "preact_resnet164", "resnet1001": "preact_resnet1001", "preresnet110": "preact_resnet110",
    "wideresnet50": "wide_resnet50_2", "wideresnet101": "wide_resnet101_2",
    "resnext50": "resnext50_32x4d", "resnext101": "resnext101_32x8d", "wideresnet": "wrn28_10",
    "resnetl": "table1_resnet50",
    **{f"resnet{n}v2": f"resnetv2_{n}" for n in (18, 34, 50, 101, 152)},
    **{f"preactresnet{n}": f"resnetv2_{n}" for n in (18, 34, 50, 101, 152)},
    **{f"preresnet{n}": f"resnetv2_{n}" for n in (18, 34, 50, 101, 152)},
    **{f"xresnet{n}": f"resnet{n}d" for n in (18, 34, 50, 101, 152)},
    **{f"resnet{n}{form}": f"resnet{n}" for n in (18, 34, 50, 101, 152) for form in ("v1b", "v15", "torchvision")},
    **{f"resnet{n}v1": f"zoo_resnet{n}_v1" for n in (18, 34, 50)},
    **{f"resnet{n}v1d": f"resnet{n}d" for n in (18, 34, 50, 101, 152)},
    **{f"wideresnet{layers}{factor}": f"wrn{layers}_{factor}" for layers, factor in ((16, 4), (28, 10), (40, 4))},
}  # fmt: skip
"""Networks of the catalog by names of other libraries, without case and separators."""
_OTHER_FAMILIES = (
    "alexnet", "beit", "convnext", "deit", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenet",
    "regnet", "resnest", "res2net", "repvgg", "shufflenet", "squeezenet", "swin", "tfefficientnet", "vgg", "vit",
    "xception",
)  # fmt: skip


def _by_name() -> dict[str, dict[str, tuple[str, str]]]:
    """Returns (kind, our name or a sentence) by foreign name and kind."""
    table: dict[str, dict[str, tuple[str, str]]] = {}
    for entries in (_NAMES, _SENTENCES):
        for kind, lines in entries.items():
            for ours, theirs in lines.items() if entries is _NAMES else ((v, k) for k, v in lines.items()):
                for name in theirs.split():
                    table.setdefault(name, {})[kind] = (kind, ours)
            if entries is _NAMES:
                for ours in lines:
                    table.setdefault(ours, {}).setdefault(kind, (kind, ours))
    return table


_TABLE = _by_name()


TIMM_ALIASES = {"in_chans": "in_channels", "drop_rate": "dropout", "drop_path_rate": "drop_path"}
"""Names of timm that `create_model` takes too: they mean exactly what ours mean."""


def hint(name: str, value: Any, kind: str) -> str:
    """Returns a sentence with our name for an argument of another library, or "" if none is known.

    Args:
        name: the argument, such as "in_chans".
        value: what was passed.
        kind: what takes the argument: one of the kinds above.
    """
    if name == "weights" and kind in (NETWORK, TRAINING):
        return weights_hint(value) or f"Use pretrained={brief(value)}. "
    found = _TABLE.get(name) or _TABLE.get(name.lower())
    if not found:
        return ""
    of, ours = found.get(kind) or next(iter(found.values()))
    if " " in ours:
        return f"{ours} " if of == kind else f"{_of(of)}{ours} "
    converted = _converted(ours, value)
    if of == kind:
        return f"Use {_assignment(ours, converted)}. "
    if (of, kind) == (NETWORK, TRAINING):
        return (
            f"It is a field of the network: use overrides={{'{ours}': {converted}}} (in the shell, "
            f"--set model.{ours}=VALUE). "
        )
    return f"{_of(of)}use {_CALLS[of].format(_assignment(ours, converted))}. "


def _of(kind: str) -> str:
    return f"It is an argument of {_CALLS[kind].partition('(')[0]}: "


def _assignment(ours: str, value: str) -> str:
    return f"**{{'{ours}': {value}}}" if "." in ours else f"{ours}={value}"


def _converted(ours: str, value: Any) -> str:
    """Returns the value in our terms, as it is written."""
    convert = _VALUES.get(ours)
    try:
        return repr(convert(value)) if convert else brief(value)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        return brief(value)


def _dilate(value: Any) -> Any:
    if isinstance(value, int):  # timm's output_stride
        return {16: (False, False, False, True), 8: (False, False, True, True)}[value]
    flags = tuple(map(bool, value))
    return (False, *flags) if len(flags) == 3 else flags  # torchvision leaves the first stage out


def _named(value: Any) -> Any:
    name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    return {"BasicBlock": "basic", "Bottleneck": "bottleneck", "Residual": "basic"}.get(name, name.lower())


def _norm(value: Any) -> Any:
    name = _named(value)
    return next(
        (ours for ours in ("batch", "group", "layer", "evonorm") if ours in name), "frn" if "filter" in name else name
    )


def _antialias(value: Any) -> Any:
    name = _named(value)
    return next((ours for ours in ("blur", "avg") if ours in name), name)


def _shape(value: Any) -> Any:
    """Returns (C, H, W) of a shape in any order, with or without N."""
    sizes = tuple(getattr(value, "shape", value))
    sizes = sizes[-3:]
    return sizes[-1:] + sizes[:2] if sizes[-1] in (1, 3) and sizes[0] > 4 else sizes


_VALUES: dict[str, Callable[[Any], Any]] = {
    "dilate": _dilate,
    "block": _named,
    "activation": _named,
    "depths": tuple,
    "input_shape": _shape,
    "squeeze_excite": lambda value: bool(value),
    "norm": _norm,
    "antialias": _antialias,
    "stem_pool": lambda value: "conv" if value is True else "max" if value is False else value,
    "precision": lambda value: "bfloat16" if value not in (False, None, "no") else "float32",
    "image_size": lambda value: value if isinstance(value, int) else next(iter(value)),
    "optimizer": _named,
}


def weights_hint(value: Any) -> str:
    """Returns how to name published weights that another library names `value`, or ""."""
    if value is None or value is False:
        return "Omit it: a new network has random weights. "
    name = getattr(value, "name", None) if not isinstance(value, str) else value.rpartition(".")[2]
    if value is True or str(name).lower() in ("imagenet", "default"):
        name = "DEFAULT"
    if isinstance(name, str) and (name == "DEFAULT" or name.startswith("IMAGENET1K")):
        return f"Use pretrained='torchvision:{name}', pretrained='timm:resnet50.a1_in1k', a weights file or a run. "
    return ""


def model_hint(name: Any, known: Collection[str]) -> tuple[str, str] | None:
    """Returns the network of the catalog that `name` of another library means, and the sentence that says how.

    Args:
        name: what was passed: a name, an enumeration of weights, a function that builds a network.
        known: the names of the catalog.
    """
    text = name if isinstance(name, str) else getattr(name, "__name__", str(name))
    kind, _, tag = text.rpartition("/")[2].rpartition(":")[2].removeprefix("torchvision.models.").partition(".")
    from_torchvision = kind.endswith("_Weights")
    key = _plain(kind.removesuffix("_Weights"))
    found = {_plain(one): one for one in known}.get(key) or _ALIASES.get(key)
    if found is None:
        if key.startswith(_OTHER_FAMILIES):
            return (
                "",
                f"ResNetLab builds residual networks; fit trains those of timm: fit('timm:{kind.lower()}', data). ",
            )
        return None
    if from_torchvision:
        return found, f"Use create_model({found!r}, pretrained='torchvision:{tag or 'DEFAULT'}'). "
    if tag and re.search(r"in\d+k|ft_|tv_|imagenet", tag):
        return found, f"Use create_model({found!r}, pretrained='timm:{kind}.{tag}'). "
    return found, f"Did you mean {found!r}? "


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
