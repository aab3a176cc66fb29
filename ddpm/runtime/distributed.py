"""Several processes, one training: `torchrun --nproc-per-node N train.py ...`.

Every process holds the whole network and works on its own part of each batch; the gradients are added up, and then all
take the same step (data parallelism). The loss of a batch is a mean over the batch, so its gradient is the sum of what
the parts contribute, whatever their sizes: adding is exact where averaging over processes would not be. Everything
random in a step is drawn for the whole batch from (seed, step) by each process, which then uses its own part; so a
sample meets the same noise however many processes there are, and a run may go on with another number of them.

Messages go through torch.distributed: gloo between CPUs, NCCL between GPUs (not yet run: one GPU was there). Process 0
alone speaks and writes. Started without torchrun, all functions here but take_gpu do nothing.
"""

import functools
import os
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from ddpm import UserError
from ddpm.seeds import torch_seed

# How long to wait for a process that neither answers nor has died (one that has is noticed at once). Process 0 may
# take its time over a large folder, a judge or an evaluation while the others wait.
PATIENCE = timedelta(days=1)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def in_each_process(main):
    """main(argv), after joining the others if torchrun started us. Process 0's errors are told, once; of the others
    only those that are their own."""

    @functools.wraps(main)
    def wrapped(argv):
        if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
            return main(argv)
        nccl = torch.cuda.is_available() and dist.is_nccl_available()  # Windows has none: gloo carries all
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=PATIENCE)
        try:
            if rank() == 0:
                return main(argv)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                return main(argv)
        except UserError as error:
            if rank() == 0:
                raise
            time.sleep(5)  # if process 0 met the same it has said so, and torchrun ends us meanwhile
            raise UserError(f"process {rank()}: {error}") from None
        finally:
            dist.destroy_process_group()

    return wrapped


def take_gpu() -> None:
    """Compute on a GPU of this process's own, by algorithms that give the same bits again where PyTorch has such (it
    warns where not; with several GPUs not yet run). Raises UserError if this machine has fewer GPUs than processes."""
    if size() > 1:
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), f"{torch.cuda.device_count()} GPU(s)"
        if processes > torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node {processes}, but this machine has {gpus}; start so many, or --device cpu"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in another order
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill every new tensor first
    torch.backends.cudnn.benchmark = False


def exchange(message, *arguments) -> None:
    """A function of torch.distributed, and what to say when the others are not there any more."""
    try:
        message(*arguments)
    except RuntimeError as error:
        found = f"another process ended or did not answer ({str(error).splitlines()[0][:100]})"
        raise UserError(f"{found}; its own message says why; the checkpoints are whole, go on with --resume") from None


def broadcast(function, *arguments):
    """function(*arguments) as process 0 finds it, in every process."""
    found = [function(*arguments) if rank() == 0 else None]
    if size() > 1:
        exchange(dist.broadcast_object_list, found, 0, None, torch.device("cpu"))
    return found[0]


@contextmanager
def rank_0_first():
    """What is inside is done by process 0, then by the others, who find what it has cached."""
    if rank() > 0:
        broadcast(bool)
    yield
    if rank() == 0:
        broadcast(bool)


def shard(things):
    """This process's part of a sequence (or of a tensor's first dimension): runs of neighbours, as even as can be."""
    bounds = [len(things) * number // size() for number in (rank(), rank() + 1)]
    return things[bounds[0] : bounds[1]]


def seed_dropout(*numbers: int) -> None:
    """Dropout draws from torch's global random state as it goes: all processes but the first get one of their own."""
    if rank() > 0:
        torch.manual_seed(torch_seed(*numbers, rank()))


@torch.no_grad()
def all_reduce(tensors) -> None:
    """Replace each tensor by its sum over the processes. They travel as one: float32, on one device."""
    if size() == 1:
        return
    tensors = list(tensors)
    together = torch.cat([tensor.flatten() for tensor in tensors])
    exchange(dist.all_reduce, together)
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def any_of(here) -> bool:
    """Is it so in any process?"""
    count = torch.tensor(float(bool(here)))
    all_reduce([count])
    return bool(count)


def gather(mine) -> list:
    """What each process has, in their order, in process 0. The others' work ends here: they leave the program."""
    everyone = [mine] if size() == 1 else [None] * size()
    if size() > 1:
        exchange(dist.gather_object, mine, everyone if rank() == 0 else None)
    if rank() > 0:
        raise SystemExit(0)
    return everyone
