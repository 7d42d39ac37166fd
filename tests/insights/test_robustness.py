import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.insights.robustness import (
    CONTRAST,
    EPSILON,
    NOISE,
    blurred,
    compare_robustness,
    compressed,
    fgsm,
    noisy,
    pale,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3 * 16 * 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.float().flatten(1) / 255)  # type: ignore[no-any-return]


def test_changed_images_are_what_their_names_say() -> None:
    gray = np.full((2, 1, 64, 64), 128, np.uint8)
    assert noisy(gray).std() == pytest.approx(255 * NOISE, rel=0.05)
    assert (pale(gray) == gray).all()
    assert pale(IMAGES).std() == pytest.approx(CONTRAST * IMAGES.std(), rel=0.02)
    assert (blurred(gray, 2.0) == gray).all()
    assert blurred(IMAGES, 2.0).std() < IMAGES.std() / 4
    for images in (gray, IMAGES):
        assert compressed(images).shape == images.shape
    assert (compressed(gray) == gray).all()


def test_fgsm_raises_the_loss_within_its_step() -> None:
    model, labels = Linear(), torch.from_numpy(LABELS)
    attacked = fgsm(model, IMAGES, LABELS)
    assert np.abs(attacked.astype(int) - IMAGES).max() == EPSILON
    before, after = (
        F.cross_entropy(model(torch.from_numpy(images)), labels) for images in (IMAGES, attacked)
    )
    assert after > before


def test_each_network_is_attacked_by_its_own_gradient() -> None:
    model = Linear()

    def predict(images: np.ndarray) -> np.ndarray:
        classes: np.ndarray = model(torch.from_numpy(images)).argmax(1).numpy()
        return classes

    labels = predict(IMAGES)
    found = compare_robustness(predict, predict, IMAGES, labels, gradients=(model, model))
    assert [row.name for row in found.rows] == [
        *("unchanged", "noise", "blur", "contrast", "JPEG", "FGSM")
    ]
    assert found.rows[0].teacher == found.rows[0].shipped == 100
