"""The agent narrows without torch; worker and agent must still agree to the last bit."""

import numpy as np
import torch

from chaos.agent.arithmetic import to_bfloat16


def test_bfloat16_rounds_as_torch_does():
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = np.array([0, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x3F808000, 0x3F818000, 1, 0x80000000], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)
