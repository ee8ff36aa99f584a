"""Named inputs: some are explained, the others go with their row; token ids are explained where they are looked up."""

from collections.abc import Callable, Mapping
from typing import Any

import nets
import pytest
import torch
from captum.attr import LayerIntegratedGradients as Captum
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import probing as pb
from concepts.data.concept_sets import Concept
from concepts.tcav.tcav import Tcav
from probing.attribution.base import Attribution, AttributionMethod, checked
from probing.attribution.baselines import Constant
from probing.attribution.lrp.composites import EpsilonPlus, EpsilonPlusFlat
from probing.attribution.perturbation.superpixels import Each
from probing.attribution.perturbation.surrogate import ExactShapley
from probing.core.inputs import InputError, Inputs, padded
from probing.models.precision import Precision
from probing.models.readings import NextToken
from probing.probes import LayerProbes, RidgeProbe

DOUBLE = Precision("float64")
A = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
B = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.double)
SCALE = torch.tensor([1.0, -2.0, 5.0]).double()[:, None]
LENGTHS = (9, 4, 6)
IDS = torch.randint(1, 20, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
TEXTS = {"input_ids": IDS * MASK, "attention_mask": MASK}


class Scaled(nn.Module):
    """A rectified dense layer, whose output is multiplied by another input of the same row."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu()) * scale


class Two(nn.Module):
    """Two inputs of different shapes that meet in a rectifier; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.left(a) + self.right(b.flatten(1))).relu())


@pytest.fixture(scope="module")
def scaled() -> nn.Module:
    return nets.seeded(Scaled()).double()


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        max_position_embeddings=16,
    )
    return nets.seeded(BertForSequenceClassification(config)).double()


METHODS: dict[str, Callable[..., AttributionMethod]] = {
    "saliency": pb.Saliency,
    "gradient x input": pb.GradientTimesInput,
    "IG": lambda **size: pb.IntegratedGradients(steps=7, **size),
    "adaptive IG": lambda **size: pb.IntegratedGradients(steps="auto", **size),
    "layer IG": lambda **size: pb.LayerIntegratedGradients("hidden", pb.IntegratedGradients(steps=7, **size)),
    "expected gradients": lambda **size: pb.ExpectedGradients(A[:2] + 1, samples=5, **size),
    "SmoothGrad": lambda **size: pb.SmoothGrad(samples=3, **size),
    "LRP": lambda **size: pb.LRP(EpsilonPlus(), **size),
    "LIME": lambda **size: pb.LIME(parts=Each(), hidden=Constant(), surrogate=ExactShapley(), **size),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_other_inputs_go_with_their_row(name: str, batch_size: int | str, scaled: nn.Module) -> None:
    found: Attribution = METHODS[name](batch_size=batch_size)(pb.Score(scaled, 1), Inputs({"x": A, "scale": SCALE}, ("x",)))
    for row in range(3):  # as if the model had that row's scale built in

        class Fixed(nn.Module):
            def __init__(self, row: int = row) -> None:
                super().__init__()
                self.hidden, self.head = scaled.hidden, scaled.head
                self.row = row

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.hidden(x).relu()) * SCALE[self.row]

        alone = METHODS[name]()(pb.Score(Fixed().eval(), 1), A[row : row + 1])
        torch.testing.assert_close(found.values[row : row + 1], alone.values)
        torch.testing.assert_close(found.score[row : row + 1], alone.score)


def test_parts_of_two_inputs_sum_to_the_score_over_both() -> None:
    net = nets.seeded(Two()).double()
    both = {"a": A, "b": B}
    for method in (pb.IntegratedGradients(steps="auto", tolerance=1e-6), pb.LRP(EpsilonPlus(epsilon=1e-12))):
        found = method(net, both, target=1)
        parts = found.parts()
        assert {name: part.shape for name, part in parts.items()} == {"a": A.shape, "b": B.shape}
        total = sum(part.flatten(1).sum(1) for part in parts.values())
        torch.testing.assert_close(total, net(**both)[:, 1].detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.values.sum(1), total)
    slopes = pb.Saliency()(net, both, target=1).parts()
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    expected = torch.autograd.grad(net(a, b)[:, 1].sum(), (a, b))
    torch.testing.assert_close(slopes["a"], expected[0])
    torch.testing.assert_close(slopes["b"], expected[1])
    alone = pb.Saliency()(net, Inputs(both, explain=("b",)), target=1)
    torch.testing.assert_close(alone.values, expected[1])
    assert alone.input_names == ("b",)


def looked_up(bert: Any) -> Tensor:
    return bert.bert.embeddings.word_embeddings(TEXTS["input_ids"]).detach()


