"""Conditional relevance of atoms: with what is no atom's they sum to the plain map; rankings of examples follow."""

from dataclasses import replace

import pytest
import torch
from discovery_worlds import SeesThings, world
from nets import ConvNet, images, seeded
from torch import nn

from concepts.discovery import AtomPart, Dictionary, Nmf, Pca, RestPart, atom_relevance
from concepts.discovery.dictionary import NonNegative
from probing.attribution.lrp.conditional import ConditionalLRP, PartError
from probing.attribution.lrp.lrp import LRP
from probing.models.scores import Score


@pytest.mark.parametrize("learner", [Pca(3), Nmf(3)], ids=lambda one: type(one).__name__)
def test_relevance_of_all_atoms_and_the_rest_sums_to_the_plain_map(learner: Pca) -> None:
    net, inputs = seeded(ConvNet()).double(), images(3).double()
    with torch.no_grad():
        rows = net.features(inputs).movedim(1, -1).flatten(0, 2)
    dictionary, score = learner(rows), Score(net, 1)
    parts = [AtomPart(dictionary, atom) for atom in range(3)]
    found = [ConditionalLRP("features.3")(score, inputs, part) for part in (*parts, RestPart(dictionary))]
    plain = LRP()(score, inputs)
    total = torch.stack([one.values for one in found]).sum(0)
    assert float((total - plain.values).abs().max()) < 1e-6 * float(plain.values.abs().max())
    at_layer = torch.stack([one.diagnostics["at_layer"] for one in found[:3]], 1)
    assert torch.allclose(atom_relevance(LRP(), score, inputs, "features.3", dictionary), at_layer, atol=1e-9)


def test_the_map_of_a_planted_thing_lies_on_it() -> None:
    net, seen = SeesThings(), world(12)
    dictionary = Dictionary(net.things, torch.zeros(8), NonNegative())
    found = ConditionalLRP("relu")(Score(net, 0), seen.with_it, AtomPart(dictionary, 0))
    on_it = (seen.with_it[:, 0] > 0.1)[:, None]
    whole = found.values.sum((1, 2, 3))
    assert float(((found.values * on_it).sum((1, 2, 3)) / whole).min()) > 0.8  # of a ninth of the area
    assert bool((whole > 0).all())


def test_examples_of_most_relevance_need_not_be_those_of_most_activation() -> None:
    # The score is the first unit's, and only where the second is not on: more of both is more activation, no relevance.
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
        net[4].weight.fill_(1.0)
        net[4].bias.fill_(0.0)
    inputs = torch.tensor([[3.0, 3.0], [1.0, 0.0], [2.0, 0.1]])
    dictionary = Dictionary(torch.eye(2), torch.zeros(2), NonNegative())
    relevance = atom_relevance(LRP(), Score(net.eval(), 0), inputs, "1", dictionary)
    assert int(dictionary.codes(inputs)[:, 0].argmax()) == 0
    assert int(relevance[:, 0].argmax()) == 2
    assert float(relevance[0, 0]) == 0.0


def test_an_atom_that_there_is_not_is_refused() -> None:
    dictionary = Dictionary(torch.eye(2), torch.zeros(2), NonNegative())
    with pytest.raises(PartError, match="there is no atom 2 among 2, which are counted from 0"):
        AtomPart(dictionary, 2)(torch.ones(1, 2))
    assert torch.equal(RestPart(replace(dictionary, offset=torch.ones(2)))(torch.full((1, 2), 3.0)), torch.ones(1, 2))
