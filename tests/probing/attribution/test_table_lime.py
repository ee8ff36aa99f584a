"""LIME for tables against closed forms and loops, on data frames, arrays and tensors, and its own promises."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from probing.attribution.perturbation.regression import Ridge
from probing.attribution.perturbation.surrogate import ExactShapley, KernelShap, Local, ShapleySampling
from probing.attribution.perturbation.tables import TableAttribution, TableLIME
from probing.core.inputs import InputError
from probing.models.readings import OutputError
from probing.models.scores import ModelModeError, TargetError
from probing.results.result import describe, rebuild

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "array": lambda t: t.numpy(),
    "frame": lambda t: pd.DataFrame(t.numpy(), columns=list("abcd")),
}


def linear(rows: Any) -> Tensor:
    """Two classes, whose scores are sums of weights times numbers."""
    x = torch.as_tensor(rows.to_numpy().copy() if isinstance(rows, pd.DataFrame) else rows)
    weights = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    return x @ weights.T + 0.25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surrogate", [ExactShapley(), KernelShap(), ShapleySampling(), Local(200, regression=Ridge(1e-12))])
def test_a_linear_function_gives_weight_times_distance_from_the_background_s_mean(
    kind: str, surrogate: Any, generator: torch.Generator
) -> None:
    row, background = torch.randn(1, 4, generator=generator).double(), torch.randn(7, 4, generator=generator).double()
    found = TableLIME(surrogate)(linear, KINDS[kind](row), KINDS[kind](background), 0)
    expected = torch.tensor([1.0, -2.0, 0.0, 3.0]).double() * (row[0] - background.mean(0))
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-8)
    assert found.diagnostics["intercept"] == pytest.approx(float(linear(background)[:, 0].mean()), abs=1e-8)
    assert found.score == pytest.approx(float(linear(row)[0, 0]))
    assert found.names == (("a", "b", "c", "d") if kind == "frame" else ("0", "1", "2", "3"))


CITIES, LEVELS = ["Oslo", "Lima", "Pune"], pd.CategoricalDtype(["low", "mid", "high"], ordered=True)


def people(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, n),
            "income": rng.normal(3, 1, n),
            "city": rng.choice(CITIES, n),
            "level": pd.Categorical(rng.choice(list(LEVELS.categories), n), dtype=LEVELS),
            "member": rng.random(n) < 0.5,
        }
    )


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A classifier that reads age and city; of the other columns nothing."""
    table = people(300)
    wanted = (table["age"] > 45) ^ (table["city"] == "Lima")
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["city"]))
    return make_pipeline(columns, LogisticRegression()).fit(table, wanted)


def by_a_loop(predict: Any, row: pd.DataFrame, background: pd.DataFrame, target: int) -> Tensor:
    """Shapley values of the columns against the background, by all orders of adding them."""

    def value(kept: tuple[str, ...]) -> float:
        rows = background.copy()
        for name in kept:
            rows[name] = pd.Series([row[name].iloc[0]] * len(rows), index=rows.index).astype(row[name].dtype)
        return float(predict(rows)[:, target].mean())

    names = list(row.columns)
    known = {kept: value(kept) for size in range(6) for kept in itertools.combinations(names, size)}
    total = dict.fromkeys(names, 0.0)
    for order in itertools.permutations(names):
        for i, name in enumerate(order):
            before, after = (tuple(n for n in names if n in order[:j]) for j in (i, i + 1))
            total[name] += known[after] - known[before]
    return torch.tensor([total[n] for n in names], dtype=torch.float64) / math.factorial(5)


def test_a_pipeline_of_numbers_and_categories_gives_what_a_loop_over_all_orders_does(pipeline: Any) -> None:
    background, row = people(8, seed=2), people(1, seed=7)
    seen: list[pd.DataFrame] = []

    def predict(rows: pd.DataFrame) -> Any:
        seen.append(rows)
        return pipeline.predict_proba(rows)

    found = TableLIME(ExactShapley())(predict, row, background, 1)
    expected = by_a_loop(pipeline.predict_proba, row, background, 1)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    assert float(found.values.sum()) == pytest.approx(found.score - found.diagnostics["intercept"])
    for rows in seen:  # every column is of the type that it was
        assert rows.dtypes.equals(background.dtypes)
    assert found.n_forward == sum(map(len, seen)) == 1 + 32 * 8
    assert found.shown == tuple(map(str, [row["age"].iloc[0], f"{row['income'].iloc[0]:.4g}", *row.iloc[0, 2:]]))
    as_series = TableLIME(ExactShapley())(pipeline.predict_proba, row.iloc[0], background, 1)
    as_mapping = TableLIME(ExactShapley())(pipeline.predict_proba, row.iloc[0].to_dict(), background, 1)
    assert torch.equal(as_series.values, found.values)
    assert torch.equal(as_mapping.values, found.values)


def test_columns_that_a_function_reads_stand_out_and_others_get_nothing(pipeline: Any) -> None:
    background, row = people(40, seed=2), people(1, seed=7)
    found = TableLIME()(pipeline.predict_proba, row, background)
    values = dict(zip(found.names, found.values.abs().tolist(), strict=True))
    errors = dict(zip(found.names, found.standard_error.tolist(), strict=True))
    for name in ("income", "level", "member"):
        assert values[name] <= 4 * errors[name] + 1e-9
        assert values[name] < 0.2 * values["city"]
    # The control: of a function that reads income, this is what stands out.
    other = TableLIME()(lambda rows: np.stack([rows["income"], -rows["income"]], 1), row, background)
    assert other.to_pandas()["column"].iloc[0] == "income"
    assert other.sentences()[0].startswith("Class ")


