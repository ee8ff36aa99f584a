"""Similarity of maps, and whether they change when the network forgets what it learned."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace

import nets
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from where import ROOT

from probing.attribution.gradient import GradientTimesInput, GuidedBackprop, Saliency
from probing.attribution.path import IntegratedGradients
from probing.core.content_ids import model_id
from probing.evaluation.base import EvaluationError, Tally, mean_interval
from probing.evaluation.randomisation import (
    CascadingRandomisation,
    IndependentRandomisation,
    Randomisation,
)
from probing.evaluation.reference_maps import EdgeDetector, InputSize, RandomMap
from probing.evaluation.reinitialise import Block, UnchangedError, plan_of, randomised, redraw
from probing.evaluation.similarity import (
    SIMILARITIES,
    AbsoluteSpearman,
    HogSimilarity,
    SignedSpearman,
    TopIou,
    _ranks,
    hog,
    ssim,
)
from probing.models.scores import Score


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv() -> nn.Module:
    return nets.seeded(nets.ConvNet()).double()


# Similarity


@pytest.mark.parametrize("name", SIMILARITIES)
def test_sc_1_a_map_is_wholly_like_itself(name: str) -> None:
    maps = noise(3, 32, 32)
    torch.testing.assert_close(SIMILARITIES[name](maps, maps), torch.ones(3).double())


@pytest.mark.parametrize("name", SIMILARITIES)
def test_constant_maps_have_no_similarity(name: str) -> None:
    maps = noise(3, 32, 32)
    maps[1] = 2.0
    found = SIMILARITIES[name](maps, noise(3, 32, 32, seed=1))
    assert found.isnan().tolist() == [False, True, False]


def test_sc_5_ssim_of_constants_is_the_luminance_term() -> None:
    a, b = (torch.full((1, 16, 16), v, dtype=torch.float64) for v in (0.3, 0.8))
    expected = (2 * 0.3 * 0.8 + 1e-4) / (0.3**2 + 0.8**2 + 1e-4)
    assert float(ssim(a, b)[0]) == pytest.approx(expected, abs=1e-9)


def test_sc_5_ssim_equals_an_independent_implementation() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = (torch.rand(2, 40, 33, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for range_ in (1.0, 2.0):
        expected = [
            metrics.structural_similarity(x.double().numpy(), y.double().numpy(), data_range=range_, **settings)
            for x, y in zip(a, b, strict=True)
        ]
        torch.testing.assert_close(ssim(a, b, range_), torch.tensor(expected), rtol=0, atol=1e-6)
    assert float(ssim(a, b, 2.0).mean()) > float(ssim(a, b).mean())  # why the range matters


def test_oriented_gradients_equal_an_independent_implementation() -> None:
    feature = pytest.importorskip("skimage.feature")
    image = noise(1, 48, 40)
    expected = feature.hog(image[0].numpy(), 9, (8, 8), (3, 3), block_norm="L2-Hys")
    torch.testing.assert_close(hog(image, 8)[0], torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    with pytest.raises(EvaluationError, match="three cells of 16 pixels"):
        hog(image, 16)


def test_rank_correlation_averages_ties_and_sees_signs() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = noise(1, 50).round(), noise(1, 50, seed=1).round()
    expected = float(stats.spearmanr(a[0].numpy(), b[0].numpy()).statistic)
    assert float(SignedSpearman()(a, b)[0]) == pytest.approx(expected, abs=1e-12)
    assert float(SignedSpearman()(a, -a)[0]) == pytest.approx(-1)
    assert float(AbsoluteSpearman()(a, -a)[0]) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_equal_an_independent_implementation(dtype: torch.dtype) -> None:
    maps = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    maps[1:3] = maps[1:3].round(decimals=1)  # ties, zeros of both signs among them
    maps[3] = 2.0
    maps = maps.to(dtype)
    torch.testing.assert_close(_ranks(maps), torch.from_numpy(stats.rankdata(maps.double(), axis=1)))
    maps[4, 7] = torch.nan
    assert _ranks(maps)[4].isnan().all()
    assert not _ranks(maps)[5].isnan().any()


def test_absolute_rank_correlation_is_dominated_by_a_common_factor() -> None:
    x, g = noise(1, 40_000), noise(1, 40_000, seed=1)
    assert float(AbsoluteSpearman()(x, x * g)[0]) == pytest.approx(0.68, abs=0.02)
    assert abs(float(SignedSpearman()(x, x * g)[0])) < 0.03


def test_highest_places_overlap_by_chance_as_often_as_they_should() -> None:
    found = TopIou(0.1)(noise(200, 400), noise(200, 400, seed=1))
    expected, spread = 0.1 / 1.9, float(found.std()) / math.sqrt(200)
    assert abs(float(found.mean()) - expected) < 4 * spread + 0.002
    with pytest.raises(EvaluationError, match="share must lie between 0 and 1"):
        TopIou(1.0)(noise(1, 4), noise(1, 4))


def test_maps_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match=r"got shapes \(2, 4, 4\) and \(2, 5, 5\)"):
        SignedSpearman()(noise(2, 4, 4), noise(2, 5, 5))
    with pytest.raises(EvaluationError, match="needs images' maps"):
        HogSimilarity()(noise(2, 4), noise(2, 4))


# Values of several processes


def test_tallies_agree_whoever_took_which_input_in() -> None:
    values, names = noise(6, 2), [f"image {i}" for i in range(6)]
    whole, left, right = Tally(), Tally(), Tally()
    whole.add(names, values)
    right.add(names[3:], values[3:])
    left.add(names[:1], values[:1])
    left.add(names[1:3], values[1:3])
    right.merge(left)
    assert torch.equal(whole.value().values, right.value().values)
    assert torch.equal(whole.value().low, right.value().low)
    with pytest.raises(EvaluationError, match="'image 0' was added twice"):
        whole.merge(left)
    with pytest.raises(EvaluationError, match="nothing was added yet"):
        Tally().value()
    with pytest.raises(EvaluationError, match="must keep their shape"):
        whole.add(["other"], noise(1, 3))


def test_intervals_are_students_and_leave_out_what_is_undefined() -> None:
    values = noise(12, 1)
    mean, low, high = mean_interval(values)
    half = 2.200985 * float(values.std()) / math.sqrt(12)  # t with 11 degrees of freedom
    assert float(high[0] - mean[0]) == pytest.approx(half, rel=0.03)
    assert float(mean[0] - low[0]) == pytest.approx(half, rel=0.03)
    gaps = torch.cat([values, torch.full((3, 1), torch.nan).double()])
    assert float(mean_interval(gaps)[0][0]) == pytest.approx(float(values.mean()))
    assert mean_interval(values[:1])[1].isnan().all()


def test_intervals_hold_what_they_say() -> None:
    held = 0
    for seed in range(200):
        _, low, high = mean_interval(noise(6, 1, seed=seed), draws=500)
        held += bool(low[0] <= 0 <= high[0])
    assert held >= 200 * 0.95 - 4 * math.sqrt(200 * 0.95 * 0.05)


# Drawing anew


class Attentive(nn.Module):
    """Patches, a class token, position embeddings, attention, an embedding that adds a constant, and counters."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 10, 8))
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        self.kinds = nn.Embedding(3, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("numbers", torch.arange(10))
        self.register_buffer("derived", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        tokens = tokens + self.kinds(self.numbers % 3) * self.filter.sum()
        tokens = self.norm(tokens + self.mix(tokens, tokens, tokens, need_weights=False)[0])
        return self.head(tokens[:, 0])


def attentive() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attentive().eval()


def test_fault_20_every_parameter_is_drawn_anew_attention_tokens_and_embeddings_included() -> None:
    model, x = attentive(), nets.images(2)
    plan = plan_of(model, x)
    named = {n for block in plan.blocks for n in block.tensors}
    assert named == {n for n, _ in model.named_parameters()} | {"filter"}
    assert set(plan.left) == {"numbers", "derived"}
    fresh = randomised(model, plan.blocks, 0)
    for name, parameter in model.named_parameters():
        assert not torch.equal(dict(fresh.named_parameters())[name], parameter), name
    assert sorted(fresh.get_buffer("filter").tolist()) == [1, 2, 3]
    assert torch.equal(fresh.get_buffer("numbers"), model.get_buffer("numbers"))


def test_layers_are_drawn_from_the_output_to_the_input() -> None:
    names = [b.name for b in plan_of(attentive(), nets.images(2)).blocks]
    assert names[0] == "head"
    assert names[-1] == "(model)"  # class token and positions
    assert names.index("norm") < names.index("mix") < names.index("patches")
    blocks = plan_of(nets.seeded(nets.BatchNormNet()), nets.images(2)).blocks
    assert [b.modules for b in blocks] == [("head",), ("conv1", "bn1")]
    assert "bn1.running_var" in blocks[1].tensors
    assert "bn1.num_batches_tracked" not in blocks[1].tensors


def test_a_tensor_that_did_not_change_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    frozen = Block("(model)", ("",), ("0.weight",))
    assert not torch.equal(randomised(model, [frozen], 0).get_parameter("0.weight"), model.get_parameter("0.weight"))

    monkeypatch.setattr("probing.evaluation.reinitialise._draw", lambda *_: None)
    with pytest.raises(UnchangedError, match=r"the first '0\.weight'"):
        randomised(model, plan_of(model, torch.zeros(1, 2)).blocks, 0)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan  # which is not even equal to itself
    with pytest.raises(UnchangedError, match=r"the first '0\.weight'"):
        randomised(model, plan_of(model, torch.zeros(1, 2)).blocks, 0)
    with pytest.raises(EvaluationError, match="no parameter"):
        plan_of(nn.Identity().eval(), torch.zeros(1, 2))


def test_running_statistics_are_estimated_anew_where_they_were_drawn() -> None:
    model, x = nets.seeded(nets.BatchNormNet()), nets.images(8)
    plan = plan_of(model, x)
    fresh = randomised(model, plan.blocks, 0, calibrate=x)
    inside = fresh.get_submodule("conv1")(x)
    mean = fresh.get_buffer("bn1.running_mean")
    torch.testing.assert_close(mean, inside.mean((0, 2, 3)).detach())
    assert not any(m.training for m in fresh.modules())
    over = randomised(model, plan.blocks, 0)
    assert over.get_buffer("bn1.running_mean").tolist() == [0, 0, 0, 0]
    top = randomised(model, plan.blocks[:1], 0, calibrate=x)
    assert torch.equal(top.get_buffer("bn1.running_mean"), model.get_buffer("bn1.running_mean"))


@pytest.mark.parametrize("make", [nets.BatchNormNet, attentive])
def test_a_cascade_step_by_step_is_one_draw_of_all_its_blocks(
    make: Callable[[], nn.Module],
) -> None:
    model, x = nets.seeded(make()), nets.images(8)
    blocks = plan_of(model, x).blocks
    whole = randomised(model, blocks, 5, calibrate=x).state_dict()
    for k, block in enumerate(blocks):
        redraw(model, [block], 5, x, blocks[:k])
    assert all(torch.equal(model.state_dict()[name], whole[name]) for name in whole)


def test_sc_4_the_model_is_left_as_found_and_a_cascade_builds_on_its_steps() -> None:
    model, x = conv(), nets.images().double()
    before, random = model_id(model), torch.get_rng_state()
    CascadingRandomisation(seeds=2)(Saliency(), Score(model, 1), nets.images(4, size=24).double())
    assert model_id(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    plan = plan_of(model, x)
    one, two = (randomised(model, plan.blocks[: k + 1], 3) for k in range(2))
    assert torch.equal(one.get_parameter("head.weight"), two.get_parameter("head.weight"))
    other = randomised(model, plan.blocks[:1], 4)
    assert not torch.equal(one.get_parameter("head.weight"), other.get_parameter("head.weight"))


# Sanity checks


def checked(method: object, **settings: object) -> Randomisation:
    metric = CascadingRandomisation(**({"seeds": 2, "measures": ("spearman", "spearman_abs")} | settings))  # type: ignore[arg-type]
    return metric(method, Score(conv(), torch.tensor([0, 1, 2, 1])), nets.images(4, size=12).double())  # type: ignore[arg-type]


def test_sc_2_an_edge_detector_does_not_care() -> None:
    found = checked(EdgeDetector())
    torch.testing.assert_close(found.mean, torch.ones_like(found.mean))
    assert float(found.mean[-1, 0]) > found.band("shuffled", "spearman")[1]


def test_a_random_map_passes_and_the_input_does_not() -> None:
    draws = 12
    found = [checked(RandomMap(seed), measures=("spearman",)) for seed in range(draws)]
    correlations = torch.cat([random.values[:, -1, 0].flatten() for random in found])
    spread = 1 / math.sqrt(12 * 12 - 1)  # of one rank correlation of 144 independent values
    assert abs(float(correlations.mean())) < 4 * spread / math.sqrt(len(correlations))
    called = sum(random.traces["spearman"] == "training" for random in found)
    assert called <= stats.binom.ppf(0.9999, draws, 0.025)
    same = checked(InputSize())
    torch.testing.assert_close(same.mean, torch.ones_like(same.mean))
    assert set(same.traces.values()) == {"architecture"}
    apart = replace(same, strangers=torch.full_like(same.strangers, 0.2))
    assert set(apart.traces.values()) == {"training"}  # more alike than strangers are


@pytest.mark.parametrize(("seeds", "n"), [(2, 4), (2, 30), (5, 4), (5, 30)])
def test_a_band_holds_a_further_mean_as_often_as_it_says(seeds: int, n: int) -> None:
    """Similarities of maps that have nothing in common, as independent normal numbers: each draw is a measure of its own."""
    draws = 400
    generator = torch.Generator().manual_seed(seeds * 100 + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    drawn = replace(
        checked(RandomMap(), measures=("spearman",)),
        measures=tuple(map(str, range(draws))),
        values=normal(seeds, 1, draws, n),
        shuffled=normal(seeds, draws, n),
        strangers=normal(seeds * (seeds - 1) // 2, draws, n),
    )
    means = drawn.mean[-1].tolist()
    for kind in ("strangers", "shuffled"):
        bands = [drawn.band(kind, measure) for measure in drawn.measures]  # type: ignore[arg-type]
        outside = sum(not low <= mean <= high for mean, (low, high) in zip(means, bands, strict=True))
        assert outside <= stats.binom.ppf(0.9999, draws, 0.05)


def test_examples_are_cast_to_what_randomised_networks_take() -> None:
    model, x = nets.seeded(nets.BatchNormNet()).double(), nets.images(4)
    metric = CascadingRandomisation(seeds=1, measures=("spearman",))
    found, expected = (metric(Saliency(), Score(model), inputs) for inputs in (x, x.double()))
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lost", ["values", "strangers", "shuffled"])
def test_what_nothing_can_be_told_from_is_no_trace_of_nothing(lost: str) -> None:
    found = checked(RandomMap())
    gone = replace(found, **{lost: torch.full_like(getattr(found, lost), torch.nan)})
    assert set(gone.traces.values()) == {"unknown"}


def test_sc_3_a_linear_model_drawn_anew_has_unrelated_gradients() -> None:
    n, seeds = 784, 8
    model = nn.Sequential(nn.Linear(n, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(noise(2, n))
    metric = CascadingRandomisation(seeds=seeds, measures=("spearman",))
    found = metric(Saliency(), Score(model, 0), noise(1, n))
    assert abs(float(found.mean[-1, 0])) < 4 / math.sqrt((n - 1) * seeds)


def test_sc_6_a_net_that_was_never_trained_lies_among_strangers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nets.ConvNet().double().eval()
    metric = CascadingRandomisation(seeds=6, measures=("spearman",), steps=1)
    found = metric(Saliency(), Score(model, 1), nets.images(6, size=12).double())
    low, high = found.band("strangers", "spearman")
    assert low <= float(found.mean[-1, 0]) <= high
    assert found.layers == ("features.0",)


def test_fault_13_the_trained_network_is_no_part_of_the_mean() -> None:
    found = checked(Saliency())
    steps = len(plan_of(conv(), nets.images(1).double()).blocks)
    assert found.values.shape == (2, steps, 2, 4)
    torch.testing.assert_close(found.mean, found.values.mean((0, 3)))
    assert float(found.mean.max()) < 1  # with itself it would be 1
    # What one step's maps are like is what the mean says, worked out by hand.
    model = conv()
    plan = plan_of(model, nets.images(1, size=12).double())
    x, targets = nets.images(4, size=12).double(), torch.tensor([0, 1, 2, 1])
    whole = randomised(model, plan.blocks, 0, calibrate=x)
    pair = [Saliency()(Score(m, targets), x).values[:, 0] for m in (model, whole)]
    torch.testing.assert_close(found.values[0, -1, 0], SignedSpearman()(*pair))


def test_the_class_explained_stays_the_trained_network_s() -> None:
    asked: list[object] = []

    class Watched(Saliency):
        def __call__(self, score: Score, inputs: Tensor) -> object:  # type: ignore[override]
            asked.append(score.target)
            return super().__call__(score, inputs)

    model, x = conv(), nets.images(4, size=12).double()
    CascadingRandomisation(seeds=1, measures=("spearman",))(Watched(), Score(model), x)
    expected = model(x).argmax(1)
    assert len(asked) > 3
    assert all(torch.equal(target, expected) for target in asked)  # type: ignore[arg-type]


def test_independent_steps_change_one_layer_each() -> None:
    metric = IndependentRandomisation(seeds=2, measures=("spearman",))
    model, x = conv(), nets.images(4, size=12).double()
    found = metric(Saliency(), Score(model, 1), x)
    cascade = CascadingRandomisation(seeds=2, measures=("spearman",))(Saliency(), Score(model, 1), x)
    assert found.layers == cascade.layers == ("head", "features.2", "features.0")
    torch.testing.assert_close(found.values[:, 0], cascade.values[:, 0])
    assert not torch.equal(found.values[:, 1], cascade.values[:, 1])


def test_maps_that_become_constant_are_counted_not_averaged() -> None:
    class Dead(nets.ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(self.head.bias[0] == 7)

    model = nets.seeded(Dead()).double()
    with torch.no_grad():
        model.head.bias[0] = 7.0  # type: ignore[index, union-attr, operator]
    metric = CascadingRandomisation(seeds=2, steps=1, measures=("spearman",))
    found = metric(Saliency(), Score(model, 1), nets.images(4).double())
    assert found.excluded.tolist() == [[8]]
    assert found.mean.isnan().all()


def test_settings_are_refused_with_their_value() -> None:
    with pytest.raises(EvaluationError, match="seeds must be at least 1"):
        checked(Saliency(), seeds=0)
    with pytest.raises(EvaluationError, match="got 2 and \\('rank',\\)"):
        checked(Saliency(), measures=("rank",))
    with pytest.raises(EvaluationError, match="steps must be at least 1, got 0"):
        checked(Saliency(), steps=0)
    kept = checked(Saliency(), keep=("features*",))
    assert kept.layers == ("head",)
    assert "features.0.weight" in kept.left


@pytest.fixture(scope="module")
def shapes_net() -> tuple[nn.Module, Tensor]:
    return trained_on_bars()


def trained_on_bars() -> tuple[nn.Module, Tensor]:
    """Return a ReLU network that tells upright from lying bars and discs, trained in a moment, and test pictures."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(240, 1, 16, 16, generator=generator)
    y = torch.arange(240) % 3
    for i in range(240):
        r, c = torch.randint(2, 9, (2,), generator=generator).tolist()
        part = {
            0: (slice(r, r + 6), slice(c, c + 2)),
            1: (slice(r, r + 2), slice(c, c + 6)),
            2: (slice(r, r + 4), slice(c, c + 4)),
        }
        x[i, 0][part[i % 3]] += 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 3),
        )
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(40):
            for part in torch.randperm(200).split(50):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[part]), y[part]).backward()
                optimiser.step()
    net.eval()
    assert float((net(x[200:]).argmax(1) == y[200:]).double().mean()) > 0.9
    return net, x[200:224]


def test_guided_backprop_keeps_what_gradients_lose(shapes_net: tuple[nn.Module, Tensor]) -> None:
    model, x = shapes_net
    score = Score(model)
    metric = CascadingRandomisation(seeds=3, measures=("spearman", "spearman_abs"))
    last = {
        type(method).__name__: metric(method, score, x).mean[-1]
        for method in (
            Saliency(),
            GuidedBackprop(),
            GradientTimesInput(),
            IntegratedGradients(steps=8),
        )
    }
    assert abs(float(last["Saliency"][0])) < 0.1
    assert abs(float(last["IntegratedGradients"][0])) < 0.1
    assert float(last["GuidedBackprop"][0]) > 0.25
    # Multiplied by the input, maps keep their sizes' order whatever the weights are.
    assert float(last["GradientTimesInput"][1]) > float(last["Saliency"][1]) + 0.2


def test_the_experiment_tells_who_notices_that_weights_are_random(
    shapes_net: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "experiments" / "randomisation.py"
    spec = importlib.util.spec_from_file_location("randomisation", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "material", lambda *, tiny: shapes_net)
    table = script.last(script.measured(tiny=True)).set_index(["measure", "method"])
    signed = table.loc["spearman", "mean"]
    assert set(signed.index) == set(script.METHODS)
    assert signed["guided backprop"] > 0.25
    for name in ("gradient", "integrated gradients"):
        assert abs(signed[name]) < 0.15
    assert (table["low"].dropna() <= table["mean"].dropna()).all()


def test_the_result_is_saved_tabulated_and_drawn(tmp_path: object) -> None:
    found = checked(Saliency())
    loaded = Randomisation.load(found.save(str(tmp_path)))
    torch.testing.assert_close(loaded.values, found.values)
    table = found.to_pandas()
    assert len(table) == 2 * len(found.layers)
    assert (table["low"] <= table["mean"]).all()
    assert len(found.plot().axes) == 2
