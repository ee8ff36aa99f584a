"""Activation maximisation: many images climb at once, each by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.core.errors import ArgumentError, Mend, ProbingError
from probing.core.progress import Progress
from probing.core.seeds import seed_of
from probing.data.examples import Examples, as_examples
from probing.maximization.ascent_loop import Climb, ZeroGradientError
from probing.maximization.dataset_examples import place
from probing.maximization.objective import Objective
from probing.maximization.objective_reader import Reader, out_of_memory
from probing.maximization.optimizers import Adam, Ascent
from probing.maximization.parameterisations import Fourier, ImageOptionError, ImageParameters, Plan
from probing.maximization.pixel_space import Space, SpaceError
from probing.maximization.regularizers import Operator, Penalty
from probing.maximization.result import Maximization, joined
from probing.maximization.transforms import Pad, Transform, growth, standard, viewed
from probing.models.loading import LoadedModel, Model, module_of
from probing.models.model_cache import identity
from probing.models.precision import Precision, device_of
from probing.models.scores import refuse_training
from probing.results.result import Provenance, describe
from probing.store.store import ActivationStore


class NotFiniteError(ProbingError, ArithmeticError):
    """An objective became NaN or infinite on the way."""


@dataclass(frozen=True)
class Maximize:
    """How images are optimised; call it on a model and objectives.

    Attributes:
        image: what the images are made of.
        regularizers: operators after each step, in their order, and penalties.
        transforms: random views, in their order; None: those of `standard`, for the size at hand.
        ascent: how parameters are moved.
        steps: passes; after the last the images stay as they are.
        seed: of start and views; each image's own seed is made of it and of its objective, see `seed_of`.
        size: side of the images in pixels; by default views are as large as what the model was made for.
        precision: of the passes; what is optimised is float32.
        redirect: first steps in which gradients pass closed rectifiers, for images that have none else.
        batch: images in a pass, at most.
    """

    image: ImageParameters = field(default_factory=Fourier)
    regularizers: tuple[Operator | Penalty, ...] = ()
    transforms: tuple[Transform, ...] | None = None
    ascent: Ascent = field(default_factory=Adam)
    steps: int = 256
    seed: int = 0
    size: int | tuple[int, ...] | None = None
    precision: Precision = field(default_factory=Precision)
    redirect: int = 16
    batch: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ArgumentError(f"steps and batch must be at least 1, got {self.steps}, {self.batch}.")

    def __call__(
        self,
        model: Model,
        objectives: Objective | Sequence[Objective],
        *,
        space: Space | None = None,
        start: Float[Tensor, "n c h w"] | None = None,
        store: ActivationStore | None = None,
        examples: Examples | None = None,
        progress: bool | None = None,
    ) -> Maximization:
        """Return an image for each objective; see `maximize`."""
        net = module_of(model)
        goals = (objectives,) if isinstance(objectives, Objective) else tuple(objectives)
        if not goals:
            raise ArgumentError("give at least one objective, got none.")
        if (store is None) != (examples is None):
            raise ArgumentError("data need both: a store, and the examples to read with it.")
        refuse_training(net)
        space = _space(model, space)
        name = identity(net)
        device = device_of(net)
        views, size = self._views(space)
        run = _Run(self, Reader.of(net, goals, self.precision, device), space, size, views)
        with torch.inference_mode(False), torch.enable_grad():
            parts, notes = run.all(start, progress)
        found = replace(
            joined(parts),
            names=_names(goals),
            objective=tuple(i for i, goal in enumerate(goals) for _ in range(goal.images)),
            notes=notes,
            provenance=replace(Provenance.collect(), model=name, method=describe(self)),
        )
        _refuse_nothing(found)
        if store is None or examples is None:
            return found
        margins = [view for view in views if isinstance(view, Pad)]
        seen = viewed(found.images, margins, torch.empty(len(found.images), 0), space)
        return replace(found, beside=place(found, seen, net, goals, store, as_examples(examples)))

    def _views(self, space: Space) -> tuple[tuple[Transform, ...], tuple[int, int]]:
        """Return the random views, and the height and width of images."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if size and len(size) != 2:
            raise ImageOptionError(
                f"what is optimised is a picture, with colours in [0, 1] and a height and width, got size {size}: a series "
                "or a volume has no such range, spectrum or colours to keep it near data."
            )
        side = min(size) if size else space.size
        if side is None:
            raise SpaceError(
                "the size the model was made for is not known:",
                mends=[Mend("give the images' side in pixels", "size=…")],
            )
        views = standard(side) if self.transforms is None else self.transforms
        size = size or (side - growth(views),) * 2
        if min(size) < 1:
            raise ImageOptionError(
                f"images must have at least 1 pixel, got {size[0]} x {size[1]}: draw them with smaller margins",
                mends=[Mend("give a larger side", "size=…")],
            )
        return views, (size[0], size[1])


