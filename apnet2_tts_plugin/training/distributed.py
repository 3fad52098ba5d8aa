"""Data-parallel training: process group, broadcast, gradient all-reduce.

coqui's Trainer starts DistributedDataParallel but calls the bare module, so that its gradients are never synchronised;
nor does it know torchrun. A single process passes through all functions here unchanged.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from trainer import Trainer, TrainerArgs

from apnet2_tts_plugin.errors import LaunchError

COLLECTIVE_TIMEOUT = timedelta(hours=1)  # how long the others wait while rank 0 evaluates and saves


def adopt_launcher(args: TrainerArgs) -> None:
    """Take over from torchrun which process this is, and hide every GPU from it but its own.

    To be called before anything uses CUDA. Where `LOCAL_RANK` is set alone, it is the rank too, and `join` refuses the
    others: they would all be rank 0 and write to one folder. The Trainer takes all the GPUs that it sees on one machine
    for the whole of the group, which is wrong with several machines; one that sees a single GPU leaves the group alone.

    Raises:
        LaunchError: if there are more processes on this machine than GPUs.
    """
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None:
        return
    args.rank = int(os.environ.get("RANK", local_rank))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (
        list(filter(None, visible.split(",")))
        if visible is not None
        else [str(i) for i in range(torch.cuda.device_count())]
    )
    if len(devices) <= 1:  # none, or the launcher has chosen one
        return
    if int(local_rank) >= len(devices):
        raise LaunchError(
            f"local rank {local_rank}: there are {len(devices)} GPUs, expected no more processes than those"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(local_rank)]


def n_launched(args: TrainerArgs) -> int:
    """Number of processes that torchrun or `trainer.distribute` started, this one included."""
    return int(os.environ.get("WORLD_SIZE", max(torch.cuda.device_count(), 1) if args.use_ddp else 1))


def join(trainer: Trainer) -> None:
    """Join the processes that torchrun started, and tell the Trainer which of them this is.

    Raises:
        LaunchError: if there are several processes, and nothing by which they could find each other.
    """
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        backend, device = ("nccl", torch.device("cuda", 0)) if trainer.use_cuda else ("gloo", None)
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=device)
    if dist.is_initialized():
        trainer.args.rank = dist.get_rank()
    elif trainer.args.rank > 0:
        raise LaunchError(
            f"rank {trainer.args.rank} is alone: python -m trainer.distribute needs two GPUs or more, torchrun does not"
        )


def rank() -> int:
    """Number of this process in its group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast_weights(model: nn.Module) -> None:
    """Give all processes the weights of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one transfer."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


def any_process(condition: bool, device: torch.device) -> bool:
    """Whether `condition` holds in any of the processes; all of them must ask."""
    if world_size() == 1:
        return condition
    answer = torch.tensor(float(condition), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


def gather(value: Any) -> list[Any]:
    """What each process has for `value`, in the order of their ranks; all of them must ask."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Leave the group; a process that ends within it is aborted at times, and `torchrun` then calls the run failed."""
    if dist.is_initialized():
        dist.destroy_process_group()


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values
