"""Inner features of the teacher as hints for the student, taken by forward hooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import CompressError
from compress.kd.losses import attention_transfer, feature_hint
from compress.settings import nearest


class Hinted(nn.Module):
    """A student in training whose inner features are compared with its teacher's.

    Args:
        student: takes images.
        teacher: likewise; asked about the same pixels before `hint_loss` is called.
        pairs: names of layers, `STUDENT:TEACHER` by commas.
        loss: `features` compares them through a learned 1x1 convolution, `attention` their maps of
            where something is.
        images: an example, uint8 `[N, C, H, W]`, that shows the features' widths.

    Raises:
        CompressError: a layer does not exist, or gives no feature map.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: str, loss: str, images: Tensor
    ) -> None:
        super().__init__()
        self.student = student
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.loss_name = loss
        names = [pair.partition(":")[::2] for pair in pairs.split(",")]
        for place, (of_student, of_teacher) in enumerate(names):
            self._watch(student, of_student.strip(), ("student", place))
            self._watch(teacher, of_teacher.strip(), ("teacher", place))
        was_training = student.training
        with torch.no_grad():
            student.eval()(images)
            teacher(images)
        student.train(was_training)
        widths = [
            (self._seen["student", place], self._seen["teacher", place])
            for place in range(len(names))
        ]
        for (of_student, of_teacher), pair in zip(names, widths, strict=True):
            for name, features in zip((of_student, of_teacher), pair, strict=True):
                if features.ndim != 4:
                    raise CompressError(
                        f"hints: layer {name!r} gives {features.ndim} dimensions, a feature map "
                        "has 4: [N, C, H, W]"
                    )
        self.projections = nn.ModuleList(
            nn.Conv2d(mine.shape[1], other.shape[1], 1, bias=False)
            for mine, other in widths
            if loss == "features"
        )

    def __getstate__(self) -> dict[str, object]:
        """Returns what a copy takes over: not the features last seen, which belong to a graph."""
        return {**self.__dict__, "_seen": {}}

    def forward(self, images: Tensor) -> Tensor:
        """Maps pixels to the student's logits `[N, classes]`."""
        return self.student(images)  # type: ignore[no-any-return]

    def hint_loss(self) -> Tensor:
        """Returns the mean loss of the pairs, for the last pixels that both networks saw."""
        losses = []
        for place in range(len(self._seen) // 2):
            mine, other = self._seen["student", place].float(), self._seen["teacher", place].float()
            side = min(mine.shape[-1], other.shape[-1])
            mine, other = F.adaptive_avg_pool2d(mine, side), F.adaptive_avg_pool2d(other, side)
            if self.loss_name == "features":
                losses.append(feature_hint(self.projections[place](mine), other))
            else:
                losses.append(attention_transfer(mine, other))
        return torch.stack(losses).mean()

    def stop(self) -> None:
        """Leaves both networks as they were."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, model: nn.Module, name: str, key: tuple[str, int]) -> None:
        network = getattr(model, "network", model)
        known = dict(network.named_modules())
        if name not in known or not name:
            raise CompressError(
                f"hints: the {key[0]} has no layer {name!r}; {nearest(name, filter(None, known))}"
            )

        def remember(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._seen[key] = output

        self._hooks.append(known[name].register_forward_hook(remember))