def test_columns_of_a_group_are_hidden_together(generator: torch.Generator) -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))).double().eval()
    row, background = torch.randn(5, generator=generator).double(), torch.randn(6, 5, generator=generator).double()
    found = TableLIME(ExactShapley(), groups=((3, 1),))(net, row, background, 1)
    assert found.names == ("0", "3, 1", "2", "4")
    value: dict[tuple[int, ...], float] = {}
    for kept in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(5)):
        rows = background.clone()
        for part in kept:
            columns = [[0], [1, 3], [2], [4]][part]
            rows[:, columns] = row[columns]
        value[kept] = float(net(rows)[:, 1].mean().detach())
    expected = [
        sum((value[tuple(sorted((*s, part)))] - value[s]) / (4 * math.comb(3, len(s))) for s in value if part not in s)
        for part in range(4)
    ]
    torch.testing.assert_close(found.values, torch.tensor(expected).double())


@pytest.mark.parametrize("batch_size", [1, 13, 10_000])
def test_the_size_of_calls_changes_nothing(batch_size: int, generator: torch.Generator) -> None:
    row, background = torch.randn(4, generator=generator).double(), torch.randn(5, 4, generator=generator).double()
    calls: list[int] = []

    def predict(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return linear(rows).square()

    found = TableLIME(batch_size=batch_size)(predict, row, background)
    torch.testing.assert_close(found.values, TableLIME()(lambda r: linear(r).square(), row, background).values)
    assert max(calls) <= max(5, batch_size)


def test_missing_values_are_values(generator: torch.Generator) -> None:
    background = people(20).assign(income=[np.nan, *people(20)["income"][1:]])
    row = people(1, seed=3).assign(income=np.nan)

    def predict(rows: pd.DataFrame) -> Any:
        gone = rows["income"].isna().to_numpy(float)
        return np.stack([gone, 1 - gone], 1)

    found = TableLIME(ExactShapley())(predict, row, background, 0)
    assert found.values.tolist() == pytest.approx([0, 0.95, 0, 0, 0])
    assert found.shown[1] == "nan"


FRAME = people(6)
ONE = people(1, seed=9)


@pytest.mark.parametrize(
    ("row", "background", "message"),
    [
        (ONE.drop(columns="city"), FRAME, "must be one with the background's columns"),
        (people(2), FRAME, "must be one with the background's columns"),
        (ONE.assign(age=30.5), FRAME, "column 'age' of the row holds .*30.5.*, which is no int64"),
        (ONE.assign(level="none"), FRAME, "column 'level' of the row holds 'none', which is no category"),
        (ONE, FRAME[:0], "must be a data frame, an array or a tensor with rows"),
        (torch.zeros(3), torch.zeros(5, 4), r"got Tensors of shapes \(1, 3\) and \(5, 4\)"),
        (torch.zeros(4), torch.zeros(5, 4).double(), "of torch.float32 and torch.float64"),
        (np.zeros(4, "float32"), np.zeros((5, 4)), "of float32 and float64"),
        (torch.zeros(4), torch.zeros(5, 4), "all background rows equal the row"),
    ],
)
def test_rows_unlike_the_background_are_refused(row: Any, background: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TableLIME()(linear, row, background)


@pytest.mark.parametrize("groups", [((0, 9),), ((0, 1), (1, 2)), (("a",),)])
def test_groups_of_other_columns_are_refused(groups: Any) -> None:
    with pytest.raises(InputError, match="groups must hold columns of the table once each"):
        TableLIME(groups=groups)(linear, torch.zeros(4), torch.ones(5, 4))


def test_what_a_function_may_not_do_is_refused() -> None:
    row, background = torch.ones(4).double(), torch.zeros(5, 4).double()
    for wrong, message in (
        (lambda r: r[:, 0], r"must return \[n, classes\] for n rows"),
        (lambda r: linear(r) / 0, "finite class scores"),
        (lambda r: linear(r - r.mean(0)), "scores must not hang on chance or on other rows"),
        (lambda r: linear(r) + torch.rand(1), "scores must not hang on chance"),
        (lambda _: "no", "got a str"),
    ):
        with pytest.raises(OutputError, match=message):
            TableLIME()(wrong, row, background)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="whichever columns show other rows"):
        TableLIME()(lambda r: torch.ones(len(r), 2), row, background)
    with pytest.raises(TargetError, match="class 2 is out of range"):
        TableLIME()(linear, row, background, 2)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        TableLIME(batch_size=0)(linear, row, background)
    with pytest.raises(ModelModeError):
        TableLIME()(nn.Sequential(nn.Linear(4, 2), nn.Dropout()).double(), row, background)


def test_a_column_that_all_rows_share_is_counted_and_gets_nothing() -> None:
    background = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    background[:, 1] = 7
    found = TableLIME(ExactShapley())(linear, torch.full((4,), 7.0).double(), background, 0)
    assert found.diagnostics["unhidden_parts"] == 1
    assert found.values[1] == 0


def test_a_result_is_saved_and_its_method_made_again(tmp_path: Path) -> None:
    method = TableLIME(ShapleySampling(8), groups=((0, 2),))
    found = method(linear, torch.ones(4).double(), torch.zeros(3, 4).double())
    loaded = TableAttribution.load(found.save(tmp_path))
    assert torch.equal(loaded.values, found.values)
    assert rebuild(loaded.provenance.method) == method
    assert describe(method) == found.provenance.method
    bars = found.plot().axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["3 = 1", "1 = 1", "0, 2 = 1, 1"]
