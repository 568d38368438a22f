"""Parameters that are converted together give the results and gradients of autocast."""

import pytest
import torch

from discriminators.discriminators import CCSEncoderDiscriminator
from training.halves import converted


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_converted_discriminator_is_that_of_autocast(alpha):
    network = CCSEncoderDiscriminator(latent_dim=3, width=8)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    found = []
    for function in (network, converted(network, torch.bfloat16)):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            verdict = function(images, alpha)
        sum(part.sum() for part in verdict).backward()
        found.append((*verdict, {name: p.grad for name, p in network.named_parameters()}))
    (*one, gradients), (*other, of_converted) = found
    for part, same in zip(one, other, strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=0)
    unused = [name for name, gradient in gradients.items() if gradient is None]
    assert unused  # levels that the images do not pass; Adam must not touch them
    assert [name for name, gradient in of_converted.items() if gradient is None] == unused
    for name, gradient in gradients.items():
        if gradient is not None:
            assert of_converted[name].dtype == torch.float32
            torch.testing.assert_close(of_converted[name], gradient, rtol=2e-2, atol=2e-2)
