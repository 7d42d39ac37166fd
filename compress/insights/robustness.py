"""Top-1 on changed images.

Noise, blur, contrast, and JPEG as in Hendrycks & Dietterich (arXiv 1903.12261), and FGSM
(Goodfellow et al., arXiv 1412.6572).
"""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

from compress.insights.results import Corruption, Robustness

NOISE = 0.08
"""Standard deviation, of pixels in 0..1; like contrast and JPEG, severity 3 of CIFAR-10-C."""
BLUR = 0.025
"""Standard deviation relative to the side; 0.7 pixels at 28."""
CONTRAST = 0.4
JPEG = 58
EPSILON = 2
"""FGSM's step, of pixels of 0..255."""
GRADIENT_BATCH = 50

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps images, uint8 `[N, C, H, W]`, to classes `[N]`."""


def compare_robustness(
    teacher: Predict,
    shipped: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    gradients: tuple[nn.Module, nn.Module],
) -> Robustness:
    """Scores both files on changed images, uint8 `[N, C, H, W]`.

    `gradients` are the float networks in PyTorch with which FGSM attacks each of them.
    """

    def row(
        name: str, setting: str, one: np.ndarray, other: np.ndarray | None = None
    ) -> Corruption:
        both = one, one if other is None else other
        scores = [
            100 * float((predict(changed) == labels).mean())
            for predict, changed in zip((teacher, shipped), both, strict=True)
        ]
        return Corruption(name=name, setting=setting, teacher=scores[0], shipped=scores[1])

    sigma = BLUR * images.shape[-1]
    attacked = [fgsm(model, images, labels) for model in gradients]
    return Robustness(
        n_images=len(labels),
        rows=(
            row("unchanged", "", images),
            row("noise", f"Gaussian, {NOISE:g} of the range", noisy(images)),
            row("blur", f"Gaussian, {sigma:.1f} px", blurred(images, sigma)),
            row("contrast", f"{CONTRAST:g} of the contrast", pale(images)),
            row("JPEG", f"quality {JPEG}", compressed(images)),
            row("FGSM", f"{EPSILON}/255, each network's own gradient", *attacked),
        ),
    )


def noisy(images: np.ndarray) -> np.ndarray:
    """Adds Gaussian noise."""
    noise = np.random.default_rng(0).normal(0, 255 * NOISE, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian of `sigma` pixels."""
    radius = min(max(1, round(4 * sigma)), images.shape[-1] - 1)
    blurry = functional.gaussian_blur(
        torch.from_numpy(images), [2 * radius + 1, 2 * radius + 1], [sigma, sigma]
    )
    array: np.ndarray = blurry.numpy()
    return array


def pale(images: np.ndarray) -> np.ndarray:
    """Moves pixels toward their image's mean."""
    mean = images.mean((2, 3), keepdims=True)
    changed: np.ndarray = (mean + CONTRAST * (images - mean)).round().astype(np.uint8)
    return changed


def compressed(images: np.ndarray) -> np.ndarray:
    """Compresses each image as JPEG."""
    return np.stack([_through_jpeg(image) for image in images])


def _through_jpeg(image: np.ndarray) -> np.ndarray:
    shown = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=JPEG)
    array = np.asarray(Image.open(content))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def fgsm(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Moves each pixel by `EPSILON` in the direction that raises the loss; equation 1."""
    parts = []
    for start in range(0, len(images), GRADIENT_BATCH):
        part = slice(start, start + GRADIENT_BATCH)
        pixels = torch.from_numpy(images[part]).float().requires_grad_()
        loss = F.cross_entropy(model(pixels), torch.from_numpy(labels[part]), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
        parts.append((pixels.detach() + EPSILON * gradient.sign()).clamp(0, 255))
    return torch.cat(parts).to(torch.uint8).numpy()
