"""Maps of attention weights are the papers' products, whoever computes the attention; what has none is refused."""

from collections.abc import Callable
from pathlib import Path

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from probing.attribution import ATTENTION_METHODS
from probing.attribution.attention import AttentionRelevance, AttentionRollout
from probing.attribution.base import Attribution, AttributionMethod
from probing.core.content_ids import model_id
from probing.core.inputs import Inputs
from probing.models.geometry import RefusedError
from probing.models.readings import NextToken, Regression
from probing.models.scores import Score
from probing.results.result import rebuild

every_method = pytest.mark.parametrize(
    "method", [kind() for kind in ATTENTION_METHODS.values()], ids=list(ATTENTION_METHODS)
)


class Uniform(nn.Module):
    """Each token attends alike to itself and all before it, and what it gets is added to it: twice. Read at the last one."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            scores = torch.zeros(len(x), x.shape[1], x.shape[1], dtype=x.dtype) + 0 * x.sum()
            hidden = torch.ones(x.shape[1], x.shape[1]).triu(1) > 0
            x = x + scores.masked_fill(hidden, -torch.inf).softmax(-1) @ x
        return x[:, -1]


def test_rollout_is_the_product_of_averaged_layers_abnar_2020_sec_3() -> None:
    """(A + I) / 2 = [[1, 0], [1/4, 3/4]], whose square has the last row [7/16, 9/16]."""
    x = torch.tensor([[[2.0, -1.0], [3.0, 5.0]]], dtype=torch.float64)
    found = AttentionRollout()(Uniform().eval(), x, 0)
    torch.testing.assert_close(found.token_values(), torch.tensor([[7 / 16, 9 / 16]], dtype=torch.float64))
    assert found.layout == "2 tokens"
    assert found.diagnostics["tokens_read"].tolist() == [1]
    first = AttentionRollout(token=0)(Uniform().eval(), x, 0)
    assert first.token_values().tolist() == [[1, 0]]


def test_relevance_is_gradients_times_weights_chefer_2021_eq_5_and_6() -> None:
    """By hand: the score is w·x''₂, with x' = x + A x, x'' = x' + A x' and A = [[1, 0], [1/2, 1/2]].

    ∇A₂ = [[0, 0], [w·x'₁, w·x'₂]], and with (I + A)ᵀ e₂ = (1/2, 3/2): ∇A₁ = [[1/2 w·x₁, –], [3/2 w·x₁, 3/2 w·x₂]].
    """
    x = torch.tensor([[[2.0, -1.0], [3.0, 5.0]]], dtype=torch.float64)
    for target, w in enumerate(torch.eye(2, dtype=torch.float64)):
        one, two = (float(v) for v in x[0] @ w)
        weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
        slope2 = torch.tensor([[0, 0], [2 * one, two + (one + two) / 2]], dtype=torch.float64)
        slope1 = torch.tensor([[one / 2, 0], [1.5 * one, 1.5 * two]], dtype=torch.float64)
        relevance = torch.eye(2, dtype=torch.float64)
        for slope in (slope1, slope2):
            relevance = relevance + (weights * slope).clamp(min=0) @ relevance
        found = AttentionRelevance()(Uniform().eval(), x, target)
        torch.testing.assert_close(found.token_values(), (relevance - torch.eye(2))[1:])


class Attends(nn.Module):
    """Two layers of attention with two heads over a class token and 2 x 3 patches, in one of several ways."""

    def __init__(self, way: str, pooled: str = "class token") -> None:
        super().__init__()
        self.way, self.pooled = way, pooled
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.first = nn.Parameter(torch.zeros(1, 1, 4))
        self.mixers = nn.ModuleList([nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)
        self.weights: list[Tensor] = []

    def attend(self, mixer: nn.MultiheadAttention, x: Tensor) -> Tensor:
        if self.way == "need_weights":
            return mixer(x, x, x)[0]
        if self.way == "module":
            return mixer(x, x, x, need_weights=False)[0]
        n, t, _ = x.shape
        packed = F.linear(x, mixer.in_proj_weight, mixer.in_proj_bias)
        q, k, v = packed.view(n, t, 3, 2, 2).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            found = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "one axis":  # of examples and heads
            weights = (q @ k.mT / 2**0.5).flatten(0, 1).softmax(-1)
            found = (weights @ v.flatten(0, 1)).view(n, 2, t, 2)
        else:
            weights = (q @ k.mT / 2**0.5).softmax(dim=-1)
            if weights.requires_grad and self.way == "kept":
                self.weights.append(weights)
            found = weights @ v
        return mixer.out_proj(found.transpose(1, 2).reshape(n, t, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        for mixer in self.mixers:
            x = x + self.attend(mixer, self.norm(x))
        x = self.norm(x)
        return self.head(x[:, 0] if self.pooled == "class token" else x.mean(1))


WAYS = ["eager", "one axis", "fused", "module", "need_weights"]
X = torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(way: str, pooled: str = "class token") -> Attends:
    return nets.seeded(Attends(way, pooled)).double()  # type: ignore[return-value]


def by_hand(method: AttributionMethod, pooled: str, target: int) -> Tensor:
    """Both papers' products, example by example, from weights that the net itself keeps."""
    found = []
    for i in range(len(X)):
        model = net("kept", pooled)
        score = model(X[i : i + 1])[0, target]
        slopes = torch.autograd.grad(score, model.weights)
        mixed = torch.eye(7, dtype=torch.float64)
        for weights, slope in zip(model.weights, slopes, strict=True):
            if isinstance(method, AttentionRollout):
                mixed = (weights[0].mean(0) + torch.eye(7)) / 2 @ mixed
            else:
                mixed = mixed + (weights[0] * slope[0]).clamp(min=0).mean(0) @ mixed
        rows = mixed if isinstance(method, AttentionRollout) else mixed - torch.eye(7)
        found.append(rows[0] if pooled == "class token" else rows.mean(0))
    return torch.stack(found).detach()


