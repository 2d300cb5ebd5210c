"""The low-rank matrix that every LoRA here is."""

from __future__ import annotations

import torch

from memwrite.modules.low_rank import LowRank, stacked_factors


def test_a_product_is_that_with_the_whole_matrix() -> None:
    """With one matrix for all rows, and with one for each."""
    draw = torch.Generator().manual_seed(0)
    down, up, inputs = (
        torch.randn(2, *shape, dtype=torch.float64, generator=draw)
        for shape in ((3, 5), (7, 3), (4, 5))
    )
    own = LowRank(down, up, 0.5)
    for row in range(2):
        alone = LowRank(down[row], up[row], 0.5)
        torch.testing.assert_close(own(inputs)[row], inputs[row] @ alone.weight().mT)
        torch.testing.assert_close(alone(inputs[row]), inputs[row] @ (0.5 * up[row] @ down[row]).mT)


def test_a_narrow_input_is_multiplied_in_the_dtype_of_the_factors() -> None:
    low = LowRank(torch.full((1, 2), 1.0), torch.full((3, 1), 1 + 2**-20), 1.0)
    outputs = low(torch.ones(1, 1, 2, dtype=torch.bfloat16))
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, torch.full((1, 1, 3), 2 + 2**-19))


def test_factors_start_as_a_linear_layers_and_zero() -> None:
    torch.manual_seed(0)
    down, up = stacked_factors(2, 6, 400, 3, torch.float64)
    assert down.shape == (2, 3, 400)
    assert up.shape == (2, 6, 3)
    assert not up.any()
    assert 0.95 / 20 < down.abs().max() <= 1 / 20
    assert not torch.equal(down[0], down[1])
