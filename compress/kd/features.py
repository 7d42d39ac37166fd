"""Hints: match intermediate features of student and teacher, recorded by forward hooks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import CompressError
from compress.kd.config import HintLoss
from compress.kd.losses import attention_transfer, feature_hint
from compress.settings import nearest


class HintedStudent(nn.Module):
    """A student in training whose features are compared with the teacher's.

    Args:
        student: maps images to logits.
        teacher: likewise; run it on the same images before calling `hint_loss`.
        pairs: layer names `STUDENT:TEACHER`, separated by commas.
        loss: `features` compares through a learned 1x1 convolution, `attention` compares attention
            maps.
        images: a sample, uint8 `[N, C, H, W]`, to find out the number of channels.

    Raises:
        CompressError: a layer does not exist, or its output is not a feature map.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: str, loss: HintLoss, images: Tensor
    ) -> None:
        super().__init__()
        self.student = student
        self.loss_name = loss
        self._features: dict[tuple[str, int], Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        names = [tuple(map(str.strip, pair.partition(":")[::2])) for pair in pairs.split(",")]
        for number, (of_student, of_teacher) in enumerate(names):
            self._record(student, of_student, ("student", number))
            self._record(teacher, of_teacher, ("teacher", number))
        was_training = student.training
        with torch.no_grad():
            student.eval()(images)
            teacher(images)
        student.train(was_training)
        _check_feature_maps(names, self._pairs())
        self.projections = nn.ModuleList(
            nn.Conv2d(own.shape[1], target.shape[1], 1, bias=False)
            for own, target in self._pairs()
            if loss == "features"
        )

    def __getstate__(self) -> dict[str, object]:
        """Leaves out recorded features: tensors of a graph cannot be copied."""
        return {**self.__dict__, "_features": {}}

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to the student's logits `[N, classes]`."""
        return self.student(images)  # type: ignore[no-any-return]

    def hint_loss(self) -> Tensor:
        """Returns the mean loss over all pairs for the images that both networks saw last."""
        losses = []
        for number, pair in enumerate(self._pairs()):
            size = min(features.shape[-1] for features in pair)
            own, target = (F.adaptive_avg_pool2d(features.float(), size) for features in pair)
            if self.loss_name == "features":
                losses.append(feature_hint(self.projections[number](own), target))
            else:
                losses.append(attention_transfer(own, target))
        return torch.stack(losses).mean()

    def remove_hooks(self) -> None:
        """Restores both networks."""
        for hook in self._hooks:
            hook.remove()

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Returns the recorded features of student and teacher, by pair."""
        recorded = self._features
        return [
            (recorded["student", number], recorded["teacher", number])
            for number in range(len(recorded) // 2)
        ]

    def _record(self, model: nn.Module, name: str, key: tuple[str, int]) -> None:
        network = getattr(model, "network", model)
        layers = dict(network.named_modules())
        if name not in layers or not name:
            raise CompressError(
                f"hints: the {key[0]} has no layer {name!r}; {nearest(name, filter(None, layers))}"
            )

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._features[key] = output

        self._hooks.append(layers[name].register_forward_hook(hook))


def _check_feature_maps(
    names: Sequence[tuple[str, ...]], features: Sequence[tuple[Tensor, Tensor]]
) -> None:
    for pair_names, pair in zip(names, features, strict=True):
        for name, output in zip(pair_names, pair, strict=True):
            if output.ndim != 4:
                raise CompressError(
                    f"hints: the output of layer {name!r} has {output.ndim} dimensions; choose a "
                    "layer with feature maps [N, C, H, W]"
                )
