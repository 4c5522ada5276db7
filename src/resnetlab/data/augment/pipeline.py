"""`augment`: cuts and changes the images of a batch according to a policy."""

from __future__ import annotations

import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import Draws
from resnetlab.core.registry import read_call
from resnetlab.data.augment.geometry import source_maps
from resnetlab.data.augment.parameters import AugmentationParameters, add_operations, draw_parameters
from resnetlab.data.augment.policy import STEPS, Augmentation
from resnetlab.data.augment.steps import apply_step
from resnetlab.data.augment.values import ColorMaps, apply_effects, change_colors, color_maps
from resnetlab.data.augment.warp import plan_warp, warp
from resnetlab.data.storage.images import ImageSource, Ragged, Stack, cut_patches

_CACHED_PIXELS = 3 * 224 * 224
"""Number of pixels, of images or of results, that a thread of a CPU works on at a time, so that they stay in its cache
from step to step. A larger image is a part of its own."""


def augment(
    images: Tensor | Ragged,
    positions: np.ndarray,
    policy: Augmentation,
    draws: Draws,
    *,
    framing: Framing,
    rows: np.ndarray | None = None,
    device: torch.device | None = None,
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Returns a batch (N, C, size, size): uint8, values 0 to 255, if pixels are only moved, otherwise float32.

    Args:
        images: uint8 (M, C, H, W), or images of many sizes.
        positions: int (B,), the images of the whole batch.
        policy: the augmentation; `flip` must be resolved, not "auto".
        draws: those of this step.
        framing: height and width of the result, and what a sample without a random crop shows.
        rows: int (N,), the part of the batch to return; None for all of it.
        device: where to compute; by default the CPU.
        preprocessing: normalizes what is float32, while it is in the processor's cache; else values are 0 to 255.
    """
    device = device or torch.device("cpu")
    rows = np.arange(len(positions)) if rows is None else rows
    if not policy.steps:
        return _changed(images, positions, policy, draws, framing, rows, device, preprocessing)
    result = _changed(images, positions, policy, draws, framing, rows, device, None).to(torch.float32)
    for text in policy.steps:
        call = read_call(text)
        result = apply_step(STEPS, call, result, draws, int(rows[0]) if len(rows) else 0)
    return result if preprocessing is None else preprocessing.normalize(result)


def _changed(
    images: Tensor | Ragged,
    positions: np.ndarray,
    policy: Augmentation,
    draws: Draws,
    framing: Framing,
    rows: np.ndarray,
    device: torch.device,
    preprocessing: Preprocessing | None,
) -> Tensor:
    """Returns what `augment` does, without further steps."""
    size = framing.image_size
    shapes = np.array([images.shape[2:]]) if isinstance(images, Tensor) else images.shapes[positions]
    fits = bool((shapes == size).all())
    if fits and not policy.warps:
        samples = draw_parameters(policy, np.full((len(positions), 2), size), framing, draws)[rows]
        result = _whole(images, positions[rows], size).to(device)
        result = _move(result, samples, policy.fill)
        if not _changes_values(policy):
            return result
        result = result.to(torch.float32, memory_format=torch.contiguous_format)
        colors = color_maps(samples, result.shape[1], device) if policy.colors else None
        result = _change_values(result, samples, policy, colors)
        return result if preprocessing is None else preprocessing.normalize(result)
    source: ImageSource = Stack(images) if isinstance(images, Tensor) else images
    samples = draw_parameters(policy, source.shapes[positions], framing, draws)
    add_operations(samples, policy, size, draws)
    maps = source_maps(samples, size)
    plan = plan_warp(source.shapes[positions], maps, size)
    # Samples of a kind are processed together, so that little work is done for samples that do not need it.
    order = np.lexsort((plan.kernels[rows].max(1) <= 1, ~plan.projective[rows]))
    rows_in_order = rows[order]
    samples, positions, plan = samples[rows_in_order], positions[rows_in_order], plan[rows_in_order]
    colors = color_maps(samples, source.channels, device) if policy.colors else None
    result = torch.empty(len(rows), source.channels, size, size, device=device)
    threads, parts = 1, 1
    if device.type == "cpu":  # a multiple of the threads, and several for each, so that none is left waiting
        threads = torch.get_num_threads()
        pixels = len(rows) * max(size * size, plan.patch[0] * plan.patch[1])
        parts = threads * max(math.ceil(pixels / (_CACHED_PIXELS * threads)), 1 if threads == 1 else 2)
    bounds = np.linspace(0, len(rows), min(parts, len(rows)) + 1).astype(int).tolist()

    def make(first: int, last: int) -> None:
        part = slice(first, last)
        made = warp(source, positions[part], plan[part], fill=policy.fill, device=device)
        made = _change_values(made, samples[part], policy, None if colors is None else colors[part])
        _put(result, order[part], made, preprocessing)

    # A single part, too, is left to a worker: with one thread, its sums are rounded as in any other.
    list((_workers(threads).map if threads > 1 else map)(make, bounds, bounds[1:]))
    return result


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Returns threads that each work on images of their own, instead of sharing every small operation.

    torch counts an operation's threads for each thread that calls it; here it is one.
    """
    barrier = threading.Barrier(count)

    def use_one_thread() -> None:
        torch.get_num_threads()  # a thread's first call sets its number to that of the process, so it must come first
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(count, initializer=use_one_thread)
    list(pool.map(lambda _: barrier.wait(), range(count)))
    torch.set_num_threads(count)  # what threads that are yet to come begin with
    return pool


def _put(result: Tensor, rows: np.ndarray, images: Tensor, preprocessing: Preprocessing | None) -> None:
    """Writes images to their rows of the batch; on a CPU normalizing one and writing it are the same pass."""
    if images.device.type != "cpu":
        normalized = images if preprocessing is None else preprocessing.normalize(images)
        result.index_copy_(0, torch.from_numpy(rows).to(images.device), normalized)
        return
    for row, image in zip(rows.tolist(), images, strict=True):
        if preprocessing is None:
            result[row] = image
        else:
            preprocessing.normalize(image, out=result[row])


def _whole(images: Tensor | Ragged, positions: np.ndarray, size: int) -> Tensor:
    """Returns uint8 (N, C, size, size) of images that have this size."""
    if isinstance(images, Tensor):
        return images[torch.from_numpy(positions)]
    corner = np.zeros((len(positions), 2), dtype=np.int64)
    cut = cut_patches(images, positions, low=corner, high=corner + size, boxes=corner + 1, patch=(size, size), fill=0)
    return cut.permute(0, 3, 1, 2)


def _change_values(
    images: Tensor, samples: AugmentationParameters, policy: Augmentation, colors: ColorMaps | None
) -> Tensor:
    if colors is not None:
        images = change_colors(images, colors)
    return apply_effects(images, samples, blur_kernel=policy.blur_kernel, erase_fill=policy.erase_fill)


def _changes_values(policy: Augmentation) -> bool:
    effects = policy.autocontrast_p or policy.sharpness_p or policy.blur_p or policy.erase_p
    return bool(policy.colors or effects)


def _move(images: Tensor, samples: AugmentationParameters, fill: int) -> Tensor:
    """Returns uint8 (N, C, H, W) shifted by whole pixels, with the fill in uncovered places, and flipped."""
    shift, flips, upside_down = samples.shift.astype(np.int64), samples.flip, samples.vertical_flip
    count, _, height, width = images.shape
    padding = int(np.abs(shift).max(initial=0))
    if padding == 0 and not flips.any() and not upside_down.any():
        return images
    rows = padding - shift[:, 1, None] + np.arange(height)
    rows = np.where(upside_down[:, None], rows[:, ::-1], rows)
    columns = padding - shift[:, 0, None] + np.arange(width)
    columns = np.where(flips[:, None], columns[:, ::-1], columns)
    padded = F.pad(images, (padding, padding, padding, padding), value=fill)
    at = torch.arange(count, device=images.device)[:, None, None]
    # Advanced indexing on both sides of the channel axis puts the channels last: one gather cuts all crops.
    cut = padded[at, :, _to(rows, images)[:, :, None], _to(columns, images)[:, None, :]]
    return cut.permute(0, 3, 1, 2)


def _to(array: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(images.device)