@every_method
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pooled", ["class token", "mean"])
def test_maps_are_the_same_whoever_computes_attention(method: AttributionMethod, way: str, pooled: str) -> None:
    model = net(way, pooled)
    found, wanted = method(model, X, 1), by_hand(method, pooled, 1)
    assert found.values.shape == (3, 1, 2, 3)
    torch.testing.assert_close(found.values.flatten(1), wanted[:, 1:])
    torch.testing.assert_close(found.diagnostics["prefix"], wanted[:, 0])
    torch.testing.assert_close(found.score, model(X)[:, 1].detach())
    assert found.diagnostics["tokens_read"].tolist() == [1 if pooled == "class token" else 7] * 3
    assert found.layout == "2 x 3 cells, tokens [n, t, c]"
    assert found.geometry.start == (0.5, 0.5)
    assert found.upsampled().shape == X.shape


@every_method
def test_a_method_leaves_the_model_as_found_and_is_rebuilt_from_what_is_saved(
    method: AttributionMethod, tmp_path: Path
) -> None:
    model = net("module")
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = model_id(model), [(p.requires_grad, p.grad) for p in model.parameters()], torch.get_rng_state().tolist()
    found = method(model, X, 1)
    assert (
        model_id(model),
        [(p.requires_grad, p.grad) for p in model.parameters()],
        torch.get_rng_state().tolist(),
    ) == before
    assert torch.equal(method(model, X, 1).values, found.values)
    for i in range(3):
        torch.testing.assert_close(method(model, X[i : i + 1], 1).values[0], found.values[i])
    assert torch.equal(type(method)(batch_size=2)(model, X, 1).values, found.values) or torch.allclose(
        type(method)(batch_size=2)(model, X, 1).values, found.values, atol=1e-12
    )
    assert rebuild(Attribution.load(found.save(tmp_path)).provenance.method) == method
    assert found.plot(X.repeat(1, 3, 1, 1)) is not None
    with torch.inference_mode():
        torch.testing.assert_close(method(model, X, 1).values.clone(), found.values)


def test_rollout_is_shares_and_the_same_for_every_class_and_relevance_is_not() -> None:
    model = net("fused")
    one, two = (AttentionRollout()(model, X, k) for k in (0, 1))
    torch.testing.assert_close(one.values.flatten(1).sum(1) + one.diagnostics["prefix"], torch.ones(3, dtype=torch.float64))
    assert torch.equal(one.values, two.values)
    assert not one.column("shares").signed  # whose colours don't say that a place raises the score
    one, two = (AttentionRelevance()(model, X, k) for k in (0, 1))
    assert not torch.allclose(one.values, two.values)
    assert one.column("relevance").signed
    assert float(one.values.min()) >= 0


MASK = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])


@pytest.mark.parametrize(
    "call",
    [
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=MASK, scale=0.3),
        lambda q: F.scaled_dot_product_attention(
            q, q, q, attn_mask=torch.zeros(3, 3).double().masked_fill(~MASK, -torch.inf)
        ),
        lambda q: F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True),
        lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=MASK & (torch.arange(3) != 1)[:, None]),
    ],
)
def test_separate_products_are_what_the_fused_kernel_computes(call: Callable[[Tensor], Tensor]) -> None:
    """Also where a row may see nothing."""

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x.unflatten(2, (2, 2)).transpose(1, 2)).sum((1, 2))

    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = AttentionRelevance()(Fused().eval(), x, 1)  # which compares the scores itself
    torch.testing.assert_close(found.score, Fused()(x)[:, 1])
    assert found.values.isfinite().all()


