"""`probing attribute`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli.common import (
    MODEL_REFERENCES,
    CommandError,
    DeviceOption,
    KeysOption,
    WeightsOption,
    class_index,
    new_table,
    output_folder,
    picture_files,
    pictures,
    say,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

    from probing.attribution.base import Attribution, AttributionMethod
    from probing.attribution.perturbation.lime import TextAttribution
    from probing.core.inputs import Inputs
    from probing.core.progress import Progress
    from probing.models.loading import LoadedModel
    from probing.models.scores import Score
    from probing.models.weights import Keys

EXAMPLE = "probing attribute torchvision:resnet18 zebra.jpg --method ig --method gradcam --target zebra --out results/zebra"
TOP, AUTO = "top", "auto"


def attribute(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_REFERENCES.rstrip('.')}, which makes the model; with --text hf:NAME_OR_FOLDER, or a "
            "function itself, from a list of texts to class scores.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE|DIR]...", help="Picture files, or folders of them with all below."),
    ] = None,
    *,
    method: Annotated[
        list[str],
        typer.Option(help="Such as ig, gradcam, lrp or lime; a wrong name lists all. Again for more."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and figures are saved.")],
    target: Annotated[str, typer.Option(help="Class by name or number; top: the one with the highest score.")] = TOP,
    text: Annotated[str | None, typer.Option(help="Explain a text instead of pictures.")] = None,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    background: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures that stand for the data, for expected_gradients."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Points on the path, for ig and others that follow one, each a forward and a backward pass; auto, for ig "
            "and layer_ig: as many as explain the score up to 1 %, which may be 1,600. [default: 50; guided_ig 200, "
            "blur_ig 100]",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="KEY|N",
            help="Which part of the model's output holds the class scores, where it returns several.",
        ),
    ] = None,
    channels: Annotated[
        Literal["sum", "maxabs", "sumabs", "l2"],
        typer.Option(help="How colour channels become one value in figures; sum keeps the sign."),
    ] = "sum",
    device: DeviceOption = "auto",
) -> None:
    """Show which places of pictures, or words of a text, a model's class score depends on."""
    if text is not None and model.startswith("hf:"):
        if images or background:
            raise CommandError("--text takes no pictures and no --background: leave them out.")
        choice = _Choice(method, target, None, steps, output, channels)
        _explain_tokens(model, text, choice, out, (weights, keys, device))
        return
    if text is not None:
        if images or weights or background or steps or output:
            raise CommandError("--text takes no pictures, --weights, --background, --steps or --output: leave them out.")
        _explain_text(model, text, method, target, out)
        return
    if not images:
        raise CommandError("give picture files or folders after MODEL, or a text by --text.")
    choice = _Choice(method, target, background, steps, output, channels)
    choice.check()
    files = picture_files(images)
    output_folder(out)  # a folder that can't be written is reported before the work
    from probing.models import loading

    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    _explain_images(loaded, files, choice, out)


@dataclass(frozen=True)
class _Choice:
    """What is to be explained, and how."""

    names: Sequence[str]
    target: str
    background: Path | None
    steps: str | None
    output: str | None
    channels: Literal["sum", "maxabs", "sumabs", "l2"]

    def methods(self, loaded: "LoadedModel") -> dict[str, "AttributionMethod"]:
        """Return the methods by name, with the background and the steps where they take them."""
        from probing.attribution import ATTENTION_METHODS, METHODS
        from probing.attribution.baselines import Samples
        from probing.core.inputs import one_tensor

        given: dict[str, object] = {}
        if self.background is not None:
            rows = pictures(self.background, loaded, "raise")
            given["background"] = Samples.of(one_tensor(rows.load(range(len(rows)))))
        methods = METHODS | ATTENTION_METHODS
        takes = {n: given.keys() & _fields(methods[n]) for n in self.names}
        return {n: methods[n](**{k: given[k] for k in takes[n]}, **self._steps_of(methods[n])) for n in self.names}

    def _steps_of(self, method: type) -> dict[str, object]:
        """Return the argument that gives a method's path as many steps as were asked for; none where there is no path."""
        from probing.attribution.path import IntegratedGradients

        if self.steps is None:
            return {}
        steps: int | Literal["auto"] = "auto" if self.steps == AUTO else int(self.steps)
        own = {f.name: f.default for f in fields(method)}
        if isinstance(path := own.get("path"), IntegratedGradients):
            return {"path": replace(path, steps=steps)}
        return {"steps": steps} if "steps" in own else {}

    @property
    def part(self) -> str | int | None:
        """The part of the model's output that holds the class scores."""
        return int(self.output) if self.output and self.output.isdecimal() else self.output

    def check(self) -> None:
        """Refuse, before a model is loaded, names that are none and methods that lack what they need."""
        from probing.attribution import ATTENTION_METHODS, METHODS

        _known(self.names, METHODS | ATTENTION_METHODS)
        needs = {name: _needs((METHODS | ATTENTION_METHODS)[name]) for name in self.names}
        for name, arguments in needs.items():
            if other := [a for a in arguments if a != "background"]:
                raise CommandError(
                    f"--method {name} needs {', '.join(other)}, which a command line can't give: use it from Python."
                )
            if arguments and self.background is None:
                raise CommandError(f"--method {name} needs --background DIR: pictures that stand for the data.")
        if self.background is not None and not any(needs.values()):
            raise CommandError("--background is for expected_gradients, which was not asked for.")
        self._check_steps()

    def _check_steps(self) -> None:
        if self.steps is None:
            return
        if self.steps != AUTO and not (self.steps.isdecimal() and int(self.steps)):
            raise CommandError(f"--steps takes a number from 1, or auto, got {self.steps!r}.")
        from probing.attribution import METHODS

        along = [n for n, method in METHODS.items() if _fields(method) & {"steps", "path"}]
        asked = [n for n in self.names if n in along]
        if not asked:
            raise CommandError(f"--steps is for {', '.join(along)}, none of which was asked for.")
        fixed = [n for n in asked if n != "ig" and "path" not in _fields(METHODS[n])]
        if self.steps == AUTO and fixed:
            raise CommandError(f"--method {fixed[0]} takes a number of --steps, not auto.")


