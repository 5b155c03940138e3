"""Random numbers: a stream of its own for each purpose, seed and chunk, so that no draw depends on another."""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A stream for each key of whole numbers, where zeros at its end do not count.

    A generator's own seed would be cut to 32 bits.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
