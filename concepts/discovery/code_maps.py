"""Codes as scores of the network's input, so that every gradient method draws maps of a concept.

CRAFT (Fel et al. 2023, arXiv:2211.10154, sec. 3.4) follows a code of non-negative factorisation to the input although an
optimisation lies between: at its optimum the codes are an implicit function of the layer's rows. Here the dictionary stays
as it is: it was learned of other examples, and no picture that is explained moves it.
"""

from jaxtyping import Float
from torch import Tensor, nn

from concepts.discovery.dictionary import Dictionary
from concepts.discovery.rows import Cells
from probing.models.hooks import capture


class AtomCodes(nn.Module):
    """A network that returns, in place of class scores, the codes of a layer: the mean over places, for each atom.

    `Score(AtomCodes(…), atom)` goes wherever a class's score does: saliency, integrated gradients, SmoothGrad, LIME.

    Args:
        model: in evaluation mode.
        layer: a dotted path.
        cells: how its output is cut into rows.
        dictionary: of such rows.

    Example:
        >>> rows = read_rows(store, net, "layer3", images)
        >>> codes = AtomCodes(net, "layer3", rows.cells, SemiNmf(4)(rows.values)).eval()
        >>> heat = Saliency()(Score(codes, 2), pictures)
    """

    def __init__(self, model: nn.Module, layer: str, cells: Cells, dictionary: Dictionary) -> None:
        super().__init__()
        self.model, self.layer, self.cells, self.dictionary = model, layer, cells, dictionary

    def forward(self, inputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n atoms"]:
        with capture(self.model, [self.layer], graph=True, stop=True) as seen:
            self.model(inputs)
        rows = self.cells.rows(seen[self.layer])
        codes = self.dictionary.codes(rows.flatten(0, 1))
        return codes.reshape(*rows.shape[:2], -1).mean(1)