def _fields(method: type) -> set[str]:
    return {f.name for f in fields(method)}


def _needs(method: type) -> list[str]:
    """Return the names of arguments that a method has no default for."""
    own = fields(method)
    return [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]


def _known(names: Sequence[str], known: Sequence[str] | dict[str, type]) -> None:
    for name in names:
        if name not in known:
            raise CommandError(f"there is no method {name!r}; methods: {', '.join(known)}.")
        if list(names).count(name) > 1:
            raise CommandError(f"--method {name} is given twice.")


_A_PAGE = 20
"""Pictures that are held at once, and compared in one figure."""


def _explain_images(loaded: "LoadedModel", images: Sequence[Path], choice: _Choice, out: Path) -> None:
    from probing.core.progress import Progress

    methods, names = choice.methods(loaded), _folder_names(images)
    table = new_table("image", "method", "target", "score", "check", "layer")
    gaps: dict[str, list[float]] = {}
    with Progress(len(images) * len(methods), "attribute", unit="maps") as meter:
        for start in range(0, len(images), _A_PAGE):
            some = slice(start, start + _A_PAGE)
            page = _Page(loaded, choice, images[some], names[some], out)
            found = page.explain(methods, meter)
            for name, results in found.items():
                gaps.setdefault(name, []).extend(g for r in results if (g := _gap(r)) is not None)
                for image, result in zip(page.images, results, strict=True):
                    said = (f"{float(result.score[0]):.4g}", result.checks()[0], result.layer)
                    target = _class_name(loaded, result.target[0])
                    table.add_row(image.name, name, target, *said)
            number = f"-{start // _A_PAGE + 1}" if len(images) > _A_PAGE else ""
            page.draw(found, f"comparison{number}")
    show(table)
    for name, missed in gaps.items():
        if missed:
            say(f"{name}: {_gap_in_words(methods[name], missed)}")
    first = str(out / names[0] / choice.names[0])
    say(f"Saved in {out}; Attribution.load({first!r}) reads one back.")


@dataclass(frozen=True)
class _Page:
    """Pictures that are explained together."""

    loaded: "LoadedModel"
    choice: _Choice
    images: Sequence[Path]
    names: Sequence[str]
    out: Path

    @cached_property
    def inputs(self) -> "Tensor":
        """The pictures as the model takes them."""
        from probing.core.inputs import one_tensor
        from probing.data.examples import ImageExamples

        examples = ImageExamples(self.images, self.loaded.preprocess)
        return one_tensor(examples.load(range(len(self.images))))

    def explain(self, methods: Mapping[str, "AttributionMethod"], meter: "Progress") -> dict[str, list["Attribution"]]:
        """Return each method's result for each picture, which is saved as soon as there is one."""
        from probing.models.scores import Score

        targets = _targets(self.loaded, self.inputs, self.choice)
        found: dict[str, list[Attribution]] = {}
        for name, explain in methods.items():
            for i, target in enumerate(targets):
                score = Score(self.loaded.model, target, output=self.choice.part)
                one = self.inputs[i : i + 1]
                result = _explained(name, explain, score, one, repr(str(self.images[i])))
                result.save(self.out / self.names[i] / name)
                found.setdefault(name, []).append(result)
                meter.advance(1)
        return found

    def draw(self, found: dict[str, list["Attribution"]], title: str) -> None:
        """Save the figures of what was found."""
        import torch

        classes = [_class_name(self.loaded, r.target[0]) for r in next(iter(found.values()))]
        shown = torch.stack([_as_picture(x, self.loaded.transform) for x in self.inputs])
        _draw(self.out, title, self.names, found, shown, classes, self.choice.channels)