@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_of_torch_is_read_with_its_masks(padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.encoder, self.head = nn.Embedding(9, 4), nn.TransformerEncoder(layer, 2), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
            return self.head(self.encoder(self.embedding(ids), causal != 0, ids == 0 if padded else None))

    model = nets.seeded(Encoded()).double()
    ids = torch.tensor([[3, 4, 5, 0], [6, 7, 8, 2]])
    found = AttentionRollout()(model, ids, NextToken(1, after=[2, 3]))
    assert found.values.shape == (2, 4, 1)
    assert float(found.values[0, 3]) == 0  # padding, which also comes after
    torch.testing.assert_close(found.token_values().sum(1), torch.ones(2, dtype=torch.float64))
    short = AttentionRollout()(model, ids[:1, :3], NextToken(1, after=2))
    torch.testing.assert_close(found.values[:1, :3], short.values)


def test_named_inputs_with_a_mask_show_their_tokens_and_no_padding() -> None:
    """The map of a text does not hang on what it is padded with, and -1 is its own last token."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    model = nets.seeded(transformers.LlamaForCausalLM(config)).double()
    ids = torch.tensor([[1, 2, 3, 0], [5, 6, 7, 8]])
    batch = Inputs({"input_ids": ids, "attention_mask": (ids > 0).long()}, tokens=(("a", "b", "c", "-"), tuple("efgh")))
    for method in (AttentionRollout(), AttentionRelevance()):
        found = method(model, batch, NextToken(4, instead_of=5))
        assert found.target == ("token 4 instead of 5 after position 2", "token 4 instead of 5 after position 3")
        short = {"input_ids": ids[:1, :3], "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        alone = method(model, short, NextToken(4, instead_of=5))
        torch.testing.assert_close(found.values[0, :3], alone.values[0])
        assert float(found.values[0, 3]) == 0
        assert found.plot() is not None
        assert "e" in found._repr_html_()


def test_transformers_of_libraries_are_read_fused_or_not() -> None:
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Logits(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).logits

    def maps(attention: str) -> dict[str, Tensor]:
        seen, words = images, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
        vit = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)
        bert = transformers.BertConfig(vocab_size=12, num_labels=3, max_position_embeddings=8, **sizes)
        llama = transformers.LlamaConfig(vocab_size=12, num_key_value_heads=1, max_position_embeddings=8, **sizes)
        made = {
            "vit": (transformers.ViTForImageClassification(vit), seen, 1),
            "bert": (transformers.BertForSequenceClassification(bert), words, 1),
            "llama": (transformers.LlamaForCausalLM(llama), words, NextToken(1, instead_of=2)),
        }
        for model, _, _ in made.values():
            model.set_attn_implementation(attention)
        return {n: AttentionRelevance()(nets.seeded(Logits(m)), x, t).values for n, (m, x, t) in made.items()}

    eager, fused = maps("eager"), maps("sdpa")
    for name, values in eager.items():
        torch.testing.assert_close(values, fused[name])
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=2, num_heads=2, num_classes=3)
    vit = nets.seeded(vit)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for fused_attention in (True, False):
        for block in vit.blocks:
            block.attn.fused_attn = fused_attention
        found.append(AttentionRelevance()(vit, x, 1).values)
    assert found[0].shape == (2, 1, 2, 2)
    torch.testing.assert_close(*found)


class Windows(nn.Module):
    """Attention within halves of the tokens, which stand in the place of examples."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(1, (2, -1)).flatten(0, 1)[:, None]
        return F.scaled_dot_product_attention(halves, halves, halves).flatten(0, 1).view(len(x), -1)


class Kernel(nn.Module):
    """Attention that does more than the fused function is said to."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ x.mT).softmax(-1)
        return (weights @ x).mean(1) + (0 if weights.requires_grad else 1)


class Still(nn.Module):
    """Values of nothing: weights change nothing, though they are read."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ x.mT).softmax(-1) @ (0 * x)).mean(1) + x.mean(1)


class PassesBy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) + 0 * (x @ x.mT).softmax(-1).detach().sum()


def test_what_has_no_map_is_refused_by_name() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(RefusedError, match="no attention weights were seen in ConvNet: it has none, or a kernel"):
        AttentionRollout()(nets.seeded(nets.ConvNet()).double(), nets.images().double(), 1)
    with pytest.raises(RefusedError, match=r"Windows has attention weights of shape \(4, 1, 2, 2\) for 2 examples"):
        AttentionRollout()(Windows().eval(), x, 1)
    with pytest.raises(RefusedError, match="another score where its attention is done by separate"):
        AttentionRollout()(Kernel().eval(), x, 1)
    with pytest.raises(RefusedError, match="passes attention by"):
        AttentionRollout()(PassesBy().eval(), x, 1)
    with pytest.raises(RefusedError, match="passes attention by"):
        AttentionRollout()(Still().eval(), x, 1)
    some = torch.cat([x[:1], 0 * x[1:]])
    with pytest.raises(RefusedError, match=r"score of input 1 of a batch .* name that by token=…"):
        AttentionRollout()(Uniform().eval(), some, 1)
    with pytest.raises(RefusedError, match="token 7 is out of range: attention is among 7 tokens"):
        AttentionRollout(token=7)(net("eager"), X, 1)
    with pytest.raises(RefusedError, match="a grid of 5 by 5 patches"):
        AttentionRollout(grid=(5, 5))(net("eager"), X, 1)
    assert AttentionRollout()(Score(net("eager"), Regression(2)), X).unit == "output"