def by_autograd(bert: Any, points: Tensor) -> Tensor:
    """Return the gradient at what is looked up, given in the place of token ids."""
    at = points.clone().requires_grad_()
    output = bert(inputs_embeds=at, attention_mask=MASK).logits
    return torch.autograd.grad(output[:, 1].sum(), at)[0]


def test_token_ids_are_explained_where_they_are_looked_up(bert: nn.Module) -> None:
    points = looked_up(bert)
    found = pb.Saliency()(bert, TEXTS, target=1)
    torch.testing.assert_close(found.values, by_autograd(bert, points))
    torch.testing.assert_close(found.score, bert(**TEXTS).logits[:, 1].detach())
    assert found.input_names == ("input_ids",)
    assert found.read is not None
    assert torch.equal(found.read, MASK.bool())
    path = [by_autograd(bert, points * (k + 0.5) / 4) for k in range(4)]
    integrated = pb.IntegratedGradients(steps=4)(bert, TEXTS, target=1)
    torch.testing.assert_close(integrated.values, points * torch.stack(path).mean(0))
    whole = pb.Saliency()(bert, IDS, target=1)  # one tensor, which the model takes as its first argument
    torch.testing.assert_close(whole.values[:1], pb.Saliency()(bert, {"input_ids": IDS[:1]}, target=1).values)


def test_integrated_gradients_are_captums(bert: Any) -> None:
    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return bert(input_ids=ids, attention_mask=mask).logits

    theirs = Captum(logits, bert.bert.embeddings.word_embeddings).attribute(
        TEXTS["input_ids"],
        baselines=torch.zeros_like(IDS),
        additional_forward_args=(MASK,),
        target=1,
        n_steps=16,
        method="gausslegendre",
    )
    path = pb.IntegratedGradients(steps=16, rule="gauss_legendre")
    layer = "bert.embeddings.word_embeddings"
    ours = pb.LayerIntegratedGradients(layer, path, space="input")(bert, TEXTS, target=1)
    torch.testing.assert_close(ours.values, theirs, rtol=0, atol=1e-4)
    of_zero = bert.bert.embeddings.word_embeddings.weight[0].detach()
    baseline = of_zero.expand(9, 16)[None].contiguous()
    automatic = pb.IntegratedGradients(baseline=baseline, steps=16, rule="gauss_legendre")(bert, TEXTS, target=1)
    torch.testing.assert_close(automatic.values, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        pb.Saliency(),
        pb.IntegratedGradients(steps=5),
        pb.LRP(EpsilonPlus()),
        pb.SmoothGrad(samples=3),
        pb.LIME(),
    ],
    ids=["saliency", "IG", "LRP", "SmoothGrad", "LIME"],
)
def test_maps_of_a_text_do_not_depend_on_its_padding(method: AttributionMethod, bert: nn.Module) -> None:
    score = pb.Score(bert, 1)
    found = method(score, TEXTS)  # type: ignore[arg-type]
    for row, length in enumerate(LENGTHS):
        alone = method(score, {"input_ids": IDS[row : row + 1, :length]})  # type: ignore[arg-type]
        torch.testing.assert_close(found.values[row, :length], alone.values[0], rtol=0, atol=1e-5)
        assert not found.values[row, length:].any()
        for name, value in alone.diagnostics.items():
            if value.ndim == 1:
                torch.testing.assert_close(found.diagnostics[name][row], value[0], rtol=0, atol=1e-5, equal_nan=True)


def test_what_is_looked_up_is_no_first_layers_input_to_lrp(bert: nn.Module) -> None:
    default, plain = (pb.LRP(composite)(bert, TEXTS, target=1) for composite in (EpsilonPlusFlat(), EpsilonPlus()))
    torch.testing.assert_close(default.values, plain.values)  # the flat rule is for pixels