def _gap(result: "Attribution") -> float | None:
    """Return by which share of the score's change a map fails to add up to it; None for maps that need not."""
    relative = result.diagnostics.get("relative_gap")
    if relative is None:
        return None
    unmoved = result.diagnostics.get("unmoved")
    own = unmoved is not None and bool(unmoved[0] == 1)  # of nothing, nothing is missed
    return 0.0 if own else float(relative[0])


def _gap_in_words(method: "AttributionMethod", gaps: Sequence[float]) -> str:
    from probing.attribution.path import IntegratedGradients, LayerIntegratedGradients

    path = method.path if isinstance(method, LayerIntegratedGradients) else method
    if unknown := sum(map(math.isnan, gaps)):
        return f"of {unknown} of {len(gaps)} maps it is unknown by how much they miss the score's change."
    gap = max(gaps)
    missed = f"maps miss at most {gap:.1%} of the score's change from the baseline"
    if not isinstance(path, IntegratedGradients) or path.steps == AUTO:
        return f"{missed}."
    said = f"with {path.steps} steps, {missed}"
    if gap <= path.tolerance:
        return f"{said}."
    return f"{said}; --steps auto takes as many as bring it to {path.tolerance:.0%}, up to 1,600."


def _explained(
    name: str, explain: "AttributionMethod", score: "Score", inputs: "Tensor | Inputs", what: str
) -> "Attribution":
    from probing.core.inputs import InputError
    from probing.models.geometry import RefusedError
    from probing.models.readings import OutputError

    try:
        return explain(score, inputs)  # type: ignore[arg-type]  # methods of the suite take named tensors too
    except (RefusedError, OutputError) as error:
        raise CommandError(f"--method {name}: {error.args[0]}", mends=error.mends) from None
    except InputError as error:  # of this picture, among others
        said = f"{what}, --method {name}: {error.args[0]}"
        raise CommandError(said, mends=error.mends) from None


def _targets(loaded: "LoadedModel", inputs: "Tensor", choice: _Choice) -> list[int]:
    """Return the class that is explained of each input."""
    import torch

    from probing.models.precision import device_of
    from probing.models.scores import class_scores

    if choice.target != TOP:
        return [class_index(loaded, choice.target)] * len(inputs)
    placed = inputs.to(device_of(loaded.model))
    with torch.no_grad():
        tops = [class_scores(loaded.model(x[None]), choice.part).argmax(1) for x in placed]
    return [int(top) for top in tops]


def _class_name(loaded: "LoadedModel", target: int | str) -> str:
    if isinstance(target, str):
        return target
    return loaded.classes[target] if loaded.classes else f"class {target}"


def _folder_names(images: Sequence[Path]) -> list[str]:
    """Return a name for each picture's results: that of its file, numbered where several have it."""
    taken: list[str] = []
    for image in images:
        name, count = image.stem, 2
        while name in taken:
            name, count = f"{image.stem}-{count}", count + 1
        taken.append(name)
    return taken


def _as_picture(row: "Tensor", transform: object) -> "Tensor":
    """Return an input as colours between 0 and 1: as it was before normalising, where that is known."""
    import torch

    from probing.data.images import Preprocess
    from probing.results.heatmaps import pictures as displayed

    if isinstance(transform, Preprocess):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (transform.mean, transform.std))
        row = ((row * std + mean) / transform.maximum).clamp(0, 1)
        row = row.flip(0) if transform.channels == "bgr" else row
    return displayed(row[None])[0]


def _draw(
    out: Path,
    title: str,
    names: Sequence[str],
    found: dict[str, list["Attribution"]],
    images: "Tensor",
    classes: Sequence[str],
    channels: Literal["sum", "maxabs", "sumabs", "l2"],
) -> None:
    """Save a figure of each map, and one of all side by side with an edge detector as a control."""
    import torch

    from probing.results.figures import save_figure
    from probing.results.heatmaps import ALPHA, Column, edge_control, side_by_side

    columns: list[Column] = []
    for name, results in found.items():
        if results[0].values.ndim != 4:
            shape = tuple(results[0].values.shape)
            say(f"{name}: values of shape {shape} are no map; saved without figure.", err=True)
            continue
        own = [r.column(name, channels=channels, notes=r.checks()) for r in results]
        for i, alone in enumerate(own):
            over = results[i].column("over the input", channels=channels, alpha=ALPHA)
            said = [_label(names[i], classes[i], results[i])]
            figure = side_by_side([alone, over], images[i : i + 1], names=said, per_line=3)
            save_figure(figure, out / names[i] / name)
        maps = torch.cat([c.maps for c in own])
        columns.append(Column(name, maps, tuple(c.notes[0] for c in own), own[0].signed))
    if columns:
        first = next(iter(found.values()))
        said = [_label(n, c, r) for n, c, r in zip(names, classes, first, strict=True)]
        per_line = len(columns) + 2 if len(columns) <= 6 else 6
        columns.append(edge_control(images))
        whole = side_by_side(columns, images, names=said, per_line=per_line)
        save_figure(whole, out / title)


