"""Removing and retraining on data whose informative places are known."""

import pytest
import torch
from torch import Tensor, nn

from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.core.content_ids import model_id
from probing.evaluation.base import EvaluationError
from probing.evaluation.retraining import (
    Data,
    Kar,
    Retrained,
    Roar,
    Training,
    accuracy,
    data_randomisation,
)

QUICK = Training(epochs=12, rate=0.05, batch=100)


def signs(*, copied: bool = False) -> Data:
    """Return vectors of 4 values whose class is the sign of the first; copied: the second is the same."""
    x = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    if copied:
        x[:, 1] = x[:, 0]
    y = (x[:, 0] > 0).long()
    return Data(x[:500], y[:500], x[500:], y[500:])


def make() -> nn.Module:
    return nn.Linear(4, 2)


def ranking(order: list[int], data: Data) -> Tensor:
    return torch.tensor(order, dtype=torch.float32).expand(len(data.train) + len(data.test), 4).clone()


def roar(data: Data, rankings: dict[str, object], **settings: object) -> Retrained:
    metric = Roar(**({"fractions": (0.0, 0.25), "seeds": 2, "training": QUICK} | settings))  # type: ignore[arg-type]
    return metric(rankings, QUICK(make, data.train, data.train_labels, 9), make, data)  # type: ignore[arg-type]


@pytest.mark.kernels
def test_ro_1_only_the_place_that_holds_the_class_matters() -> None:
    data = signs()
    found = roar(data, {"right": ranking([4, 3, 2, 1], data), "wrong": ranking([1, 2, 3, 4], data)})
    mean = found.summary[0]
    assert float(mean[0, 1]) == pytest.approx(0.5, abs=3 * 0.5 / 20)
    assert (mean[:, 0] > 0.95).all()
    assert float(mean[1, 1]) > 0.95
    assert found.areas["right"] < found.areas["random"] < found.areas["wrong"]


@pytest.mark.kernels
def test_ro_2_of_two_places_that_say_the_same_either_can_go() -> None:
    data = signs(copied=True)
    found = roar(data, {"first": ranking([4, 3, 2, 1], data), "second": ranking([3, 4, 2, 1], data)})
    assert (found.summary[0][:2, 1] > 0.95).all()


def test_ro_3_with_nothing_gone_all_is_as_it_was_and_with_all_gone_only_the_frequent_class_is_left() -> None:
    data = signs()
    found = roar(data, {"right": ranking([4, 3, 2, 1], data)}, fractions=(0.0, 1.0))
    plain = [accuracy(QUICK(make, data.train, data.train_labels, s), data.test, data.test_labels) for s in range(2)]
    assert found.values[0, 0].tolist() == pytest.approx(plain)
    share = float((data.test_labels == data.train_labels.bincount().argmax()).double().mean())
    assert found.values[0, 1].tolist() == pytest.approx([share] * 2)
    assert found.chance >= 0.5


def test_ro_4_masks_are_fixed_and_known_by_their_content() -> None:
    data = signs()
    first, second = (roar(data, {"gxi": GradientTimesInput()}) for _ in range(2))
    assert first.masks == second.masks
    assert set(first.masks) == {"gxi", "random"}
    assert torch.equal(first.values, second.values)
    assert first.masks["random"] != roar(data, {}, seed=5).masks["random"]


@pytest.mark.kernels
def test_ro_5_the_true_places_make_the_lowest_curve() -> None:
    data = signs()
    given = {
        "truth": ranking([4, 1, 1, 1], data),
        "gxi": GradientTimesInput(),
        "gradient": Saliency(),
    }
    found = roar(data, given)
    lowest = found.summary[0][0]
    assert (lowest[None] <= found.summary[0] + 0.05).all()


@pytest.mark.kernels
def test_what_a_mask_s_pattern_gives_away_is_reported() -> None:
    data = signs()
    leaking = torch.zeros(900, 4)
    labels = torch.cat([data.train_labels, data.test_labels])
    leaking[torch.arange(900), 2 + labels] = 1.0  # which noise goes tells the class
    found = roar(data, {"leaking": leaking})
    assert float(found.mask_only[0, 1]) > 0.95
    assert float(found.mask_only[1, 1]) < 0.62


def test_keeping_is_the_counterpart_of_removing() -> None:
    data = signs()
    metric = Kar(fractions=(0.25,), seeds=2, training=QUICK)
    model = QUICK(make, data.train, data.train_labels, 9)
    found = metric({"right": ranking([4, 3, 2, 1], data)}, model, make, data)
    assert float(found.summary[0][0, 0]) > 0.95
    assert float(found.summary[0][1, 0]) < 0.8
    assert found.kind == "kept"


def test_images_lose_whole_pixels_to_the_mean_of_each_channel() -> None:
    x = torch.randn(60, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    data = Data(x[:40], (x[:40, 0, 0, 0] > 0).long(), x[40:], (x[40:, 0, 0, 0] > 0).long())
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return self.head(x.flatten(1))

    maps = torch.zeros(60, 1, 4, 4)
    maps[:, :, 0, 0] = 1
    metric = Roar(fractions=(1 / 16,), seeds=1, training=Training(epochs=1))
    model = Watching().eval()
    metric({"corner": maps}, model, Watching, data)
    mean = x[:40].mean((0, 2, 3))
    trained = [s for s in seen if bool((s[:, :, 0, 0] == mean).all())]
    assert trained
    assert not bool((trained[0][:, :, 1, 1] == mean).all())


@pytest.mark.kernels
def test_maps_of_a_network_that_learned_shuffled_labels_are_others() -> None:
    x = torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(80) % 2
    x[y == 1, :, 2:5, 2:5] += 2.0
    data = Data(x[:60], y[:60], x[60:], y[60:])

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2))

    long = Training(epochs=200, rate=5e-3, batch=30, enough=1.0)
    model, state = long(net, data.train, data.train_labels, 0), torch.get_rng_state()
    before = model_id(model)
    found = data_randomisation({"gradient": Saliency()}, model, net, data, long)["gradient"]
    assert found.fitted >= 0.95
    assert float(found.summary[0][0]) < 0.2
    assert model_id(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(EvaluationError, match="95 % are needed"):
        data_randomisation({}, model, net, data, Training(epochs=1))


@pytest.mark.kernels
def test_training_is_repeatable_and_stops_when_it_is_enough() -> None:
    data = signs()
    one, two = (QUICK(make, data.train, data.train_labels, 3) for _ in range(2))
    assert model_id(one) == model_id(two)
    assert not one.training
    early = Training(epochs=200, rate=0.05, enough=0.9)(make, data.train, data.train_labels, 3)
    assert 0.88 < accuracy(early, data.train, data.train_labels) < 1


def test_results_are_saved_and_settings_refused(tmp_path: object) -> None:
    data = signs()
    found = roar(data, {}, seeds=1, fractions=(0.5,))
    assert Retrained.load(found.save(str(tmp_path))).masks == found.masks
    with pytest.raises(EvaluationError, match=r"fractions must lie within 0 to 1 .*, got \(2.0,\)"):
        roar(data, {}, fractions=(2.0,))
