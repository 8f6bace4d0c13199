"""Several processes, one on each GPU, as torchrun starts them: every one takes its part of a batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokred.errors import ConfigError


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if torchrun started some, and part from them at the end.

    A thread of a group that was never left may outlive the interpreter, which aborts the process. After an error the
    group is not left, since that may wait for the others for long: the process ends, and torchrun ends them all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def own_part(order: Tensor, batch_size: int) -> Tensor:
    """Return what this process takes of whole batches, batch after batch."""
    if batch_size % world():
        raise ConfigError(f"batch_size: {batch_size} cannot be shared by {world()} processes.")
    return order.view(-1, world(), batch_size // world())[:, rank()].flatten()


def average_gradients(model: nn.Module) -> None:
    """Give all processes the mean of their gradients, in one message."""
    if world() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
