from __future__ import annotations

import pytest
import torch

from mixtune.datasets import load_dataset, mix_images


def test_mixing_is_equation_2_and_its_ends_are_the_images_themselves():
    images = load_dataset("digits").train.tensors()[0].float()
    supervised, ssl = images[:64], images[64:128]
    torch.testing.assert_close(mix_images(supervised, ssl, 0.3), 0.3 * supervised + 0.7 * ssl)
    assert torch.equal(mix_images(supervised, ssl, 1.0), supervised)
    assert torch.equal(mix_images(supervised, ssl, 0.0), ssl)


def test_shapes_that_differ_are_both_named():
    with pytest.raises(ValueError, match=r"supervised is \(2, 3, 8, 8\) and ssl is \(2, 1, 8, 8\)"):
        mix_images(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8), 0.5)
