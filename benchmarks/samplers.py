"""Which way from noise to an image, in how many steps? Questions to trained checkpoints, answered by the judge of the
embedded data (ddpm/metrics/segmenter.py), which was trained on real pairs only:

    FID    Frechet distance of the samples to held-out images, in the judge's features
    KID    the same question without FID's bias, x 1000
    Dice   does the lesion lie on the mask? (lesions of 12 pixels or more)

each with half a 95 % interval, and the difference to the default sampler of --ckpt with its own (the masks are the same
for all, so much of the scatter is common to both). The row "real images" is what no sampler can be expected to beat.

    python benchmarks/samplers.py [--few STUDENT ...] [--only dpm-solver ...] [--steps 4 10] [--n 1024] [--n-long 256]

The samples of each row are kept in results/samplers, and drawn once: what was stopped is gone on with. The table goes to
the screen and to results/samplers/table.md, and with matplotlib a plot beside it.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data.sources import load_data
from ddpm.evaluation.comparison import draw_for
from ddpm.evaluation.questions import SMALL
from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.kid import kid
from ddpm.metrics.margin import margin
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling, load_model
from ddpm.runtime.command_line import Parser, one_line_errors, quicker_precision
from ddpm.runtime.config import check_limits
from ddpm.runtime.files import check_writable, write_whole

GIVEN = ("mask", "contrast")  # what each sample is asked for
LONG = 250  # steps from which a row has --n-long images
ALL = (0.0, 1.0)
STEPS = {
    "dpm-solver": (2, 4, 8, 10, 20, 50),
    "ddim": (1, 2, 4, 8, 10, 20, 50, 250),
    "ancestral": (4, 10, 20, 50, 250, 1000),
}
GUIDED = {
    **{f"guidance {k:g}": (k, ALL) for k in (0.0, 1.0, 1.1, 1.25, 1.5)},
    **{
        f"guidance 1.2 in {low:g} to {high:g}": (1.2, (low, high))
        for low, high in ((0.25, 1), (0.05, 0.9), (0.05, 0.7))
    },
}


@dataclass
class Way:
    name: str
    model: Model
    how: Sampling


def ways(args) -> Iterator[Way]:
    """The rows. The first one is the default sampler. Raises UserError for models that cannot be compared."""
    model = load_model(args.ckpt)
    check_asked(model)
    if model.config.few_steps:
        raise UserError(f"{model.name}: trained for {model.config.few_steps} steps alone; name it by --few")
    yield Way("dpm-solver", model, Sampling(steps=10))
    for path in args.few:
        few = load_model(path)
        if not few.config.few_steps:
            raise UserError(f"--few {path}: trained for any number of steps; name it by --ckpt")
        if any((few.vocabulary != model.vocabulary, few.shape != model.shape, few.config.data != model.config.data)):
            raise UserError(f"--few {path}: draws other images, or for other masks, than {model.name}")
        name = "distilled" if few.config.teacher else f"Fast-DDPM, {few.config.train_times}"
        for sampler in ("ddim",) if few.config.teacher else ("ddim", "dpm-solver", "ancestral"):
            yield Way(name if few.config.teacher else f"{name}, {sampler}", few, Sampling(sampler))
    for sampler in args.only:
        for steps in STEPS.get(sampler, ()):
            if (not args.steps or steps in args.steps) and (sampler, steps) != ("dpm-solver", 10):
                yield Way(sampler, model, Sampling(sampler, steps))
    for name, (guidance, interval) in GUIDED.items() if "guidance" in args.only else ():
        yield Way(name, model, Sampling(steps=10, guidance=guidance, interval=interval))


def check_asked(model: Model) -> None:
    """Raises UserError unless the model draws images of the phantom for its masks and contrasts, and nothing else."""
    if model.config.data != "phantom" or {*model.vocabulary.given} != {*GIVEN}:
        follows = " and ".join(model.vocabulary.given) or "nothing"
        found = f"trained on {model.config.data}, and follows {follows}"
        raise UserError(f"{model.name}: {found}; give a checkpoint of the phantom with masks")


@dataclass
class Drawn:
    """What was drawn by a way, and what the judge says of it."""

    features: np.ndarray  # (n, D)
    overlap: np.ndarray  # (k,) Dice of the images that have a lesion of 12 pixels or more
    right: float  # share of contrasts as asked
    calls: float = 0.0  # of the network, an image
    seconds: float = 0.0  # an image


class Bench:
    def __init__(self, args, model: Model):
        self.args, self.judge, self.held_out = args, load_segmenter(), load_data(model.config, "test")
        check_limits("n", args.n, at_least=40, at_most=len(self.held_out) - 40)  # as many are left to compare with
        marked = (self.held_out.masks[: args.n_long] == len(self.held_out.classes) - 1).sum((1, 2)) >= SMALL
        if marked.sum() < 2:
            raise UserError(
                f"--n-long {args.n_long}: under two of these images have a lesion of {SMALL} pixels; give more"
            )
        self.reference = self.judge.judge(self.held_out.images[args.n :]).features

    def judged(self, images: np.ndarray, calls: float = 0.0, seconds: float = 0.0) -> Drawn:
        chosen = np.arange(len(images))
        verdict = self.judge.judge(images)
        wanted = self.held_out.masks[chosen] == len(self.held_out.classes) - 1
        counted = wanted.sum((1, 2)) >= SMALL
        found = verdict.labels == len(self.judge.classes) - 1
        overlap = dice(found[counted][:, None], wanted[counted][:, None]).numpy()
        right = (verdict.contrasts + 1 == self.held_out.labels["contrast"][chosen]).mean()
        return Drawn(verdict.features, overlap, float(right), calls, seconds)

    def drawn(self, way: Way) -> Drawn:
        """Draw as many as the row has, or read back what was drawn."""
        n = self.args.n_long if way.how.steps and way.how.steps >= LONG else self.args.n
        how = replace(way.how, precision=self.args.precision).complete(way.model, GIVEN)
        weights = hashlib.sha256(Path(way.model.name).read_bytes()).hexdigest()[:8]
        key = hashlib.sha256(repr(how).encode()).hexdigest()[
            :8
        ]  # guidance and the rest, of the checkpoint or by default
        name = f"{weights}-{key}-{how.precision}-{way.name}-{how.steps}-{n}".replace(" ", "_")
        path = self.args.out / f"{name}.npz"
        if not path.exists():
            count = []
            hook = way.model.unet.register_forward_hook(lambda unet, given, output: count.append(len(output)))
            begun = time.perf_counter()
            images = draw_for(way.model, self.held_out, np.arange(n), how, batch_size=16)
            seconds = (time.perf_counter() - begun) / n
            hook.remove()
            write_whole(path, lambda file: np.savez(file, images=images, calls=sum(count) / n, seconds=seconds))
        kept = np.load(path)
        return self.judged(kept["images"], float(kept["calls"]), float(kept["seconds"]))

    def scores(self, drawn: Drawn, default: Drawn) -> list[str]:
        """FID, KID, its difference to the default's, Dice, its difference, contrast. The default is cut to as many."""
        n, D = drawn.features.shape

        def distance(features, reference):
            return 1000 * kid(features, reference, subsets=20, subset_size=1000)[0]

        def difference(both, reference):
            return distance(both[:, :D], reference) - distance(both[:, D:], reference)

        subjects, others = np.arange(n), np.arange(len(self.reference))
        both = np.concatenate([drawn.features, default.features[:n]], axis=1)
        sides = [(self.reference, others)]
        k = margin(distance, (drawn.features, subjects), *sides, rounds=20)
        d = margin(difference, (both, subjects), *sides, rounds=20)
        gap = drawn.overlap - default.overlap[: len(drawn.overlap)]
        lesions = np.arange(len(gap))
        return [
            f"{frechet_distance_of_features(drawn.features, self.reference):.1f}",
            f"{distance(drawn.features, self.reference):.0f} ± {k:.0f}",
            f"{difference(both, self.reference):+.0f} ± {d:.0f}",
            f"{drawn.overlap.mean():.3f} ± {margin(np.mean, (drawn.overlap, lesions)):.3f}",
            f"{gap.mean():+.3f} ± {margin(np.mean, (gap, lesions)):.3f}",
            f"{drawn.right:.1%}",
        ]


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/samplers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="default: the newest in results/, or the model in the box")
    parser.add_argument("--few", nargs="*", default=[], help="checkpoints of few steps: a row each")
    asked = parser.add_argument("--only", nargs="*", choices=(*STEPS, "guidance"), default=list(STEPS))
    asked.help = "these samplers alone, or guidance: the questions to it"
    parser.add_argument("--steps", nargs="+", type=int, help="rows of these numbers of steps alone")
    parser.add_argument("--n", type=int, default=1024, help="images of a row (default 1024)")
    parser.add_argument(
        "--n-long", type=int, default=256, help=f"images of a row of {LONG} steps or more (default 256)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: the quicker one here")
    parser.add_argument("--out", type=Path, default=Path("results/samplers"))
    args = parser.parse_args(argv)
    check_limits("n_long", args.n_long, at_least=40)
    args.n_long = min(args.n_long, args.n)
    rows = list(ways(args))
    for way in rows:
        way.how.complete(way.model, GIVEN)  # what cannot be drawn is said before the first row is
    model = rows[0].model
    args.precision = args.precision or quicker_precision(next(model.unet.parameters()).device)
    check_writable(args.out)
    bench = Bench(args, model)

    print(f"{model.name}, {args.precision}; reference: {len(bench.reference)} held-out images", flush=True)
    head = "| way | steps | images | calls an image | s for 16 images | FID | KID x 1000 | to the default | Dice | to the default | contrast |"
    lines = [head, "|---" + "|---:" * 10 + "|"]
    default, points = None, []
    real = bench.judged(bench.held_out.images[: args.n])
    for way in [None, *rows]:
        drawn = bench.drawn(way) if way else real
        default = default or (drawn if way else None)
        cells = bench.scores(drawn, default or drawn)
        if way:
            steps = way.how.complete(way.model, GIVEN).steps
            counts = [way.name, str(steps), str(len(drawn.features)), f"{drawn.calls:.1f}", f"{16 * drawn.seconds:.1f}"]
            points.append((way.name, drawn.calls, float(cells[1].split()[0])))
        else:
            counts, cells[2], cells[4] = ["real images", "", str(args.n), "", ""], "", ""
        lines.append("| " + " | ".join(counts + cells) + " |")
        print(lines[-1] if way else "\n".join(lines), flush=True)
    table = "\n".join(lines) + "\n"
    write_whole(args.out / "table.md", lambda file: file.write(table.encode()))
    plot(points, args.out / "steps.png")


def plot(points: list[tuple[str, float, float]], path: Path) -> None:
    """KID against calls of the network; points: (way, calls, KID). Nothing where matplotlib is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for name in dict.fromkeys(name for name, _, _ in points):
        own = sorted((calls, score) for other, calls, score in points if other == name)
        axis.plot(*zip(*own, strict=True), "o-", ms=4, lw=1, label=name)
    axis.set(xscale="log", yscale="log", xlabel="calls of the network, an image", ylabel="KID x 1000")
    calls = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    axis.set_xticks(calls, map(str, calls))
    axis.minorticks_off()
    axis.set_xlim(0.9 * min(calls for _, calls, _ in points), 1.1 * max(calls for _, calls, _ in points))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
