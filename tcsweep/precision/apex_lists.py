"""Which functions apex's O1 treats how: names only, as data.

Taken from NVIDIA apex 25.05, `apex/amp/lists/functional_overrides.py`, `torch_overrides.py`, `tensor_overrides.py` and
`apex/amp/rnn_compat.py` (https://github.com/NVIDIA/apex, BSD-3-Clause, Copyright (c) the apex contributors). Names that
this torch lacks are skipped when they are applied, as apex does.
"""

from __future__ import annotations

# torch.nn.functional
FUNCTIONAL_HALF = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("conv_tbc", "linear"),
)
FUNCTIONAL_FLOAT = (
    *("interpolate", "grid_sample"),
    *("softplus", "softmin", "log_softmax", "softmax", "gelu"),
    *("layer_norm", "group_norm", "local_response_norm", "normalize", "cosine_similarity"),
    *("poisson_nll_loss", "cosine_embedding_loss", "cross_entropy", "hinge_embedding_loss", "kl_div", "l1_loss"),
    *("mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss"),
    *("multi_margin_loss", "nll_loss", "binary_cross_entropy_with_logits", "smooth_l1_loss", "soft_margin_loss"),
    *("triplet_margin_loss", "ctc_loss"),
)
FUNCTIONAL_BANNED = ("binary_cross_entropy",)  # refused with half input

# torch; the batched products are half because apex's amp runs on CUDA only, and CUDA is at least 9.1 by now
TORCH_HALF = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("conv_tbc", "prelu"),
    *("addmm", "addmv", "addr", "matmul", "mm", "mv"),
    *("addbmm", "baddbmm", "bmm"),
)
TORCH_FLOAT = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "reciprocal", "rsqrt", "sinh", "tan"),
    "pow",
    *("cumprod", "cumsum", "dist", "norm", "prod", "std", "sum", "var"),
    "renorm",
)
TORCH_PROMOTE = (
    *("addcdiv", "addcmul", "atan2", "cross", "bilinear", "dot"),
    *("add", "div", "mul"),
    *("eq", "equal", "ge", "gt", "le", "lt", "ne"),
)
TORCH_SEQUENCE = ("cat", "stack")

# torch.Tensor: its own, then everything that torch's lists name
TENSOR_HALF = ("__matmul__", *TORCH_HALF)
TENSOR_FLOAT = ("__ipow__", "__pow__", "__rpow__", "cpu", *TORCH_FLOAT)
TENSOR_PROMOTE = (
    *("__add__", "__div__", "__eq__", "__ge__", "__gt__", "__iadd__", "__idiv__", "__imul__", "__isub__"),
    *("__itruediv__", "__le__", "__lt__", "__mul__", "__ne__", "__radd__", "__rdiv__", "__rmul__", "__rsub__"),
    *("__rtruediv__", "__sub__", "__truediv__"),
    *TORCH_PROMOTE,
)
TENSOR_SEQUENCE = TORCH_SEQUENCE

# torch.nn.modules.rnn's own handle on torch's functions
RNN_LAYERS = ("lstm", "gru")
RNN_CELLS = ("rnn_relu_cell", "rnn_tanh_cell", "gru_cell", "lstm_cell")
