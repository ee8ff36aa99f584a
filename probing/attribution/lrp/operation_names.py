"""Names of the operations that LRP knows, by what they do to relevance."""


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


LAYERS = names("convolution addmm mm")
"""Layers with weights, where these are constants: each call gets a rule."""
BATCH_NORMS = names(
    """native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training"""
)
PLAIN_NORMS = names("native_layer_norm native_group_norm")

CREATE = names("empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full")
"""Operations that read a tensor's shape only."""
TURNS = names("permute transpose t")
RESHAPES = names("view _unsafe_view reshape")
SAME_ORDER = RESHAPES | names("unsqueeze squeeze clone detach alias contiguous _to_copy")
"""Operations that keep elements in their order."""

IDENTITIES = names("detach alias contiguous lift_fresh")
"""Operations that return what they get, whatever autograd makes of them."""
MOVES = (
    TURNS
    | SAME_ORDER
    | names(
        """expand slice select split split_with_sizes unbind stack flip roll index index_select gather repeat
        constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
        pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col unfold as_strided diagonal
        max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d max amax min amin maximum minimum
        sort topk where masked_fill lift_fresh upsample_nearest1d upsample_nearest2d upsample_nearest3d
        _upsample_nearest_exact2d"""
    )
)
"""Each element of an output is one element of an input, or a constant."""
LINEAR = names(
    """neg sum mean avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d cumsum rsub col2im
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa"""
)
"""Outputs are sums of multiples of inputs, and of constants."""
FILLS = names("constant_pad_nd masked_fill rsub")
"""Operations that bring in a constant number."""
ACTIVATIONS = names("""leaky_relu gelu silu hardswish elu celu mish tanh softshrink hardshrink _prelu_kernel abs sqrt erf""")
"""Functions of one element that map zero to zero."""
OFFSETS = names("sigmoid hardsigmoid softplus log_sigmoid_forward")
"""Functions of one element that do not."""
SOFTMAXES = names("_softmax _safe_softmax")
GATES = names("sigmoid hardsigmoid rsqrt reciprocal")
"""Outputs that count as weights, not as evidence, where they are multiplied with another activation."""
GATE_KEEPERS = TURNS | RESHAPES | names("expand unsqueeze squeeze clone select slice")
"""Operations through which a gate stays one."""
