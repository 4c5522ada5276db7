from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import framed

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import Draws
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.batches import batch_bounds, training_batches
from resnetlab.data.storage.store import ImageData

PLAIN = Augmentation(crop_padding=0.0, flip=False)


@given(count=st.integers(1, 5000), batch_size=st.integers(2, 300))
def test_an_epoch_takes_every_image_once_and_never_one_alone(count: int, batch_size: int):
    bounds = batch_bounds(count, batch_size)
    assert [position for start, stop in bounds for position in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) <= batch_size + 1
    assert min(sizes) > 1 or count == 1


def _epoch(data: ImageData, epoch: int, first_step: int = 0, policy: Augmentation = PLAIN) -> list:
    split = data.splits["train"]
    return list(training_batches(split, batch_size=100, policy=policy, seed=3, epoch=epoch, first_step=first_step))


def test_batches_cover_the_split_in_an_order_of_their_own(digits: ImageData):
    first, second = (torch.cat([batch.images for batch in _epoch(digits, epoch)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    images = digits.splits["train"].images
    for shuffled in (first, second):
        assert sorted(map(bytes, shuffled.numpy())) == sorted(map(bytes, images.numpy()))


def test_a_resumed_epoch_draws_what_the_whole_one_drew(digits: ImageData):
    policy = Augmentation(flip=True)
    whole, rest = _epoch(digits, 2, policy=policy), _epoch(digits, 2, first_step=5, policy=policy)
    assert [batch.step for batch in rest] == list(range(5, len(whole)))
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@given(
    size=st.integers(3, 20), channels=st.sampled_from([1, 3]), padding=st.sampled_from([0.0, 0.125, 0.3]),
    flip=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_every_crop_is_a_window_of_the_padded_image(size: int, channels: int, padding: float, flip: bool, seed: int):
    images = torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (6, channels, size, size), dtype=np.uint8))
    result = augment(
        images, np.arange(6), Augmentation(crop_padding=padding, flip=flip), Draws(seed), framing=framed(size)
    )
    width = round(padding * size)
    padded = torch.nn.functional.pad(images, (width,) * 4)
    for image, source in zip(result, padded, strict=True):
        windows = [
            window
            for top in range(2 * width + 1)
            for left in range(2 * width + 1)
            for window in [source[:, top : top + size, left : left + size]]
        ]
        candidates = windows + [window.flip(-1) for window in windows if flip]
        assert any(torch.equal(image, candidate) for candidate in candidates)


def test_half_of_the_images_are_flipped_and_crops_spread_evenly():
    images = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 3, 2] = 1
    result = augment(images, np.arange(4000), Augmentation(crop_padding=0.125, flip=True), Draws(0), framing=framed(8))
    _, _, rows, columns = result.nonzero(as_tuple=True)
    assert len(rows) == 4000
    assert torch.bincount(rows, minlength=8).tolist()[2:5] == pytest.approx([4000 / 3] * 3, rel=0.1)
    mirrored = columns >= 4
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_an_unresolved_or_wrong_policy_is_refused():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r'flip.*"auto"'):
        augment(images, np.arange(2), Augmentation(), Draws(0), framing=framed(8))
    with pytest.raises(UserError, match="flip"):
        Augmentation(flip="yes")
    with pytest.raises(UserError, match="crop_padding"):
        Augmentation(crop_padding=2)