def test_rows_probes_and_tcav_do_not_depend_on_padding(bert: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 20, (30, 6), generator=generator)
    lengths = 2 + torch.arange(30) % 5
    layer, labels = "bert.encoder.layer.0", [i % 3 % 2 for i in range(30)]

    def texts(width: int) -> dict[str, Tensor]:
        mask = (torch.arange(width) < lengths[:, None]).long()
        return {"input_ids": nn.functional.pad(ids, (0, width - 6)) * mask, "attention_mask": mask}

    def some(of: Mapping[str, Tensor], part: slice) -> pb.ExampleSet:
        return pb.examples({name: tensor[part] for name, tensor in of.items()})

    def measured(width: int) -> list[Tensor]:
        store, given = pb.ActivationStore(precision=DOUBLE, progress=False), texts(width)
        rows = store.activations(bert, [layer], given, pool="mean")[layer]
        probes = LayerProbes(layer, RidgeProbe((1.0,)), inputs=False, untrained=False, controls=0, description_length=False)
        tcav = Tcav(null=None, runs=2, relabellings=9)(
            store,
            {"one": pb.Score(bert, 1)},
            [layer],
            [Concept("c", some(given, slice(10)))],
            some(given, slice(10, 20)),
            some(given, slice(20, 30)),
        )
        return [rows, probes(store, bert, given, labels).error, tcav.accuracy, tcav.effect]

    found = measured(6)
    for one, other in zip(found, measured(9), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, equal_nan=True)
    store = pb.ActivationStore(precision=DOUBLE, progress=False)
    for row in (0, 3):
        alone = {"input_ids": ids[row : row + 1, : lengths[row]]}
        rows = store.activations(bert, [layer], alone, pool="mean")[layer]
        torch.testing.assert_close(found[0][row], rows[0], rtol=0, atol=1e-5)
    slopes = store.gradients(pb.Score(bert, 1), [layer], texts(8), pool="mean")[layer]
    torch.testing.assert_close(
        slopes, store.gradients(pb.Score(bert, 1), [layer], texts(6), pool="mean")[layer], rtol=0, atol=1e-5
    )


def test_probes_and_tcav_of_padded_texts_are_those_of_rows_of_each_text_alone(bert: Any) -> None:
    generator, layer = torch.Generator().manual_seed(2), "bert.encoder.layer.0"
    ids = torch.randint(1, 20, (30, 6), generator=generator)
    lengths = 2 + torch.arange(30) % 5
    labels = [i % 3 % 2 for i in range(30)]
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Any) -> Any:
        kept.append((output if isinstance(output, Tensor) else output[0]).detach().requires_grad_())
        return kept[-1] if isinstance(output, Tensor) else (kept[-1], *output[1:])

    rows, slopes = [], []
    handle = bert.get_submodule(layer).register_forward_hook(keep)
    for row, length in enumerate(lengths):
        score = bert(input_ids=ids[row : row + 1, :length]).logits[0, 1]
        (slope,) = torch.autograd.grad(score, kept[-1])
        rows.append(kept[-1][0].detach().mean(0))
        slopes.append(slope[0].sum(0))
    handle.remove()
    alone, steep = torch.stack(rows), torch.stack(slopes)

    mask = (torch.arange(9) < lengths[:, None]).long()
    texts = {"input_ids": nn.functional.pad(ids, (0, 3)) * mask, "attention_mask": mask}
    store = pb.ActivationStore(precision=DOUBLE, progress=False)
    torch.testing.assert_close(store.activations(bert, [layer], texts, pool="mean")[layer], alone, rtol=0, atol=1e-5)
    kind = {"inputs": False, "untrained": False, "controls": 0, "description_length": False}
    found = LayerProbes(layer, RidgeProbe((1.0,)), **kind)(store, bert, texts, labels)
    same = LayerProbes("0", RidgeProbe((1.0,)), **kind)(store, nn.Sequential(nn.Identity()).eval(), alone, labels)
    torch.testing.assert_close(found.error, same.error, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.train_error, same.train_error, rtol=0, atol=1e-5)

    parts = [pb.examples({n: t[rows] for n, t in texts.items()}) for rows in (slice(10), slice(10, 20), slice(20, 30))]
    tcav = Tcav(null=None, runs=2, relabellings=9)
    effect = tcav(store, {"one": pb.Score(bert, 1)}, [layer], [Concept("c", parts[0])], parts[1], parts[2]).effect
    expected = (steep[10:20] @ (alone[:10].mean(0) - alone[20:].mean(0))).mean()
    assert abs(float(effect) - float(expected)) < 1e-5
    assert abs(float(expected)) > 1e-4


def test_integrated_gradients_of_a_language_model_add_up() -> None:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    net = nets.seeded(LlamaForCausalLM(config))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    for token in (NextToken(5), NextToken(5, instead_of=9)):
        found = pb.IntegratedGradients(steps="auto")(net, TEXTS, token)
        assert found.baseline_score is not None
        whole = (found.score - found.baseline_score).double()
        missed = found.values.double().flatten(1).sum(1) - whole
        assert (missed.abs() <= 0.01 * whole.abs()).all()


