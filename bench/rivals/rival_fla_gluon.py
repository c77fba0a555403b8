"""flash-linear-attention with its Gluon kernels, which are off by default; gradients only.

They have fixed tiles instead of an autotuner, for widths 2 to 4. The backward pass recomputes the
activation's argument, which the Triton kernels write and read again.
"""

from rival_fla import original as triton_kernels
from rival_fla import training  # noqa: F401

ENVIRONMENT = {"FLA_CONV_GLUON": "1"}
COMPILED_PARTS = 1


def original():
    from fla.modules.causal_conv1d.backends import gluon  # noqa: F401  (fails where there are none)

    return triton_kernels()
