"""Whatever holds examples is taken where an `ExampleSet` is wanted, or refused in one sentence that says how to go on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import nets
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from datasets import Dataset as HuggingFace
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torchvision.transforms import v2

from concepts.data.concept_sets import Concept, random_sets
from concepts.data.segmentation.labels import Scenes, TensorLabels, Vocabulary
from concepts.dissection.ablation import Ablation
from concepts.effects.logit_effect import LogitEffect
from concepts.local_vs_global.matched_pairs import MatchedConcept
from concepts.tcav.tcav import Tcav
from probing.atlas import Atlas, Pca
from probing.data.examples import (
    ChangedExampleError,
    ExampleError,
    ExampleSet,
    ImageExamples,
    ImageFiles,
    NoPictureError,
    Subset as Part,
    TensorExamples,
    TextExamples,
    as_examples,
    concat,
    labels_of,
)
from probing.data.images import ImageError, Preprocess
from probing.maximization import Channel, Maximize
from probing.maximization.pixel_space import Space
from probing.models.scores import Score
from probing.probes import LayerProbes, SoftmaxProbe, SplitError
from probing.probes.training_probes import TrainingProbes
from probing.store.requests import Request
from probing.store.shares import Share
from probing.store.store import ActivationStore

N = 24
X = nets.images(N)
LABELS = tuple(i % 2 for i in range(N))
SMALL = Preprocess(size=6, resize=6, mean=(0.0,) * 3, std=(1.0,) * 3)
PROBES = LayerProbes("features.0", SoftmaxProbe((1e-2,)), untrained=False, description_length=False, controls=0)


class Items(Dataset[object]):
    """A data set that gives what a function makes of an index."""

    def __init__(self, make: Callable[[int], object], count: int = N) -> None:
        self.make, self.count = make, count

    def __getitem__(self, index: int) -> object:
        return self.make(index)

    def __len__(self) -> int:
        return self.count


def hugging_face(**columns: object) -> HuggingFace:
    return HuggingFace.from_dict(columns)


def torch_format(**columns: object) -> HuggingFace:
    return hugging_face(**columns).with_format("torch")


def drawn(batch: dict[str, list[object]]) -> dict[str, list[object]]:
    return {"x": [torch.tensor(x) for x in batch["x"]], "label": batch["label"]}


BARE: dict[str, Callable[[], object]] = {
    "tensor": lambda: X,
    "tensor that needs a gradient": lambda: X.clone().requires_grad_(),
    "array": X.numpy,
    "list of tensors": lambda: list(X),
    "list of arrays": lambda: list(X.numpy()),
    "nested lists": X.tolist,
    "data set of tensors": lambda: Items(lambda i: X[i]),
    "data set of tuples of one": lambda: TensorDataset(X),
    "DataLoader": lambda: DataLoader(TensorDataset(X), 5),
    "Hugging Face, of lists": lambda: hugging_face(x=X.tolist()),
    "Hugging Face, of tensors": lambda: torch_format(x=X.tolist()),
}
LABELLED: dict[str, Callable[[], object]] = {
    "data set of pairs": lambda: TensorDataset(X, torch.tensor(LABELS)),
    "data set of lists of two": lambda: Items(lambda i: [X[i], np.int64(LABELS[i])]),
    "data set of mappings": lambda: Items(lambda i: {"pixels": X[i], "labels": LABELS[i]}),
    "list of pairs": lambda: [(x, y) for x, y in zip(X.numpy(), LABELS, strict=True)],
    "part of a data set": lambda: Subset(TensorDataset(torch.cat([X, X + 1]), torch.tensor(LABELS * 2)), range(N)),
    "DataLoader with workers": lambda: DataLoader(TensorDataset(X, torch.tensor(LABELS)), 6, num_workers=2, drop_last=True),
    "Hugging Face": lambda: torch_format(x=X.tolist(), label=list(LABELS)),
    "Hugging Face with a transform": lambda: hugging_face(x=X.tolist(), label=list(LABELS)).with_transform(drawn),
    "examples": lambda: TensorExamples(X, labels=LABELS),
}


def store() -> ActivationStore:
    return ActivationStore(progress=False)


@pytest.mark.parametrize("name", [*BARE, *LABELLED])
def test_a_source_gives_the_rows_of_its_tensor_and_the_same_ids(name: str, conv_net: nn.Module) -> None:
    data = (BARE | LABELLED)[name]()
    layers = ["features.0", ""]
    assert as_examples(data).ids == TensorExamples(X).ids
    rows = store().activations(conv_net, layers, data)
    plain = store().activations(conv_net, layers, TensorExamples(X))
    assert all(torch.equal(rows[layer], plain[layer]) for layer in layers)
    assert labels_of(as_examples(data)) == (LABELS if name in LABELLED else None)


@pytest.mark.parametrize("name", LABELLED)
def test_probes_take_the_labels_that_come_with_the_data(name: str, conv_net: nn.Module) -> None:
    found = PROBES(store(), conv_net, LABELLED[name]())
    told = PROBES(store(), conv_net, TensorExamples(X), LABELS)
    assert found.classes == ("0", "1")
    assert torch.equal(found.error, told.error)
    assert found.provenance.examples == told.provenance.examples


def _tcav(net: nn.Module, data: object) -> Tensor:
    others = [TensorExamples(nets.images(n, seed=s)) for n, s in ((10, 1), (6, 2))]
    method = Tcav(null=None, runs=3, bootstraps=0, relabellings=9)
    concept = Concept("c", data)  # type: ignore[arg-type]  # made examples of
    as_concept = method(store(), {"k": Score(net, 1)}, ["features.2"], [concept], *others)
    as_pool = method(store(), {"k": Score(net, 1)}, ["features.2"], [Concept("c", others[0])], others[1], data)
    as_inputs = method(
        store(),
        {"k": Score(net, 1)},
        ["features.2"],
        [Concept("c", others[0])],
        {"k": data},
        nets.images(20, seed=3),
    )
    return torch.stack([found.effect for found in (as_concept, as_pool, as_inputs)])


def _effect(net: nn.Module, data: object) -> Tensor:
    positive, negative = nets.images(8, seed=1), nets.images(8, seed=2).numpy()
    method = LogitEffect(relabellings=9, bootstraps=0)
    return method(store(), {"k": Score(net, 1)}, ["features.2"], positive, negative, data).effect


def _filled(net: nn.Module, data: object, root: Path) -> Tensor:
    keeper = ActivationStore(root, progress=False)
    keeper.fill([Request(net, ("features.0",), data)], Share(0, 1))  # type: ignore[arg-type]
    rows = keeper.activations(net, ["features.0"], data)["features.0"]
    assert keeper.stats.reused_rows == N
    return rows


def _maximized(net: nn.Module, data: object) -> Tensor:
    space = Space((0.0,), (1.0,), "grey", size=6)
    found = Maximize(steps=1, size=6, transforms=())(
        net, Channel("features.0", 1), space=space, store=store(), examples=data
    )
    assert found.beside is not None
    return found.beside.percentile


def _dissected(net: nn.Module, data: object) -> Tensor:
    planes = torch.ones(N, 1, 6, 6, dtype=torch.int32)
    scenes = Scenes(data, TensorLabels(planes, Vocabulary(("a",), ("object",))), frame="input")  # type: ignore[arg-type]
    return scenes.examples.load([3, 1])


CONSUMERS: dict[str, Callable[..., Tensor]] = {
    "gradients": lambda net, data: store().gradients(Score(net, 1), ["features.2"], data)["features.2"],
    "gradients of a class each": lambda net, data: store().gradients(Score(net, torch.tensor(LABELS)), ["features.2"], data)[
        "features.2"
    ],
    "read": lambda net, data: store().read([Score(net, 0)], ["features.2"], data).gradients[0]["features.2"],
    "batches": lambda net, data: torch.cat([r[""] for _, r in store().batches(net, [""], data)]),
    "estimate": lambda net, data: torch.tensor(store().estimate(net, [""], data).bytes),
    "atlas": lambda net, data: Atlas("features.2", Pca())(store(), net, data, LABELS).points,
    "ablation": lambda net, data: (
        Ablation("features.2", counts=(1, 2), draws=1)(net, data, torch.tensor(LABELS), torch.arange(5)).score_without
    ),
    "tcav": _tcav,
    "effect": _effect,
    "pairs": lambda net, data: MatchedConcept("m", data, X + 1).pixels([0, 2]),
    "random sets": lambda net, data: torch.tensor(random_sets(data, 5, 2, seed=0)),
    "maximize": _maximized,
    "scenes": _dissected,
    "training": lambda net, data: TrainingProbes(PROBES, store(), data, LABELS)(net, 0).error,
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_whatever_takes_examples_takes_arrays_and_data_sets(consumer: str, conv_net: nn.Module) -> None:
    read = CONSUMERS[consumer]
    plain = read(conv_net, TensorExamples(X))
    for data in (X.numpy(), DataLoader(TensorDataset(X, torch.tensor(LABELS)), 5)):
        assert torch.equal(read(conv_net, data), plain)


def test_rows_filled_for_a_data_set_serve_its_tensor(conv_net: nn.Module, tmp_path: Path) -> None:
    rows = _filled(conv_net, TensorDataset(X), tmp_path)
    assert torch.equal(rows, _filled(conv_net, X, tmp_path))


def test_an_atlas_is_coloured_by_the_labels_that_come_with_the_data(conv_net: nn.Module) -> None:
    found = Atlas("features.2", Pca())(store(), conv_net, TensorDataset(X, torch.tensor(LABELS)))
    assert found.names == ("0", "1")
    assert found.labels.tolist() == list(LABELS)


def test_a_table_of_numbers_is_read_by_rows_and_its_labels_are_kept_apart() -> None:
    values = np.arange(12.0).reshape(4, 3)
    table = pd.DataFrame(values, columns=["a", "b", "c"])
    assert torch.equal(as_examples(table).load([2]), torch.tensor([[6.0, 7, 8]]).double())
    named = as_examples(table.assign(label=list("xyxy")))
    assert named.ids == as_examples(torch.from_numpy(values)).ids
    assert labels_of(named) == ("x", "y", "x", "y")
    assert as_examples(table["b"]).load([1]).tolist() == [[4.0]]
    with pytest.raises(ExampleError, match=r"columns \['a', 'who'\] are not all numbers"):
        as_examples(table[["a"]].assign(who=list("xyxy")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(8):
        place = tmp_path / ("cat", "dog")[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path


def _pictures(folder: Path) -> dict[str, tuple[object, bool]]:
    """Return the pictures of a folder in many forms, and whether labels come with each."""
    files = sorted(folder.glob("*/*.png"))
    labels = [file.parent.name for file in files]
    opened = [Image.open(file) for file in files]
    rows = {"image": [str(f) for f in files], "label": labels}
    hub = HuggingFace.from_dict(rows).cast_column("image", datasets.Image())
    return {
        "folder": (folder, False),
        "folder by name": (str(folder), False),
        "paths": (files, False),
        "names": ([str(file) for file in files], False),
        "source": (ImageFiles(tuple(files)), False),
        "pictures": (opened, False),
        "arrays": ([np.asarray(image) for image in opened], False),
        "array": (np.stack([np.asarray(image) for image in opened]), False),
        "ImageFolder": (torchvision.datasets.ImageFolder(str(folder)), True),
        "pairs of path and label": (list(zip(files, labels, strict=True)), True),
        "Hugging Face": (hub, True),
        "Hugging Face without labels": (hub.select_columns(["image"]), False),
        "table": (pd.DataFrame({"file": rows["image"], "label": labels}), True),
    }


def test_pictures_in_every_form_are_preprocessed_alike(folder: Path) -> None:
    plain = ImageExamples(sorted(folder.glob("*/*.png")), SMALL)
    for name, (data, labelled) in _pictures(folder).items():
        found = as_examples(data, SMALL)
        assert torch.equal(found.load(range(8)), plain.load(range(8))), name
        assert found.image(5).tobytes() == plain.image(5).tobytes(), name  # type: ignore[attr-defined]
        assert (len(set(labels_of(found) or ())) == 2) == labelled, name
        if name != "array":
            with (
                pytest.raises(ExampleError, match=r"need a preprocessing.*loaded\.preprocess")
                if (not name.startswith("arrays"))
                else pytest.raises(NoPictureError)
            ):
                bare = as_examples(data)
                assert isinstance(bare, ExampleSet)
                TensorExamples(bare.load([0])[0]).image(0)


def test_a_data_set_with_its_own_transform_is_read_as_it_is(folder: Path) -> None:
    own = v2.Compose([v2.ToImage(), v2.Resize((5, 5)), v2.ToDtype(torch.float32, scale=True)])
    data = torchvision.datasets.ImageFolder(str(folder), own)
    found = as_examples(data)
    assert torch.equal(found.load([6, 1]), torch.stack([data[6][0], data[1][0]]))
    assert type(found.load([0])) is Tensor
    assert labels_of(found) == tuple(data.targets)
    assert found.image(0).size == (5, 5)  # type: ignore[attr-defined]


def test_pictures_in_memory_are_turned_upright_as_those_in_files_are(tmp_path: Path) -> None:
    turned = Image.new("RGB", (8, 6), "red")
    turned.putpixel((0, 0), (0, 0, 255))
    turned.save(tmp_path / "a.png", exif=_rotated())
    whole = Preprocess(size=6, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    in_file = as_examples([tmp_path / "a.png"], whole)
    in_memory = as_examples([Image.open(tmp_path / "a.png")], whole)
    assert torch.equal(in_file.load([0]), in_memory.load([0]))
    upside = as_examples([turned], whole)
    assert not torch.equal(in_file.load([0]), upside.load([0]))


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def test_a_damaged_picture_in_a_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="item 1 of the Items"):
        as_examples(Items(lambda i: ((X[0, 0] * 0).byte().numpy(), tmp_path / "bad.png")[i], 2), SMALL)


def lengths(text: str) -> Tensor:
    return torch.tensor([len(text), text.count("a")])


@pytest.mark.parametrize(
    "data",
    [
        ["a cat", "banana"],
        pd.Series(["a cat", "banana"]),
        pd.DataFrame({"text": ["a cat", "banana"], "label": [0, 1]}),
        hugging_face(text=["a cat", "banana"], label=[0, 1]),
        Items(lambda i: (("a cat", "banana")[i], i), 2),
    ],
    ids=lambda data: type(data).__name__,
)
def test_texts_are_tokenised(data: object) -> None:
    found = as_examples(data, lengths)
    assert found.load([1, 0]).tolist() == [[6, 3], [5, 2]]
    if isinstance(data, list):
        assert isinstance(found, TextExamples)
    if not isinstance(data, list | pd.Series):
        assert labels_of(found) == (0, 1)
    with pytest.raises(ExampleError, match="texts need a preprocessing"):
        as_examples(data)


def _shuffled() -> DataLoader[object]:
    return DataLoader(TensorDataset(X), 5, shuffle=True)


class Streaming(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from X

    def __len__(self) -> int:
        return N


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "shuffling DataLoader": (_shuffled, r"draws by RandomSampler.*give loader\.dataset"),
    "collating DataLoader": (
        lambda: DataLoader(TensorDataset(X), 5, collate_fn=torch.stack),
        r"a collate_fn of its own.*loader\.dataset, or a list",
    ),
    "DataLoader that drops": (
        lambda: DataLoader(TensorDataset(X), 5, drop_last=True),
        r"drop_last=True of its own",
    ),
    "DataLoader of whole batches": (
        lambda: DataLoader(TensorDataset(X), batch_size=None),
        "a collate_fn of its own",
    ),
    "DataLoader with its own batches": (
        lambda: DataLoader(X, batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(X), 4, False)),
        "a batch_sampler of its own",
    ),
    "DataLoader of a stream": (lambda: DataLoader(Streaming()), "a Streaming, whose items can't be read again"),
    "stream": (Streaming, "a Streaming, whose items.*list.*SpooledImages"),
    "generator": (lambda: (x for x in X), "a generator, whose items.*list of them"),
    "set": (lambda: {1, 2}, "a set, whose items can't be read again"),
    "mapping": (lambda: {"a": X, "b": X[1:]}, r"can't be made of \['a', 'b'\]: .*one row per example"),
    "splits": (
        lambda: datasets.DatasetDict(train=hugging_face(x=[[1.0]])),
        r"choose one, as in data\['train'\]",
    ),
    "tuple": (lambda: (X, torch.tensor(LABELS)), r"TensorDataset\(inputs, labels\)"),
    "pairs of inputs": (lambda: TensorDataset(X, X), r"item 0 of the TensorDataset holds \(Tensor, Tensor\)"),
    "triples": (
        lambda: TensorDataset(X, torch.tensor(LABELS), torch.arange(N)),
        r"for item in data",
    ),
    "mappings of several": (
        lambda: Items(lambda i: {"a": X[i], "b": "words"}),
        r"\['a', 'b'\], of which one.*select_columns",
    ),
    "objects": (lambda: [object(), object()], "item 0 of the list is a object, which no tensor"),
    "uneven rows": (lambda: [[[1.0], [2.0, 3.0]]], "which no tensor can be made of"),
    "a number": (lambda: torch.tensor(1.0), "a single number holds no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_examples_is_refused_with_the_way_out(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ExampleError, match=message) as refused:
        as_examples(make())
    assert str(refused.value).count(". ") == 0


def test_examples_of_several_shapes_are_told_when_they_meet_in_a_batch() -> None:
    examples = as_examples([torch.zeros(2, 3), torch.zeros(2, 4)])
    assert examples.load([1]).shape == (1, 2, 4)
    with pytest.raises(ExampleError, match="bring them to one shape"):
        examples.load([0, 1])


@pytest.mark.parametrize("how", ["noise", "flip", "counter"])
def test_a_data_set_that_draws_at_random_is_refused(how: str, conv_net: nn.Module) -> None:
    flip, seen = v2.RandomHorizontalFlip(), [0]

    def item(i: int) -> Tensor:
        seen[0] += 1
        return {"noise": X[i] + torch.randn(()), "flip": flip(X[i]), "counter": X[i] + seen[0]}[how]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        with pytest.raises(ChangedExampleError, match="without random transforms"):
            store().activations(conv_net, [""], Items(item))


def test_a_data_set_that_changes_after_it_was_read_is_refused() -> None:
    rows = list(X)
    examples = as_examples(rows)
    rows[7] = rows[7] + 1
    examples.load([6])
    with pytest.raises(ChangedExampleError, match="item 7 of the list"):
        examples.load([6, 7])


def test_labels_follow_parts_and_joined_sets(folder: Path) -> None:
    examples = TensorExamples(X, labels=LABELS)
    assert labels_of(Part(examples, [3, 0])) == (1, 0)
    assert labels_of(concat(examples, Part(examples, [1]))) == (*LABELS, 1)
    assert labels_of(concat(examples, TensorExamples(X))) is None
    files = sorted(folder.glob("*/*.png"))
    files[1].write_bytes(b"no picture")
    left = ImageExamples(files, SMALL, on_error="skip", labels=range(8))
    assert labels_of(left) == (0, 2, 3, 4, 5, 6, 7)
    with pytest.raises(ExampleError, match="3 labels for 24 examples"):
        TensorExamples(X, labels=[1, 2, 3])


def test_probes_of_data_without_labels_say_how_to_give_them(conv_net: nn.Module) -> None:
    with pytest.raises(SplitError, match="pairs of an example and its label"):
        PROBES(store(), conv_net, X)


def test_a_label_that_is_a_mask_is_none() -> None:
    data = Items(lambda i: {"image": X[i], "label": torch.zeros(6, 6)})
    assert labels_of(as_examples(data)) is None


def test_rows_of_numbers_are_no_pairs_of_an_example_and_its_label() -> None:
    for row in ([0.5, 1.0], (np.float32(0.5), np.float32(1.0))):
        examples = as_examples([row, row])
        assert examples.load([0]).tolist() == [[0.5, 1.0]]
        assert labels_of(examples) is None
