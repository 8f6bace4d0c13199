"""Every kernel does what plain PyTorch does, in Triton's interpreter or on the GPU that is there."""

import pytest
import torch

from tokred.bench.kernel_checks import all_checks

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.name)
def test_the_kernel_does_what_plain_pytorch_does(check):
    check.run(DEVICE)
