"""Whether what was derived from weights (fused, folded, cast) is still theirs."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from torch import Tensor, nn


def state_of(*modules: nn.Module) -> Hashable:
    """Changes when a weight or buffer of the modules is replaced, moved, recast or written in place through torch.

    Not when it is written through ``.data`` or numpy, or was made in inference mode: torch does not count these.
    """
    weights = (itertools.chain(module.parameters(), module.buffers()) for module in modules)
    return tuple((weight.data_ptr(), _version(weight)) for weight in itertools.chain(*weights))


def _version(weight: Tensor) -> int:
    """How often a weight was written in place; weights made in inference mode do not tell."""
    return 0 if weight.is_inference() else weight._version
