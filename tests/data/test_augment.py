from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from compress.data.augment import (
    Augmentation,
    augment,
    distort,
    erase,
    random_flip,
    random_resized_crop,
)
from compress.data.config import Policy


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 9), (3, 200), (1, 1)])
@pytest.mark.parametrize("min_scale", [0.08, 0.35, 1.0])
def test_crops_are_those_of_torchvision(size: tuple[int, int], min_scale: float) -> None:
    image = Image.fromarray(load_sample_image("china.jpg")).resize(size)
    reference = v2.RandomResizedCrop(32, scale=(min_scale, 1.0))
    for seed in range(20):
        torch.manual_seed(seed)
        expected = reference(image)
        found = random_resized_crop(image, 32, min_scale, torch.Generator().manual_seed(seed))
        assert found.tobytes() == expected.tobytes()


def test_half_of_the_images_are_mirrored_and_nobody_else_is_disturbed() -> None:
    image = Image.new("L", (2, 1))
    image.putpixel((0, 0), 255)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    mirrored = [random_flip(image, generator).getpixel((1, 0)) == 255 for _ in range(1000)]
    assert 450 < sum(mirrored) < 550
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("policy", "reference"), [("trivial", v2.TrivialAugmentWide()), ("rand", v2.RandAugment())]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_distortions_are_those_of_torchvision(
    policy: Policy, reference: v2.Transform, mode: str
) -> None:
    """Each of our images is among the many that torchvision draws."""
    image = Image.fromarray(load_sample_image("china.jpg")).resize((24, 16)).convert(mode)
    torch.manual_seed(0)
    drawn = {reference(image).tobytes() for _ in range(40_000 if policy == "rand" else 8000)}
    found = [
        distort(image, policy, torch.Generator().manual_seed(seed)).tobytes() for seed in range(100)
    ]
    known = sum(one in drawn for one in found)
    assert known == 100 if policy == "trivial" else known > 95
    assert len(set(found)) > 60


def test_no_policy_leaves_the_image_alone() -> None:
    image = Image.fromarray(load_sample_image("china.jpg"))
    generator = torch.Generator().manual_seed(0)
    assert augment(image, Augmentation(), generator) is image
    assert distort(image, "light", generator) is image


def test_right_angles_and_flips_make_eight_images() -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    generator = torch.Generator().manual_seed(0)
    how = Augmentation(flip=True, vertical_flip=True, rotate=True)
    found = Counter(augment(image, how, generator).tobytes() for _ in range(800))
    array = np.asarray(image)
    turned = [np.rot90(one, turns) for one in (array, array.T) for turns in range(4)]
    assert set(found) == {one.tobytes() for one in turned}
    assert all(60 < count < 150 for count in found.values())


def test_a_region_is_erased_with_the_given_probability() -> None:
    gray = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(400):
        changed = (erase(gray, 0.25, generator) != gray).any(0)
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            height, width = (int(part.max() - part.min()) + 1 for part in (rows, columns))
            assert changed.sum() > 0.9 * height * width, "a rectangle of random pixels"
            shares.append(height * width / 32**2)
    assert 70 < len(shares) < 130
    assert min(shares) < 0.06
    assert max(shares) > 0.25
    assert (gray == 7).all()
