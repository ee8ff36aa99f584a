"""Objectives and images of torch-lucent, in this suite's loop: truncated passes, no hook left behind.

Install by the extra `lucent`. Its objectives are functions of `T`, which gives the activation of a layer by a
name with underscores for dots; they are to be lowered. Its images are functions that make parameters
and a function of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.maximization.objective import Objective, Seen, Values
from probing.maximization.parameterisations import Canvas, ImageOptionError, Plan
from probing.models.hooks import capture
from probing.models.layers import LayerNotFoundError
from probing.models.precision import device_of, frozen_copy


@dataclass(frozen=True, eq=False)
class LucentObjective(Objective):
    """An objective of lucent's, raised by lowering what it returns.

    Make one by `from_lucent`, which finds the layers it reads.

    Attributes:
        function: lucent's objective, or any function of `T`.
        paths: dotted path of each layer that it reads, by lucent's name.
        label: what it raises.
        count: of images that it is about.
    """

    function: Callable[[Callable[[str], Tensor]], Tensor]
    paths: dict[str, str]
    label: str
    count: int = 1

    @property
    def name(self) -> str:
        return self.label

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.paths.values())

    @property
    def images(self) -> int:
        return self.count

    @property
    def on_data(self) -> bool:
        """Lucent's objectives give one number for a whole batch."""
        return False

    def __call__(self, seen: Seen) -> Values:
        value = -self.function(lambda name: seen.layers[self.paths[name]])
        return (value / self.count).reshape(1).expand(self.count)


def from_lucent(
    objective: object, model: nn.Module, inputs: Float[Tensor, "n c h w"], *, images: int = 1
) -> LucentObjective:
    """Return lucent's objective as one of this suite's.

    Args:
        objective: lucent's, a string such as `"layer3:5"`, or a function of `T`.
        model: that it is about.
        inputs: as the model takes them; one pass per layer finds what the objective reads.
        images: how many images it is about, as for lucent's `diversity`.

    Raises:
        ImportError: if lucent is not installed.
        LayerNotFoundError: if the objective reads a layer that the model does not have, or the image itself.

    Example:
        >>> maximize(loaded, from_lucent(lucent_objectives.channel("layer3", 5), loaded.model, batch))
    """
    from lucent.optvis import objectives

    function = objectives.as_objective(objective)
    known = {path.replace(".", "_"): path for path, _ in model.named_modules() if path}
    known["labels"] = ""
    net = frozen_copy(model)
    paths: dict[str, str] = {}
    while True:
        rows = _rows(net, paths, inputs[:1].expand(images, -1, -1, -1))
        try:
            function(partial(_asked, rows))
        except _AskedError as asked:
            paths[asked.name] = _path(known, asked.name)
            continue
        label = str(getattr(function, "description", "")) or "lucent's objective"
        return LucentObjective(function, paths, label, images)


@dataclass(frozen=True)
class LucentImage:
    """Images of lucent's making, all of one pass; make one by `LucentImage.of`.

    Lucent draws their start from the global generator, which is seeded and put back. A saved result
    keeps the label, not the function.
    """

    label: str
    param_f: Callable[[], Any] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, param_f: Callable[[], Any], label: str = "lucent's image") -> "LucentImage":
        """Return images of a function that returns parameters and what makes images of them.

        Example:
            >>> LucentImage.of(lambda: lucent.optvis.param.image(128, batch=4))
        """
        image = cls(label)
        object.__setattr__(image, "param_f", param_f)
        return image

    def begin(self, plan: Plan) -> Canvas:
        """Return lucent's parameters."""
        if self.param_f is None:
            raise ImageOptionError(
                f"{self.label!r} was read from a saved result, which holds no function: use LucentImage.of."
            )
        generator: torch.Generator = torch.default_generator
        with torch.random.fork_rng(devices=()):
            generator.manual_seed(plan.seeds[0])
            parameters, image_f = self.param_f()
        made = tuple(image_f().shape)
        if made != (len(plan.seeds), plan.space.channels, *plan.size):
            raise ImageOptionError(
                f"lucent's images have shape {made}, asked for are {len(plan.seeds)} of {plan.size[0]} x "
                f"{plan.size[1]} pixels: use param.image(…, batch={len(plan.seeds)}), and Maximize(size=…, batch=…)."
            )
        return Canvas(tuple(parameters), lambda: plan.space.encode(image_f()))


class _AskedError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _asked(rows: dict[str, Tensor], name: str) -> Tensor:
    if name not in rows:
        raise _AskedError(name)
    return rows[name]


def _rows(model: nn.Module, paths: dict[str, str], inputs: Tensor) -> dict[str, Tensor]:
    if not paths:
        return {}
    with torch.no_grad(), capture(model, list(paths.values())) as kept:
        model(inputs.to(device_of(model)))
    return {name: kept[path] for name, path in paths.items()}


def _path(known: dict[str, str], name: str) -> str:
    if name not in known:
        what = "the image itself: use a penalty" if name == "input" else f"layer {name!r}"
        raise LayerNotFoundError(
            f"lucent's objective reads {what}; the model has no such layer by lucent's names, e.g. {list(known)[:4]}."
        )
    return known[name]
