"""Packed copies of large weights: the same products, only where they may be, and gone afterwards."""

import pytest
import torch
from torch import nn

from amidkd.models.packed import packed_weights

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def large(bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(128, 8192, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 128), (32, 1, 128), (7, 128), (2, 3, 128)])
def test_products_are_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    layer = large(bias)
    entries = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = layer(entries)
        with packed_weights(layer, 8):
            torch.testing.assert_close(layer(entries), wanted, rtol=1e-5, atol=1e-5)
            sliced = torch.randn(*shape[:-1], 256, generator=torch.Generator().manual_seed(1))[..., ::2]
            torch.testing.assert_close(layer(sliced), nn.functional.linear(sliced, layer.weight, layer.bias))


def test_layers_are_as_before_even_after_an_error() -> None:
    model = nn.Sequential(large(), nn.Linear(8192, 8))

    def fail() -> None:
        with packed_weights(model, 8):
            assert "forward" in vars(model[0])
            assert "forward" not in vars(model[1])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert "forward" not in vars(model[0])
    model(torch.ones(2, 128)).sum().backward()
    assert model[0].weight.grad is not None


def test_what_is_not_a_plain_float_layer_keeps_its_own_way() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    scaled, wrapped, half = Scaled(128, 8192), large(), large().bfloat16()
    vars(wrapped)["forward"] = own = lambda input: input
    with packed_weights(nn.ModuleList([scaled, wrapped, half]), 8):
        assert vars(wrapped)["forward"] is own
        assert "forward" not in vars(scaled)
        assert "forward" not in vars(half)
    assert vars(wrapped)["forward"] is own


def test_autocast_goes_before() -> None:
    layer = large()
    with torch.no_grad(), packed_weights(layer, 8), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 128)).dtype == torch.bfloat16