class Table(nn.Module):
    """Looks ids up in one way or another, and averages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second, self.head = kind, nn.Embedding(20, 4), nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        found = nn.functional.embedding(ids, self.first.weight) if self.kind == "function" else self.first(ids)
        if self.kind == "two":
            found = found + self.second(ids)
        if self.kind == "again":
            found = found + self.first(ids)
        if self.kind == "positions":
            found = found + self.first(torch.arange(ids.shape[1]).expand(ids.shape))
        return self.head(found.mean(1).relu())


def test_ids_of_which_it_is_not_known_where_they_are_looked_up_are_refused() -> None:
    for kind, message in (
        ("function", "no layer of Table takes them"),
        ("two", r"several layers, \['first', 'second'\], which return different"),
        ("again", r"several times, by \['first:0', 'first:1'\]"),
    ):
        with pytest.raises(InputError, match=message):
            pb.Saliency()(nets.seeded(Table(kind)), IDS, target=1)


def test_a_table_that_is_asked_for_positions_too_is_replaced_for_ids_only() -> None:
    net = nets.seeded(Table("positions"))
    ids = torch.arange(5).expand(2, 5).contiguous()  # which could be taken for the positions
    found = pb.Saliency()(net, ids, target=1)
    at = net.first(ids).detach().requires_grad_()
    output = net.head((at + net.first(torch.arange(5).expand(2, 5))).mean(1).relu())
    torch.testing.assert_close(found.values, torch.autograd.grad(output[:, 1].sum(), at)[0])


def test_named_inputs_that_a_model_does_not_take_are_refused(scaled: nn.Module) -> None:
    with pytest.raises(InputError, match=r"\['y', 'scale'\] don't fit Scaled, whose forward takes \['x', 'scale'\]"):
        pb.Saliency()(scaled, {"y": A, "scale": SCALE}, target=1)
    with pytest.raises(InputError, match=r"rows \{'x': 3, 'scale': 2\}"):
        pb.Saliency()(scaled, {"x": A, "scale": SCALE[:2]}, target=1)
    with pytest.raises(InputError, match="no input 'z' to explain"):
        Inputs({"x": A}, explain=("z",))
    with pytest.raises(InputError, match="a list: leave it out, or make one of it"):
        Inputs({"x": A, "offsets": [[0, 1]] * 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"can't be told which are to be explained: name them by explain=…"):
        _ = Inputs({"words": IDS, "letters": IDS}).explained


class Captioned(nn.Module):
    """Adds what is looked up for ids to a picture's means."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4000, 3), nn.Linear(3, 2)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = (self.table(input_ids) * attention_mask[..., None]).sum(1)
        return self.head((pixel_values.mean((2, 3)) + words).tanh())


def test_token_ids_beside_pictures_of_few_digits_stay_what_they_are() -> None:
    net = nets.seeded(Captioned()).half()
    ids = torch.tensor([[3001, 2], [2049, 3999]])  # of which float16 holds only half
    both = {"pixel_values": torch.randn(2, 3, 4, 4).half(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = pb.LayerIntegratedGradients("table", pb.IntegratedGradients(steps=4))(net, both, target=1)
    torch.testing.assert_close(found.score.float(), net(**both)[:, 1].detach().float(), rtol=0, atol=1e-3)
    assert found.values.shape == (2, 2, 3)


def test_padding_widens_what_goes_by_tokens_only() -> None:
    few = Inputs({"pixel_values": torch.randn(1, 3, 4, 4), "sizes": torch.ones(1, 3), **_text(3)})
    wide = padded(few, 5, fill=9)
    shapes = {name: tuple(tensor.shape) for name, tensor in wide.tensors.items()}
    assert shapes == {"pixel_values": (1, 3, 4, 4), "sizes": (1, 3), "input_ids": (1, 5), "attention_mask": (1, 5)}
    assert wide.tensors["input_ids"].tolist() == [[1, 2, 3, 9, 9]]
    assert wide.tensors["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    added = torch.tensor([[0.0, 0.0, -torch.inf]])
    read = Inputs({"input_ids": IDS[:1, :3], "attention_mask": added}).read
    assert read is not None
    assert read.tolist() == [[True, True, False]]


def _text(length: int) -> dict[str, Tensor]:
    ids = torch.arange(1, length + 1)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_score_with_other_inputs_takes_no_ids_in_their_place(bert: nn.Module) -> None:
    score, points = checked(pb.Score(bert, 1), TEXTS)
    assert points.shape == (3, 9, 16)
    with pytest.raises(InputError, match="holds other inputs already"):
        pb.Saliency()(score, IDS)
    with pytest.raises(InputError, match="2 points of 3 examples"):
        score(points[:2])
    torch.testing.assert_close(score(points[:2], torch.tensor([0, 1])), pb.Score(bert, 1)(TEXTS)[:2])
