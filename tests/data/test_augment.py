import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from compress.data.augment import random_flip, random_resized_crop


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
