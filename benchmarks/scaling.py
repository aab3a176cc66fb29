"""What do the presets need, and what would N GPUs make of them? The numbers behind docs/scaling.md.

    python benchmarks/scaling.py                       counted, without computing: weights, arithmetic, memory
    python benchmarks/scaling.py --step gpu-256        one real training step of 2 images: its time and memory

Arithmetic is counted by PyTorch's FlopCounterMode (convolutions, matrix products, attention) and what the backward
pass has to keep by autograd's hooks, both on tensors that have a shape but no content.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.forward import draw_times, loss_simple
from ddpm.runtime.checkpoint import make_unet
from ddpm.runtime.config import PRESETS, Config
from ddpm.schedule import make_schedule
from train import make_optimizer, update_ema

# Bytes a weight: itself, gradient, Adam's two moments, average, and the copy of the gradients that travels; all float32.
STATE = 4 + 4 + 8 + 4 + 4
# Assumed, not measured: an A100's bf16 peak and the share of it that training reaches; bytes a second between GPUs in
# one machine (NVLink) and between machines (a 200 Gbit/s card for each GPU).
PEAK, SHARE, NVLINK, NETWORK = 312e12, 0.30, 200e9, 20e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=PRESETS, help="take one real step of this preset")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args()
    if args.step:
        real_step(args.step, args.images, args.precision)
        return
    for preset in ("laptop", "ho", "gpu-128", "gpu-256"):
        tell(preset)


def network(config: Config):
    return make_unet(config, ("background", "lesion"), ("T1", "T2", "FLAIR"))


def inputs(config: Config, images: int):
    """x_0, t, mask, contrast."""
    x_0, t = torch.zeros(images, 1, *config.image_size), torch.ones(images, dtype=torch.long)
    return x_0, t, torch.zeros(images, 2, *config.image_size), t


def flops(config: Config) -> int:
    """Of one image, forward and backward."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        unet = network(config)
        x_0, t, mask, contrast = inputs(config, 1)
        unet(x_0, t, mask, contrast).sum().backward()
    return counter.get_total_flops()


def kept_for_backward(config: Config) -> int:
    """Bytes that each image adds to what the backward pass keeps, with the network in bf16 (CPU rules)."""

    def total(images: int) -> int:
        with FakeTensorMode():
            unet = network(config)
            own = {weight.untyped_storage()._cdata for weight in unet.parameters()}
            kept = {}

            def note(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in own:
                    kept[storage._cdata] = storage  # held, so that no other gets its number
                return tensor

            x_0, t, mask, contrast = inputs(config, images)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                with torch.autocast("cpu", torch.bfloat16):
                    answer = unet(x_0, t, mask, contrast)
                answer.float().square().mean()
            return sum(storage.nbytes() for storage in kept.values())

    return total(2) - total(1)


def draw_seconds(config: Config) -> float:
    """The noise of a whole batch, which each process draws (processor time)."""
    shape = (config.batch_size, 1, *config.image_size)
    torch.randn(shape)
    begun = time.process_time()
    for _ in range(10):
        torch.randn(shape)
    return (time.process_time() - begun) / 10


def tell(preset: str) -> None:
    config = Config(**PRESETS[preset])
    with FakeTensorMode():
        weights = sum(weight.numel() for weight in network(config).parameters())
    work, kept, draw = flops(config), kept_for_backward(config), draw_seconds(config)
    print(
        f"{preset}: {weights / 1e6:.1f} M weights; {work / 1e9:.0f} GFLOP and {kept / 1e6:.0f} MB an image; state "
        f"{STATE * weights / 1e9:.2f} GB; {4 * weights / 1e6:.0f} MB of gradients; noise of a batch {1e3 * draw:.1f} ms"
    )
    if not config.steps:
        return
    for gpus, batch in (
        (1, config.batch_size),
        (8, config.batch_size),
        (64, config.batch_size),
        (64, 8 * config.batch_size),
    ):
        if batch < gpus:
            continue
        each = -(-batch // gpus)
        compute = each * work / (SHARE * PEAK)
        between = 2 * (gpus - 1) / gpus * 4 * weights / (NVLINK if gpus <= 8 else NETWORK)
        step = compute + between + draw * batch / config.batch_size
        print(
            f"  {gpus:2d} GPUs, batch {batch}: {each} images each, {(STATE * weights + each * kept) / 1e9:.1f} GB, "
            f"compute {1e3 * compute:.0f} ms, exchange {1e3 * between:.1f} ms, step {1e3 * step:.0f} ms, "
            f"{batch / step:.0f} images/s, {config.steps * config.batch_size / batch * step / 3600:.1f} h "
            f"for {config.steps * config.batch_size / 1e6:.1f} M images"
        )


def real_step(preset: str, images: int, precision: str) -> None:
    config = Config(**PRESETS[preset])
    torch.manual_seed(0)
    schedule, unet = make_schedule(config.schedule, config.timesteps), network(config)
    ema, optimizer = network(config), make_optimizer(unet, config)
    x_0, _, mask, contrast = inputs(config, images)
    begun, used = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        t, eps = draw_times(images, schedule.T), torch.randn_like(x_0)
        loss = loss_simple(schedule, unet, config.objective, x_0, t, eps, mask, contrast).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), config.clip)
    optimizer.step()
    update_ema(ema, unet, 0.99)
    wall, seconds = time.perf_counter() - begun, time.process_time() - used
    memory, work = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, images * flops(config)
    print(
        f"{preset}, {precision}, {torch.get_num_threads()} threads: a step of {images} images took "
        f"{wall:.1f} s ({seconds:.1f} s of processor time, {work / seconds / 1e9:.0f} GFLOP/s), loss "
        f"{loss.item():.3f}, peak memory {memory:.1f} GB"
    )


if __name__ == "__main__":
    main()
