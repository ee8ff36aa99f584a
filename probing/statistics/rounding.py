"""What rounding explains of a difference is no difference: many equal inputs would else make it certain."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LAST_DIGITS = 64  # of a score that a pass may leave open


def of_weights(model: nn.Module) -> torch.dtype:
    """Return the coarsest format of a model's weights; float32 for one without."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


def beyond_rounding(
    change: Float[Tensor, "n *cells"], scores: Float[Tensor, "*any"], dtype: torch.dtype
) -> Float[Tensor, "n *cells"]:
    """Return changes of scores, with 0 where rounding may have made them.

    Args:
        change: differences of scores.
        scores: some that they are differences of, whose size tells what rounding may do.
        dtype: the format that they were computed in.
    """
    least = _LAST_DIGITS * torch.finfo(dtype).eps * scores.abs().amax(0)
    return torch.where(change.abs() <= least, 0.0, change)
