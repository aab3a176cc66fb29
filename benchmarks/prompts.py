"""Does an image show what a prompt asks for? Prompts that no description in training was like, and the judge.

    make prompts ARGS="--ckpt RUN"          of a run with --words on the embedded data (about half an hour on one core)
    make prompts ARGS="--ckpt pretrained"   of a model without: the mask is drawn first, by the model of masks in the box

A combination of contrast, size, side and region that was held out (ddpm/data/descriptions.py) is asked for in whole, by
words alone. The judge looks for the lesion, and the rules that made the descriptions say what it found. Beside it: what the
judge finds on real images of the same combinations. Then who wins where a mask says otherwise, and what a sentence is
worth to denoising.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.asked import by_masks_alone, drawn_masks, fitted, said_contrast
from ddpm.data import descriptions, phantom
from ddpm.data.images import grid, rgb, to_float, to_uint8, write_png
from ddpm.data.sources import load_data
from ddpm.data.texts import read_embeddings
from ddpm.evaluation.questions import SMALL
from ddpm.inverse import denoise
from ddpm.metrics.margin import margin
from ddpm.metrics.paired import dice, psnr
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling, draw, load_model, predictor
from ddpm.restoration import without_rician_bias
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits
from ddpm.runtime.files import check_file
from ddpm.runtime.progress import progress

BATCH = 25
PARTS = ("asked", "conflict", "denoise")
PATCH = 4  # pixels of the largest patch from which on a lesion counts as there
NOISES = (0.1, 0.2)


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/prompts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="a run with --words, or with the phantom's masks")
    parser.add_argument("--n", type=int, default=300, help="prompts (default 300)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.25, 2.0], help="(default 1.25 2)")
    which = "(default: all that can be asked of the model)"
    parser.add_argument("--parts", nargs="+", choices=PARTS, help=which)
    parser.add_argument("--conflicts", type=int, default=100, help="images of the last two parts (default 100)")
    parser.add_argument("--picture", help="write an image of each of 12 prompts to this PNG")
    args = parser.parse_args(argv)
    check_limits("n", args.n, at_least=3)  # of which a third ask for no lesion
    check_limits("conflicts", args.conflicts, at_least=2)
    check_limits("guidance", args.guidance, at_least=0)
    if args.picture is not None:
        check_file(args.picture, "--picture")
    model = load_model(args.ckpt)
    if model.config.segment or not (by_masks_alone(model) or "words" in model.vocabulary.given):
        raise UserError(f"{model.name} was trained without words and without masks; give a run with --words")
    if model.config.labels != "lesion":
        raise UserError(f"{model.name}: its --labels are {model.config.labels}; give a run with those of lesions")
    args.parts = parts_of(model, args.parts)
    for guidance in args.guidance if "asked" in args.parts else ():
        Sampling(guidance=guidance).complete(model, ("mask", "contrast") if by_masks_alone(model) else ("words",))
    test, judge = load_data(model.config, "test"), load_segmenter()
    said = [descriptions.describe(*of) for of in zip(test.masks == 1, names_of(test), strict=True)]
    held_out = np.flatnonzero([descriptions.held_out(one) for one in said])
    marked, on_a_side = (
        test.masks.sum((1, 2)) >= SMALL,
        np.array([one.get("side") in ("left", "right") for one in said]),
    )
    to_contradict, to_denoise = (np.flatnonzero(x)[: args.conflicts] for x in (marked & on_a_side, marked))
    if len(to_contradict) < 2 and {*args.parts} != {"asked"}:
        raise UserError(
            f"{model.name}: under two test slices have a lesion of {SMALL} pixels; give a run of finer images"
        )
    print(f"{model.name}, step {model.step}")
    if "asked" in args.parts:
        asked(model, judge, test, [said[i] for i in held_out], held_out, args)
    if "conflict" in args.parts:
        conflict(model, judge, test, said, to_contradict)
    if "denoise" in args.parts:
        denoising(model, judge, test, said, to_denoise)


def parts_of(model: Model, wanted: list[str] | None) -> list[str]:
    """The parts that are asked of the model: those wanted, or all that it can answer. Raises UserError."""
    cannot = {}
    if by_masks_alone(model):  # of a mask that the prompt made, no other can be told
        cannot = dict.fromkeys(("conflict", "denoise"), "knows no words, and draws from a mask that the prompt made")
    elif model.config.few_times:
        cannot = {"denoise": f"knows {model.config.few_steps} steps alone"}
    if wanted and (wrong := [part for part in wanted if part in cannot]):
        raise UserError(f"--parts {wrong[0]}: {model.name} {cannot[wrong[0]]}; leave it out")
    return wanted or [part for part in PARTS if part not in cannot]


def names_of(data) -> list[str]:
    return [data.vocabulary.labels["contrast"][i - 1] for i in data.labels["contrast"]]


def words_of(model: Model, prompts: list[str]) -> np.ndarray:
    """What the network takes of prompts: numbers of its own words, or the vectors that it was trained with."""
    if model.vocabulary.vectors:
        return read_embeddings(model.config.text_embeddings).of(prompts)
    return model.vocabulary.numbers(prompts)


def drawn(model: Model, prompts: list[str], seed: int, guidance: float | None, masks=None) -> np.ndarray:
    """An image (n, 1, H, W) uint8 for each prompt, and its mask if there are some. A model that knows no words is given a
    mask that another one draws."""
    drafter = load_model("pretrained-masks") if by_masks_alone(model) else None
    words, found = words_of(drafter or model, prompts), []
    for part in progress(np.array_split(np.arange(len(prompts)), -(-len(prompts) // BATCH)), "drawing", unit="batch"):
        seeds = [(seed, int(i)) for i in part]
        if drafter:
            contrasts = [said_contrast(prompts[i]) for i in part]
            drafted = drawn_masks(drafter, words[part], [(*one, 1) for one in seeds])  # not of the image's own noise
            drafted = [fitted(mask, tuple(model.config.image_size)) for mask in drafted]
            condition = model.vocabulary.condition(np.stack(drafted), contrast=contrasts)
        else:
            condition = model.vocabulary.condition(None if masks is None else masks[part], words=words[part])
        *_, (_, x_0) = draw(model, condition, seeds, Sampling(guidance=guidance))
        found.append(to_uint8(x_0))
    return np.concatenate(found)


def seen(judge, images: np.ndarray) -> list[dict[str, str]]:
    """What the judge finds in each image, described by the same rules."""
    verdict = judge.judge(images)
    found = []
    for labels, contrast in zip(verdict.labels == 4, verdict.contrasts, strict=True):
        patches, n = ndimage.label(labels)
        largest = max(np.bincount(patches.ravel())[1:], default=0) if n else 0
        found.append(descriptions.describe(labels & (largest >= PATCH), judge.contrasts[contrast]))
    return found


def shares(wanted: list[dict], found: list[dict]) -> dict[str, np.ndarray]:
    """Of each part, for each image in which a lesion was asked for and found: as asked? Of presence, for all."""
    there = np.array([one["presence"] == "lesion" for one in found])
    as_asked = {
        part: np.array([w.get(part) == f.get(part) for w, f in zip(wanted, found, strict=True)])
        for part in descriptions.PARTS
    }
    return {part: x if part in ("contrast", "presence") else x[there] for part, x in as_asked.items()}


def asked(model: Model, judge, test, of_real: list[dict], held_out: np.ndarray, args) -> None:
    combinations = descriptions.combinations_held_out()
    combinations = [one for one in combinations if one in of_real]  # such as exist
    random = np.random.default_rng(0)
    wanted = [combinations[i] for i in np.arange(args.n) % len(combinations)]
    healthy = [{"contrast": name, "presence": "no lesion"} for name in random.choice(phantom.CONTRASTS, args.n // 3)]
    shown, chosen = real_of(wanted, of_real, held_out, random)
    none = random.permutation(np.flatnonzero(~test.masks.any((1, 2))))[: len(healthy)]
    rows = {"real images": shares(shown, seen(judge, test.images[chosen]))}
    empty = {"real images": shares([{"presence": "no lesion"}] * len(none), seen(judge, test.images[none]))["presence"]}
    for guidance in args.guidance:
        name = f"guidance {guidance:g}"
        images = drawn(model, [descriptions.text(one) for one in wanted], 1, guidance)
        rows[name] = shares(wanted, seen(judge, images))
        without = drawn(model, [descriptions.text(one) for one in healthy], 2, guidance)
        empty[name] = shares(healthy, seen(judge, without))["presence"]
        if args.picture and guidance == args.guidance[0]:
            cells = np.concatenate([images[: len(combinations)][:: max(1, len(combinations) // 9)][:9], without[:3]])
            write_png(args.picture, grid(rgb(cells).reshape(2, -1, 3, *cells.shape[2:])))
            print(
                "; ".join(
                    descriptions.text(one)
                    for one in [*wanted[: len(combinations)][:: max(1, len(combinations) // 9)][:9], *healthy[:3]]
                )
            )
    print(
        f"\n{args.n} prompts of {len(combinations)} combinations that training held out, and {len(healthy)} of no "
        f"lesion; real images: {len(chosen)} and {len(none)}"
    )
    print("| as asked | " + " | ".join(rows) + " |\n|---" + "|---:" * len(rows) + "|")
    for part in descriptions.PARTS:
        print(f"| {part} | " + " | ".join(percent(row[part]) for row in rows.values()) + " |")
    print("| presence, of no lesion | " + " | ".join(percent(x) for x in empty.values()) + " |", flush=True)


def real_of(
    wanted: list[dict], of_real: list[dict], held_out: np.ndarray, random: np.random.Generator
) -> tuple[list[dict], list[int]]:
    """Real images of the combinations that are wanted: what each shows, and its index. Each once, so of a combination
    that is wanted more often than there are images, all of them. of_real: what the images of these indices (held_out)
    show."""
    left: dict[str, list[int]] = {}
    for i in random.permutation(len(held_out)):
        left.setdefault(descriptions.text(of_real[i]), []).append(int(held_out[i]))
    pairs = [(one, left[name].pop()) for one in wanted if left.get(name := descriptions.text(one))]
    return [one for one, _ in pairs], [i for _, i in pairs]


def percent(x: np.ndarray) -> str:
    if not len(x):
        return "none found"
    spread = margin(np.mean, (x.astype(float), np.arange(len(x))))
    return f"{x.mean():.1%}" + (f" ± {spread:.1%}" if spread is not None else "")


def conflict(model: Model, judge, test, said: list[dict], chosen: np.ndarray) -> None:
    """A mask whose lesion lies on one side, and a prompt that says the other. chosen: indices of such slices."""
    other = {"left": "right", "right": "left"}
    prompts = [f"axial {one['contrast']}, lesion, {other[one['side']]}" for one in (said[i] for i in chosen)]
    images = drawn(model, prompts, 3, None, test.masks[chosen])
    found = [one.get("side") for one in seen(judge, images)]
    as_mask = np.mean([one == said[i]["side"] for one, i in zip(found, chosen, strict=True)])
    as_prompt = np.mean([one == other[said[i]["side"]] for one, i in zip(found, chosen, strict=True)])
    print(
        f"\na mask against a prompt of the other side, {len(chosen)} images: the lesion lies as the mask says in "
        f"{as_mask:.0%}, as the prompt says in {as_prompt:.0%}",
        flush=True,
    )


def denoising(model: Model, judge, test, said: list[dict], chosen: np.ndarray) -> None:
    """One call of the network at the noise's own time, with and without what a report would say of the image. chosen:
    indices of slices with a lesion."""
    images, wanted = (to_float(test.images[chosen]) + 1) / 2, torch.from_numpy(test.masks[chosen] == 1)[:, None]
    words = words_of(model, [descriptions.text(said[i]) for i in chosen])
    conditions = {"without": model.vocabulary.condition(), "with the sentence": model.vocabulary.condition(words=words)}
    print(f"\n| {len(chosen)} slices with a lesion, Rician noise | PSNR | Dice of the lesion |\n|---|---:|---:|")
    for sigma in NOISES:
        random = torch.Generator().manual_seed(0)
        real, imaginary = sigma * torch.randn(2, *images.shape, generator=random)
        y = torch.hypot(images + real, imaginary)
        shown = {"noisy": y.clamp(0, 1)}
        for name, condition in conditions.items():
            predict = predictor(model, condition, Sampling(guidance=1.0).complete(model, condition.given))
            shown[name] = denoise(predict, model.schedule, without_rician_bias(y, sigma), sigma).clamp(0, 1)
        before = None
        for name, x in shown.items():
            found = torch.from_numpy(judge.judge(to_uint8(2 * x - 1)).labels == 4)[:, None]
            values = psnr(x, images, 1.0).numpy(), dice(found, wanted).numpy()
            cells = [f"{v.mean():.{d}f}" for v, d in zip(values, (2, 3), strict=True)]
            if name == "with the sentence":  # the margin is of the difference, slice by slice
                cells = [
                    f"{cell} (+{(v - b).mean():.3f} ± {margin(np.mean, (v - b, np.arange(len(chosen)))):.3f})"
                    for cell, v, b in zip(cells, values, before, strict=True)
                ]
            before = values
            print(f"| {sigma:g}, {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