def maximize(
    model: Model,
    objectives: Objective | Sequence[Objective],
    *,
    image: ImageParameters | None = None,
    regularizers: Sequence[Operator | Penalty] = (),
    transforms: Sequence[Transform] | None = None,
    ascent: Ascent | None = None,
    steps: int = 256,
    seed: int = 0,
    size: int | tuple[int, ...] | None = None,
    precision: Precision | None = None,
    space: Space | None = None,
    start: Float[Tensor, "n c h w"] | None = None,
    store: ActivationStore | None = None,
    examples: Examples | None = None,
) -> Maximization:
    """Return images that raise objectives: what a unit, a class, a direction or a layer looks for.

    Yosinski et al. 2015, sec. 3, and Olah et al. 2017. All objectives share passes, which end after the
    deepest layer that any of them reads, and each has its own image and its own random numbers: an image
    depends on its batch-mates by rounding only. The settings are those of `Maximize`; presets are in
    `probing.maximization.presets`.

    Args:
        model: in evaluation mode; a loaded model tells its own normalisation.
        objectives: one or many.
        image: what the images are made of, a Fourier spectrum by default.
        regularizers: see `probing.maximization.regularizers`.
        transforms: see `probing.maximization.transforms`; lucid's by default.
        ascent: Adam by default.
        steps: passes.
        seed: of all random numbers; the same call gives the same bits on a CPU, and nearly the same image on a GPU.
        size: side of the images in pixels.
        precision: of the passes.
        space: how pixels become inputs, for a model that does not tell.
        start: pixels in [0, 1] to start from, `[n, c, h, w]`, one picture per image or one for all.
        store: reads the activations of `examples`, among which the images are placed.
        examples: data in the model's own preprocessing.

    Raises:
        SpaceError: if the normalisation, or the size, of the model is not known.
        ImageSizeError: if the model can't take images of this size.
        UnitError: if a unit, a position or a direction does not fit its layer.
        ZeroGradientError: if no objective can be raised from its start.
        NotFiniteError: if an objective becomes NaN or infinite.

    Example:
        >>> maximize(loaded, [Channel("layer3", k) for k in range(64)]).pictures()
    """
    settings = Maximize(
        image=image or Fourier(),
        regularizers=tuple(regularizers),
        transforms=None if transforms is None else tuple(transforms),
        ascent=ascent or Adam(),
        steps=steps,
        seed=seed,
        size=size,
        precision=precision or Precision(),
    )
    return settings(model, objectives, space=space, start=start, store=store, examples=examples)


