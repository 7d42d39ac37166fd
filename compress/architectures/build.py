"""Builds a classifier from its spec."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from compress.architectures.attention import open_attention
from compress.architectures.sources import OWN, TIMM, construct
from compress.architectures.spec import ModelSpec
from compress.data.preprocess import Preprocess
from compress.errors import CompressError

SMALL_IMAGE = 64
"""Image side in pixels below which a strided stem loses too much detail."""
MAX_PARAMETERS = 2**31
"""Largest accepted network; timm's largest has 1.8 billion parameters."""
SMOOTH_ACTIVATIONS = frozenset({"Hardswish", "HardSwish", "SiLU", "Swish", "GELU", "Mish"})
"""Class names in torch and timm of the activations that `use_relu` replaces."""


class Normalize(nn.Module):
    """`(pixel / 255 - mean) / std`, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        shape = (1, preprocess.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images in 0..255, uint8 or float `[N, C, H, W]`, to float32 of the same shape."""
        return (images.float() - 255 * self.mean) * (1 / (255 * self.std))


class Classifier(nn.Module):
    """A network including its normalization: images in, logits out.

    Training, calibration, scoring, and the exported file all take unnormalized images, so their
    preprocessing cannot differ.
    """

    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Maps images in 0..255, uint8 or float `[N, C, H, W]`, to logits `[N, classes]`."""
        return self.network(self.normalize(images))  # type: ignore[no-any-return]


def build(spec: ModelSpec, *, most: int = MAX_PARAMETERS) -> Classifier:
    """Builds an untrained network from its spec.

    It is tried on the meta device first, since a spec may ask for any size.

    Args:
        spec: the network.
        most: largest accepted number of parameters.

    Raises:
        CompressError: see `construct`; or the images are too small, the number of logits is wrong,
            or there are too many parameters.
    """
    if ":" in spec.architecture and not spec.architecture.startswith(TIMM):  # the user's code
        model = _assemble(spec)
        try_forward(model, spec)
        return model
    try:
        with _no_more_parameters(most, spec.architecture), torch.device("meta"):
            try_forward(_assemble(spec), spec)
    except NotImplementedError:  # its constructor reads tensors, as RegNet's does
        with _no_more_parameters(most, spec.architecture):
            model = _assemble(spec)
        try_forward(model, spec)
        return model
    return _assemble(spec)


def _assemble(spec: ModelSpec) -> Classifier:
    network = construct(spec)
    if spec.architecture not in OWN:
        open_attention(network)
        adapt_stem(network, spec.preprocess.channels, small=spec.stem == "small")
    if spec.activation == "relu":
        use_relu(network)
    return Classifier(Normalize(spec.preprocess), network)


@contextmanager
def _no_more_parameters(most: int, architecture: str) -> Iterator[None]:
    """Aborts the construction of networks with more than `most` parameters, inside the context."""
    count = 0

    def add(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count > most:
            raise CompressError(
                f"{architecture} with these arguments has more than {most:,} parameters"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def example_input(model: Classifier) -> Tensor:
    """Returns a random normalized image for the network, float32 `[1, C, H, W]`."""
    assert isinstance(model.normalize, Normalize)
    preprocess = model.normalize.preprocess
    shape = (1, preprocess.channels, preprocess.size, preprocess.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def adapt_stem(network: nn.Module, channels: int, *, small: bool) -> None:
    """Adapts the first convolution to the images, in place.

    A small stem is a 3x3 convolution without stride, of the same width. A patch embedding (kernel =
    stride) keeps its geometry.
    """
    convolutions = [item for item in network.named_modules() if isinstance(item[1], nn.Conv2d)]
    if not convolutions:
        return
    name, old = convolutions[0]
    assert isinstance(old, nn.Conv2d)
    patches = old.kernel_size == old.stride
    small = small and not patches and max(old.stride) > 1
    if old.in_channels == channels and not small:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        3 if small else old.kernel_size,  # type: ignore[arg-type]
        1 if small else old.stride,  # type: ignore[arg-type]
        1 if small else old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


def use_relu(network: nn.Module) -> None:
    """Replaces activations that are slow in int8 with ReLU, in place.

    ONNX Runtime fuses ReLU into quantization; HardSwish and SiLU are separate operators.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in SMOOTH_ACTIVATIONS:
                setattr(parent, name, nn.ReLU())
            if isinstance(child, nn.Dropout):  # ReLU's gradient needs its unmodified output
                child.inplace = False


def try_forward(model: Classifier, spec: ModelSpec) -> None:
    """Checks with a black image that the network accepts the image size.

    Raises:
        CompressError: it does not, or it does not return one logit per class.
    """
    preprocess, was_training = spec.preprocess, model.training
    images = torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = model.eval()(images)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CompressError(
            f"{spec.architecture} does not accept {preprocess.size} px images ({reason}); "
            "choose another size, such as --set data.size=224"
        ) from None
    finally:
        model.train(was_training)
    shape, wanted = tuple(getattr(logits, "shape", ())), (1, len(spec.class_names))
    if shape != wanted:
        raise CompressError(
            f"{spec.architecture} returns a {type(logits).__name__} of shape {shape} for one "
            f"image; it must return a tensor of shape {wanted}, one logit per class (a factory is "
            "called with num_classes)"
        )