def _label(name: str, target: str, result: "Attribution") -> str:
    return f"{name}\n{target}\n{result.unit} {float(result.score[0]):.3g}"


def _explain_text(model: str, text: str, method: Sequence[str], target: str, out: Path) -> None:
    from probing.attribution import TEXT_METHODS
    from probing.models.loading import load_function
    from probing.results.figures import save_figure

    _known(method, TEXT_METHODS)
    if target != TOP and not target.isdecimal():
        raise CommandError(f"with --text, --target takes a class's number or top, got {target!r}.")
    _refuse_text(text)
    output_folder(out)
    predict = load_function(model)
    for name in method:
        result = TEXT_METHODS[name]()(predict, text, None if target == TOP else int(target))
        result.save(out / name)
        save_figure(result.plot(), out / name)
        page = f'<!doctype html><meta charset="utf-8"><title>{name}</title>{result.html()}\n'
        (out / f"{name}.html").write_text(page, encoding="utf-8")
        _show_words(result)
        say(f"Saved in {out}; TextAttribution.load({str(out / name)!r}) reads it back.")


def _explain_tokens(model: str, text: str, choice: _Choice, out: Path, how: "tuple[str | None, Keys, str]") -> None:
    """Explain a text by a model of transformers, at what it looks up for the tokens."""
    from probing.core.inputs import Inputs
    from probing.data.examples import examples
    from probing.models import loading
    from probing.models.hugging_face import TextTokens
    from probing.models.scores import Score
    from probing.results.figures import save_figure

    choice.check()
    _refuse_text(text)
    output_folder(out)
    weights, keys, device = how
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    if not isinstance(loaded.transform, TextTokens):
        raise CommandError(f"{model!r} takes no texts, or came without its tokeniser: give pictures, or save it beside.")
    inputs = examples([text], loaded.transform).load([0])
    assert isinstance(inputs, Inputs)
    target = None if choice.target == TOP else class_index(loaded, choice.target)
    for name, explain in choice.methods(loaded).items():
        result = _explained(name, explain, Score(loaded.model, target, output=choice.part), inputs, repr(text[:40]))
        result.save(out / name)
        if result.values.ndim == 3:
            save_figure(result.plot(), out / name)
            page = f'<!doctype html><meta charset="utf-8"><title>{name}</title>{result.text_html(0)}\n'
            (out / f"{name}.html").write_text(page, encoding="utf-8")
            table = new_table("token", "contribution")
            for token, part in zip(inputs.tokens[0], result.token_values()[0].tolist(), strict=True):
                table.add_row(token.strip(), f"{part:+.4g}")
            show(table)
        said = f"{_class_name(loaded, result.target[0])}, {result.unit} {float(result.score[0]):.4g}; {result.checks()[0]}"
        say(f"{name}: {said.removesuffix('; ')}")
        say(f"Saved in {out}; Attribution.load({str(out / name)!r}) reads it back.")


_LONGEST = 100_000


def _refuse_text(text: str) -> None:
    if len(text) > _LONGEST:
        raise CommandError(f"--text has {len(text)} characters, over the limit of {_LONGEST}: give the passage you mean.")
    if broken := [i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"]:
        raise CommandError(f"--text is no UTF-8 at character {broken[0] + 1}: write it in UTF-8.")


def _show_words(result: "TextAttribution") -> None:
    table = new_table("word", "contribution", "standard error")
    chosen = result.values.abs().argsort(descending=True, stable=True)
    for i in chosen[result.values[chosen] != 0].tolist():
        error = float(result.standard_error[i])
        table.add_row(result.parts[i], f"{float(result.values[i]):+.4g}", f"{error:.2g}")
    show(table)
    from probing.attribution.base import r2_in_words

    facts = result.diagnostics
    say(
        f"class {result.target}, score {result.score:.4g}; the linear model gives "
        f"{facts['prediction']:.4g}, {r2_in_words(facts['r2'])} over {result.n_forward:,} texts"
    )
