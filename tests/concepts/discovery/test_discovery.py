"""Discovery in a world of known things: what is planted is found and nothing else is called; parts add up."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from discovery_worlds import THINGS, SeesThings, World, world
from dissection_nets import named, scenes_of
from nets import ConvNet, LinearTailNet, images, seeded
from torch import Tensor, nn

from concepts.discovery import Discovery, KMeans, Nmf, Pca, SemiNmf, Strengths, name_atoms, read_rows
from concepts.discovery.dictionary import Dictionary, NonNegative
from concepts.discovery.discovery import pooled
from concepts.discovery.importance import score_parts, shuffled_p, sobol_indices
from concepts.discovery.matching import agreement, matched_cosine, partners
from concepts.discovery.naming import NamingError
from concepts.discovery.replacement import replaced
from concepts.discovery.result import DiscoveryError, DiscoveryResult
from concepts.effects.concept_attribution import ConceptGradients
from concepts.local_vs_global.matched_pairs import MatchedConcept
from concepts.tcav.tcav import Tcav
from probing.data.examples import Subset, TensorExamples
from probing.maximization import Direction, maximize
from probing.maximization.pixel_space import Space
from probing.models.scores import Score
from probing.store.store import ActivationStore

METHOD = Discovery("relu", Nmf(THINGS), refits=2, draws=99, masks=8, explained=12)


def bound(draws: int) -> float:
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scene() -> tuple[SeesThings, World, DiscoveryResult]:
    net, seen = SeesThings(), world(60)
    matched = MatchedConcept("thing 0", TensorExamples(seen.with_it[30:]), TensorExamples(seen.without[30:]))
    found = METHOD(
        ActivationStore(),
        net,
        seen.pictures,
        {"class": Score(net, 0)},
        matched=[matched],
        strengths=Strengths(("first", "second", "third"), seen.there.float()),
    )
    return net, seen, found


def atom_of(net: SeesThings, found: DiscoveryResult, thing: int) -> int:
    return int((found.dictionary.atoms @ net.things[thing]).argmax())


def test_each_thing_is_an_atom_that_both_halves_give(scene: tuple[SeesThings, World, DiscoveryResult]) -> None:
    net, _, found = scene
    cosine = (found.dictionary.atoms @ net.things.mT).amax(0)
    assert float(cosine.min()) > 0.99
    assert bool(found.stable.all())
    assert float(found.agreement.cosine.min()) > 0.99 > float(found.agreement.chance.mean())
    assert float(found.seeds.min()) > 0.99
    assert found.seeds.shape == (2, THINGS)
    assert found.unexplained < 0.01
    assert not bool(found.dead.any())


def test_the_thing_that_the_class_hangs_on_is_the_important_one_and_parts_add_up(
    scene: tuple[SeesThings, World, DiscoveryResult],
) -> None:
    net, _, found = scene
    told, atom = found.importance, atom_of(net, found, 0)
    assert told is not None
    assert bool(told.exact.all())
    assert int(told.part[0].abs().argmax()) == int(told.sobol[0].argmax()) == atom
    assert float(told.sobol[0, atom]) == pytest.approx(1, abs=0.05)
    others = [a for a in range(THINGS) if a != atom]
    assert float(told.part[0, others].abs().max()) < 0.05 * float(told.part[0, atom])
    assert float(told.low[0, atom]) < float(told.part[0, atom]) < float(told.high[0, atom])
    assert float((told.part.sum(1) + told.rest + told.gap - told.change).abs().max()) < 1e-9
    assert float(told.gap.abs().max()) < 1e-5


def test_swapping_one_thing_moves_its_atom_and_hardly_any_other(
    scene: tuple[SeesThings, World, DiscoveryResult],
) -> None:
    net, _, found = scene
    assert found.attributes == ("thing 0",)
    assert found.shifts is not None
    atom = atom_of(net, found, 0)
    assert bool(found.moves[0, atom])
    others = [a for a in range(THINGS) if a != atom]
    assert float(found.shifts.shift[0, others].abs().max()) < 0.1 * float(found.shifts.shift[0, atom])
    assert "Swapping thing 0 moves atoms" in " ".join(found.sentences())


def test_things_get_their_names_and_noise_none(scene: tuple[SeesThings, World, DiscoveryResult]) -> None:
    net, _, found = scene
    assert found.naming is not None
    for thing, name in enumerate(("first", "second", "third")):
        assert found.naming.of(atom_of(net, found, thing)) == name
        assert found.name(atom_of(net, found, thing)).endswith(f": {name}")
    noise = name_atoms(found.codes[found.held_out], Strengths(("a", "b"), torch.rand(30, 2, generator=generator(7))))
    assert [noise.of(atom) for atom in range(THINGS)] == [None] * THINGS


def test_what_the_network_loses_and_the_untrained_one_are_told(scene: tuple[SeesThings, World, DiscoveryResult]) -> None:
    _, _, found = scene
    assert found.replacement is not None
    assert found.replacement.lost < 0.01
    assert found.replacement.examples == 30
    assert found.twin is not None
    assert found.twin.counterpart.shape == (THINGS,)
    assert "Read the same way with random weights, before any training" in " ".join(found.sentences())


def test_found_atoms_are_ordinary_directions_and_concepts(scene: tuple[SeesThings, World, DiscoveryResult]) -> None:
    net, seen, found = scene
    examples, atom = TensorExamples(seen.pictures), atom_of(net, found, 0)
    concept = found.concept(atom, examples, 10)
    assert len(concept) == 10
    own = {examples.ids.index(i) for i in concept.examples.ids}
    assert all(bool(found.held_out[i]) and bool(seen.there[i, 0]) for i in own)
    assert set(found.top(atom, 5)) <= set(found.held_out.nonzero()[:, 0].tolist())
    pool = Subset(examples, [i for i in range(60) if i not in own and not seen.there[i, 0]])
    inputs = TensorExamples(seen.with_it[~seen.there[:, 0]][:9])
    method = Tcav(runs=2, null=None, bootstraps=0, relabellings=19)
    tcav = method(ActivationStore(), {"class": Score(net, 0)}, ["relu"], [concept], inputs, pool)
    assert float(tcav.effect.min()) > 0
    dreamt = maximize(net, [Direction("relu", found.direction(atom))], space=Space.plain(), size=(6, 6), steps=2)
    assert len(dreamt.pictures()) == 1
    told = ConceptGradients("relu", steps=1)(Score(net, 0), seen.with_it[:3], found.dictionary.atoms, ("a", "b", "c"))
    assert int(told.values.mean(0).argmax()) == atom
    with pytest.raises(DiscoveryError, match="the 60 examples of the discovery are needed, got others"):
        found.concept(atom, seen.pictures[:3])


def test_a_result_is_saved_tabled_and_drawn(scene: tuple[SeesThings, World, DiscoveryResult], tmp_path: Path) -> None:
    found = scene[2]
    again = DiscoveryResult.load(found.save(tmp_path))
    assert torch.equal(again.dictionary.atoms, found.dictionary.atoms)
    assert again.sentences() == found.sentences()
    assert again.dictionary.coder == found.dictionary.coder
    table = found.to_pandas()
    assert len(table) == THINGS
    assert {"stability", "part of class", "sobol of class", "shift by thing 0", "twin", "name"} <= set(table.columns)
    axes = found.plot()
    assert len(axes.get_xticklabels()) == THINGS


def test_batches_and_stores_do_not_matter_and_what_is_left_out_is_none() -> None:
    net, seen = SeesThings(), world(30)
    plain = replace(METHOD, twin=False, refits=0, masks=0)
    one, other = (plain(ActivationStore(batch_size=size), net, seen.pictures) for size in (3, 30))
    assert torch.allclose(one.dictionary.atoms, other.dictionary.atoms, atol=1e-5)
    assert torch.equal(one.held_out, other.held_out)
    assert one.twin is one.importance is one.shifts is one.naming is None
    assert one.moves.shape == (0, THINGS)
    means = replace(plain, places="mean", learner=Pca(2))(ActivationStore(), net, seen.pictures, {"c": Score(net, 0)})
    assert means.replacement is means.importance is None
    assert means.seeds.shape == (0, 2)


def test_clusters_stay_together_and_equal_examples_too() -> None:
    net, seen = SeesThings(), world(20)
    pictures = torch.cat([seen.pictures, seen.pictures[:5]])
    clusters = [f"c{i % 10}" for i in range(20)] + ["else"] * 5
    found = replace(METHOD, twin=False, refits=0, masks=0)(ActivationStore(), net, pictures, clusters=clusters)
    sides = {}
    for name, side in zip(clusters[:20], found.held_out.tolist(), strict=False):
        assert sides.setdefault(name, side) == side
    assert torch.equal(found.held_out[20:], found.held_out[:5])
    with pytest.raises(DiscoveryError, match="20 examples have 3 clusters: give one each, or none"):
        METHOD(ActivationStore(), net, seen.pictures, clusters=["a", "b", "c"])
    with pytest.raises(DiscoveryError, match="a discovery takes 4 clusters of examples or more, got 3"):
        METHOD(ActivationStore(), net, seen.pictures[:3])
    with pytest.raises(DiscoveryError, match=r"with 9 draws p is never below 0\.05: take 19 or more"):
        replace(METHOD, draws=9)(ActivationStore(), net, seen.pictures)


def test_pairs_that_atoms_were_learned_of_are_not_judged_on() -> None:
    net, seen = SeesThings(), world(20)
    both = torch.cat([seen.with_it, seen.without])
    clusters = [f"c{i}" for i in range(20)] * 2
    names = tuple(clusters[:20])
    matched = MatchedConcept("thing 0", TensorExamples(seen.with_it), TensorExamples(seen.without), names)
    plain = replace(METHOD, twin=False, refits=0, masks=0)
    found = plain(ActivationStore(), net, both, clusters=clusters, matched=[matched])
    assert found.shifts is not None
    assert bool(found.shifts.fitted.isfinite().all())
    assert found.moves.any()
    # Other pictures of the same clusters are no others.
    elsewhere = MatchedConcept("thing 0", TensorExamples(seen.with_it + 0.01), TensorExamples(seen.without + 0.01), names)
    again = plain(ActivationStore(), net, both, clusters=clusters, matched=[elsewhere]).shifts
    assert again is not None
    assert bool(again.fitted.isfinite().all())
    few = [i for i in range(20) if not found.held_out[i]]
    few.append(next(i for i in range(20) if found.held_out[i]))
    sides = (TensorExamples(seen.with_it[few]), TensorExamples(seen.without[few]))
    own = MatchedConcept("thing 0", *sides, tuple(names[i] for i in few))
    with pytest.raises(DiscoveryError, match=r"'thing 0' has 1 pairs that atoms were not learned of, 2 are needed"):
        plain(ActivationStore(), net, both, clusters=clusters, matched=[own])


# Parts, Sobol indices and matching against closed forms.


def test_parts_of_a_linear_tail_sum_to_the_logit_minus_the_bias() -> None:
    net, inputs = seeded(LinearTailNet()), images(4)
    rows = read_rows(ActivationStore(), net, "body", inputs)
    assert rows.cells is not None
    found = score_parts(Score(net, 1), "body", rows.cells, Nmf(2)(rows.values), inputs)
    assert found.exact
    want = (net(inputs)[:, 1] - net.head.bias[1]).detach().double()
    assert torch.allclose(found.atoms.sum(1) + found.rest, want, atol=1e-6)
    assert float(found.gap.abs().max()) < 1e-6
    # Of one place and class the part is the code times the atom's product with the head's weights over the places.
    codes = Nmf(2)(rows.values).codes(rows.values).reshape(4, 36, 2).double()
    weights = (net.head.weight[1].detach() @ Nmf(2)(rows.values).atoms.mT).double() / 36
    assert torch.allclose(found.atoms, codes.sum(1) * weights, atol=1e-5)


def test_parts_of_a_bent_tail_sum_with_the_gap_and_more_of_it_is_explained_by_all_atoms() -> None:
    net, inputs = seeded(ConvNet()), images(4)
    rows = read_rows(ActivationStore(), net, "features.1", inputs)
    assert rows.cells is not None
    found = score_parts(Score(net, 1), "features.1", rows.cells, Pca(4)(rows.values), inputs)
    assert not found.exact
    assert torch.allclose(found.atoms.sum(1) + found.rest + found.gap, found.change)
    assert float(found.gap.abs().max()) < 0.05 * float(found.change.abs().max())


def test_sobol_indices_of_atoms_are_those_of_their_parts_where_the_tail_is_linear() -> None:
    net, inputs = seeded(LinearTailNet()), images(2)
    rows = read_rows(ActivationStore(), net, "body", inputs)
    assert rows.cells is not None
    dictionary = Nmf(3)(rows.values)
    squares = score_parts(Score(net, 1), "body", rows.cells, dictionary, inputs).atoms.square()
    found = sobol_indices(Score(net, 1), "body", rows.cells, dictionary, inputs, 400, seed=0)
    want = squares.sum(0) / squares.sum()
    assert torch.allclose(found.total, want, atol=0.12)
    assert found.evaluations == 2 * 400 * 5


def test_atoms_are_matched_one_to_one_whatever_their_order_and_sign() -> None:
    rows = torch.randn(200, 6, generator=generator()) * torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    found = Pca(3)(rows)
    turned = replace(found, atoms=-found.atoms[[2, 0, 1]])
    assert torch.allclose(matched_cosine(found, turned), torch.ones(3).double(), atol=1e-5)
    unsigned = replace(found, coder=NonNegative())
    assert float(matched_cosine(unsigned, replace(turned, coder=NonNegative())).max()) < 0.5
    assert partners(torch.tensor([[0.9, 0.8], [0.8, 0.1]])).tolist() == [1, 0]
    assert partners(torch.tensor([[0.9], [0.8]])).tolist() == [0, -1]


def test_a_perfect_reconstruction_loses_nothing_and_the_mean_row_all() -> None:
    net, inputs = seeded(ConvNet()), TensorExamples(images(5))
    rows = read_rows(ActivationStore(), net, "features.1", inputs)
    assert rows.cells is not None
    mean = rows.values.mean(0)
    whole = replaced(net, "features.1", rows.cells, Pca(4)(rows.values), mean, inputs)
    assert whole.lost < 1e-8
    assert whole.same_class == 1.0
    nothing = Dictionary(torch.zeros(1, 4), mean, NonNegative())
    assert replaced(net, "features.1", rows.cells, nothing, mean, inputs).lost == pytest.approx(1.0)


def test_pooled_codes_are_means_and_peaks_over_places() -> None:
    net, inputs = seeded(ConvNet()), images(3)
    rows = read_rows(ActivationStore(), net, "features.3", inputs)
    dictionary = SemiNmf(2)(rows.values)
    codes = dictionary.codes(rows.values).reshape(3, 36, 2)
    found = pooled(dictionary, rows)
    assert torch.allclose(found.means, codes.mean(1), atol=1e-6)
    assert torch.allclose(found.peaks, codes.amax(1), atol=1e-6)


# Where there is nothing, tests keep their level; where something grows, they find it.


@pytest.mark.parametrize("learner", [Pca(5), KMeans(6), SemiNmf(5, iterations=30)], ids=lambda one: type(one).__name__)
def test_dictionaries_of_rows_without_structure_agree_no_more_than_unrelated_ones(learner: Pca) -> None:
    draws, hits = 40, []
    for seed in range(draws):
        rows = torch.randn(120, 6, generator=generator(seed)) + 2
        found = agreement(learner(rows[::2]), learner(rows[1::2]), rows, 39, seed)
        hits.append((found.p_mean <= 0.05, float(found.p.min()) <= 0.05))
    assert max(np.mean(hits, 0)) <= bound(draws)


def test_of_a_head_drawn_at_random_no_atom_is_important_too_often_and_of_one_along_an_atom_it_is() -> None:
    draws, hits = 200, 0
    atoms = nn.functional.normalize(torch.rand(4, 12, generator=generator()) ** 2)
    codes = torch.rand(4, 1, generator=generator(1))
    for seed in range(draws):
        head = torch.randn(12, generator=generator(seed)) + 0.5
        hits += bool((shuffled_p(codes * head[None, None], atoms, 99, seed) <= 0.05).any())
    assert hits / draws <= bound(draws)
    along = shuffled_p(codes * 3 * torch.linalg.pinv(atoms)[:, 2][None, None], atoms, 199, 0)
    assert float(along[0, 2]) <= 0.05


def test_names_of_noise_are_given_no_more_often_than_they_should_be() -> None:
    draws, hits = 100, 0
    clusters = [f"c{i // 2}" for i in range(24)]
    for seed in range(draws):
        shared = torch.randn(12, 3, generator=generator(seed)).repeat_interleave(2, 0)  # members of a cluster are alike
        strengths = torch.randn(12, 4, generator=generator(seed + draws)).repeat_interleave(2, 0)
        found = name_atoms(shared, Strengths(tuple("abcd"), strengths), clusters, draws=39, seed=seed)
        hits += bool((found.p <= 0.05).any())
    assert hits / draws <= bound(draws)
    alone = [
        bool(
            (
                name_atoms(
                    torch.randn(12, 3, generator=generator(s)).repeat_interleave(2, 0),
                    Strengths(tuple("abcd"), torch.randn(12, 4, generator=generator(s + 999)).repeat_interleave(2, 0)),
                    draws=39,
                    seed=s,
                ).p
                <= 0.05
            ).any()
        )
        for s in range(40)
    ]
    assert np.mean(alone) > bound(40)  # without their clusters the same data would be called


def test_a_planted_thing_is_called_from_some_strength_on_and_not_at_0() -> None:
    net, called = SeesThings(), []
    for strength in (0.0, 0.3, 1.0):
        seen = world(40, strength, seed=3)
        matched = MatchedConcept("thing 0", TensorExamples(seen.with_it[20:]), TensorExamples(seen.without[20:]))
        method = Discovery("relu", Nmf(THINGS), refits=0, draws=19, twin=False)
        found = method(ActivationStore(), net, seen.pictures, matched=[matched])
        called.append(bool(found.moves.any()))
    assert called == [False, True, True]


def test_strengths_come_from_labels_scenes_and_a_space_of_images_and_texts() -> None:
    said = Strengths.of_labels(["cat", "dog", "cat"])
    assert said.names == ("cat", "dog")
    assert said.values.tolist() == [[1, 0], [0, 1], [1, 0]]
    planes = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    planes[0, 0, :2] = 2  # half of the first image
    scenes = scenes_of(torch.zeros(2, 3, 4, 4), planes, named(3), [[], [3]])
    assert Strengths.of_scenes(scenes).values.tolist() == [[0, 0.5, 0], [0, 0, 1]]
    pictures = torch.rand(5, THINGS, 6, 6, generator=generator())
    axes = torch.eye(THINGS)

    def image_space(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def text_space(names: object) -> Tensor:
        return axes

    found = Strengths.of_texts(pictures, ["r", "g", "b"], image_space, text_space)
    assert torch.allclose(found.values, nn.functional.normalize(pictures.mean((2, 3)).double()))
    with pytest.raises(NamingError, match="images lie in 3 dimensions and texts in 2: use one space"):
        Strengths.of_texts(pictures, ["r"], image_space, lambda names: axes[:1, :2])
    with pytest.raises(NamingError, match="2 columns of strengths have 1 names: give one each"):
        Strengths(("a",), torch.zeros(3, 2))
    with pytest.raises(NamingError, match="4 examples have 3 strengths and 0 clusters: give one each"):
        name_atoms(torch.zeros(4, 2), said)
