"""Independent random streams, one per purpose, seed and chunk."""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """The random stream of a key of non-negative integers; trailing zeros are ignored.

    Hashed with `SeedSequence`, as `manual_seed` alone uses only 32 bits.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