@dataclass(frozen=True, eq=False)
class _Run:
    """Settings, a prepared model and what it needs of images."""

    settings: Maximize
    reader: Reader
    space: Space
    size: tuple[int, int]
    views: tuple[Transform, ...]

    def all(self, start: Tensor | None, progress: bool | None) -> tuple[list[Maximization], tuple[str, ...]]:
        """Run all objectives, in as many batches as memory asks for."""
        _keep_freed_memory()
        goals = self.reader.objectives
        starts = _starts(start, sum(goal.images for goal in goals))
        parts: list[Maximization] = []
        limit, notes = self.settings.batch, []
        done = shown = 0
        with Progress(self.settings.steps * len(goals), "maximize", progress, unit="steps of images") as bar:
            while done < len(goals):
                chunk = _fitting(goals[done:], limit)
                images = sum(goal.images for goal in chunk)
                part_start = None if starts is None else starts[shown : shown + images]
                try:
                    parts.append(self._chunk(chunk, part_start, bar))
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error) or len(chunk) == 1:
                        raise
                    limit = max(1, images // 2)
                    notes.append(f"Out of memory with {images} images in a pass: went on with at most {limit}.")
                    continue
                done, shown = done + len(chunk), shown + images
        return parts, tuple(notes)

    def _chunk(self, goals: Sequence[Objective], start: Tensor | None, bar: Progress) -> Maximization:
        settings, reader = self.settings, replace(self.reader, objectives=goals)
        seeds = [seed_of(settings.seed, g, j) for g in goals for j in range(g.images)]
        groups = [goal.images for goal in goals]
        plan = Plan(seeds, groups, self.size, self.space, reader.device, start)
        canvas = settings.image.begin(plan)
        operators = [r for r in settings.regularizers if isinstance(r, Operator)]
        if operators and canvas.levels is None:
            raise ImageOptionError(
                f"{type(operators[0]).__name__} works on pixels, and {type(settings.image).__name__} images are made "
                "of something else: use Pixels, or a penalty."
            )
        climb = Climb(
            reader,
            self.space,
            canvas,
            [s + 1 for s in seeds],
            self.views,
            settings.regularizers,
            settings.ascent,
            settings.steps,
            settings.redirect,
        )
        for step in climb:
            bar.advance(len(goals), computed=step >= 0)
        return climb.result()


def _keep_freed_memory() -> None:
    """Have glibc keep what a pass frees for the next one, where it would give it back and fetch it anew.

    It keeps twice the largest block that was freed, if that is no larger than 32 MiB (mallopt(3), M_MMAP_THRESHOLD).
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _fitting(goals: Sequence[Objective], limit: int) -> Sequence[Objective]:
    """Return the first objectives with at most `limit` images together, or one that has more."""
    count, images = 0, 0
    while count < len(goals) and (count == 0 or images + goals[count].images <= limit):
        images += goals[count].images
        count += 1
    return goals[:count]


def _starts(start: Tensor | None, count: int) -> Tensor | None:
    if start is None:
        return None
    if len(start) not in {1, count}:
        raise ImageOptionError(f"give one start picture, or one for each of {count} images, got {len(start)}.")
    if not (float(start.min()) >= 0 and float(start.max()) <= 1):
        raise ImageOptionError(
            f"start pictures are pixels in [0, 1], got {float(start.min()):.3g} to {float(start.max()):.3g}."
        )
    return start.detach().expand(count, -1, -1, -1)


def _names(goals: Sequence[Objective]) -> tuple[str, ...]:
    found: list[str] = []
    for goal in goals:
        found += [goal.name] if goal.images == 1 else [f"{goal.name} ({j + 1})" for j in range(goal.images)]
    return tuple(found)


def _space(model: Model, space: Space | None) -> Space:
    if space is not None:
        return space
    if isinstance(model, LoadedModel):
        return Space.of(model)
    raise SpaceError(
        f"{type(model).__name__} does not tell how pixels become its input: pass space=Space(mean, std, …), "
        "Space.plain() for none, or a LoadedModel."
    )


def _refuse_nothing(found: Maximization) -> None:
    """Raise if no image came of it, or one is not finite."""
    bad: Bool[Tensor, " n"] = ~torch.isfinite(found.trace).all(1) | ~torch.isfinite(found.images).flatten(1).all(1)
    if bad.any():
        i = int(bad.nonzero()[0])
        steps = (~torch.isfinite(found.trace[i])).nonzero()
        when = f"at step {int(steps[0])}" if len(steps) else "in its image"
        raise NotFiniteError(f"the objective {found.names[i]!r} became NaN or infinite {when}: lower the rate.")
    if found.dead.all():
        height, width = found.images.shape[-2:]
        dead = f"the gradient of {found.names[0]!r} is zero at every step"
        if found.space.size and min(height, width) < found.space.size / 4:
            raise ZeroGradientError(
                f"{dead}, images of {height} x {width} pixels may be too small for a model made for {found.space.size}:",
                mends=[Mend("give a larger side", "size=…")],
            )
        raise ZeroGradientError(
            f"{dead}, redirected rectifiers included: the unit is dead, or does not depend on the "
            "image; read the layer before its rectifier."
        )
