"""How a training begins: anew, or with a checkpoint to go on from; and the plan, measured before the first step."""

import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from ddpm import UserError
from ddpm.conditions import Vocabulary, drop_flag_of, flag_of
from ddpm.data import Slices
from ddpm.data.folders import CHANGED
from ddpm.model import load_model
from ddpm.refinement import LOOKS
from ddpm.reverse import STEPS, log_snr_times
from ddpm.runtime import checkpoint, distributed
from ddpm.runtime.command_line import given_fields, train_parser
from ddpm.runtime.config import (
    CHANGEABLE,
    PRESETS,
    REFINED,
    STUDENT,
    Config,
    check_conditions,
    check_fields,
    check_parts,
    flag,
    make_config,
)
from ddpm.runtime.run import GRID_IMAGES, VALIDATION_IMAGES, VALIDATION_WALKS, summary_writer
from ddpm.training import Training, make_optimizers, training_step


def read_command_line(argv) -> tuple[Config, dict | None]:
    """The configuration, and the checkpoint to go on from (or None). Raises UserError."""
    args = train_parser().parse_args(argv)
    given = given_fields(args)
    if args.resume is None:
        config, resumed, home = make_config(args.preset or "laptop", given), None, None
        for name in (config.init, config.teacher, config.reference):
            if name and not (path := checkpoint.find(name)).is_file():
                checkpoint.load(path)  # says so, before the work and not after it
    else:
        config, resumed, home = resume(args, given)
    config.teacher, config.reference = checkpoint_of(config.teacher), checkpoint_of(config.reference)
    if config.batch_size < (n := distributed.size()):
        raise UserError(f"--batch-size {config.batch_size} is for all {n} processes together; give each an image")
    if config.out and Path(config.out).resolve() != home and any(Path(config.out).glob("checkpoints/*.pt")):
        raise UserError(f"--out {config.out} already holds a run; go on with --resume, or name another folder")
    if config.tensorboard:
        summary_writer()  # where it is not installed, that is said before the work
    return config, resumed


def checkpoint_of(name: str) -> str:
    """The checkpoint that --teacher or --reference names, or "": of a folder its newest, now, as it may have others when
    this is resumed. Raises UserError."""
    return str(checkpoint.find(name)) if name and Path(name).is_dir() else name


def resume(args, given: dict) -> tuple[Config, dict, Path]:
    """Read a run back: its configuration, its checkpoint, its folder. The flags may extend it (CHANGEABLE), but not
    contradict what it was trained with; --out makes a branch off the run, in a folder of its own."""
    check_fields(given)
    if given.get("steps") == 0:
        raise UserError("--steps 0: with --resume, give the number of steps to reach, or leave it out")
    place = (given.get("out") or None) if args.resume == "latest" else args.resume
    path = checkpoint.newest("results") if place is None else checkpoint.find(place)
    resumed = checkpoint.load(path)
    if not resumed["opt"]:
        raise UserError(
            f"--resume {path}: it is to draw from, without its optimiser; start a new run with --init {path}"
        )
    for started in Path(place or "results").glob("*/config.json"):
        if not any(started.parent.glob("checkpoints/*.pt")) and started.stat().st_mtime > path.stat().st_mtime:
            print(f"{started.parent} stopped before it saved a checkpoint, so this goes on with {path}")
    if path.parent.name != "checkpoints" and not given.get("out"):
        raise UserError(f"--resume {path} does not lie in a run's checkpoints/; name a folder to go on in with --out")
    trained = resumed["config"]
    preset = PRESETS[args.preset or "laptop"]
    own = STUDENT if trained.teacher else REFINED if trained.reference else {}  # defaults
    preset = {name: value for name, value in preset.items() if name not in own}
    for name, value in {**preset, **given}.items():
        was = getattr(trained, name)
        if (name not in CHANGEABLE or (name in ("teacher", "reference") and not was)) and value not in (was, "auto"):
            trained_with, remedy = "none" if was == "" else was, "leave it out, or start a new run without --resume"
            raise UserError(f"{flag(name)} {value} contradicts {path}, which was trained with {trained_with}; {remedy}")
    home = path.parent.parent
    changes = {name: value for name, value in given.items() if name in CHANGEABLE}
    changes["out"] = given.get("out") or str(home)
    config = replace(trained, **changes)
    check_conditions(config, changes)
    check_parts(config)
    return config, resumed, home.resolve()


def go_on(training: Training, resumed: dict, vocabulary: Vocabulary) -> int:
    """Put a training into the state of a checkpoint; returns the steps taken, and tells if they were on other images.
    Raises UserError if the data has other conditions than the run was trained with."""
    if resumed["conditions"] != vocabulary:
        trained = describe(resumed["conditions"])
        raise UserError(f"--resume: the run was trained with {trained}, but this data has {describe(vocabulary)}")
    training.unet.load_state_dict(resumed["model"])
    training.ema.load_state_dict(resumed["ema"])
    for optimizer, state in zip(training.optimizers, resumed["opt"], strict=True):
        optimizer.load_state_dict(state)
    if resumed["trained_on"] not in ("", training.trained_on):
        remedy = "bring the folder back to what it was, or start a new run"
        print(f"warning: --resume: the run's training images {CHANGED}, so it may be validated on some; {remedy}")
        both = dict.fromkeys([*resumed["trained_on"].split(), training.trained_on])
        training.trained_on = " ".join(both)  # so that it matches neither
    print(f"resumed at step {resumed['step']} of {training.config.steps}")
    return resumed["step"]


def learn_from(training: Training, vocabulary: Vocabulary) -> None:
    """Give a distillation its teacher, the checkpoint --teacher, or a refinement its reference. Raises UserError if that
    cannot draw what this training is about."""
    config, device = training.config, training.device
    model = load_model(config.teacher or config.reference, device=device)
    named = f"--teacher {model.name}" if config.teacher else f"--reference {model.name}"
    if model.vocabulary != vocabulary:
        trained = describe(model.vocabulary)
        raise UserError(f"{named} was trained with {trained}, but this data has {describe(vocabulary)}")
    theirs, ours = model.config, tuple(config.image_size)
    if tuple(theirs.image_size) != ours:
        sizes = ["{}x{}".format(*size) for size in (theirs.image_size, ours)]
        raise UserError(f"{named} draws images of {sizes[0]}, not {sizes[1]}; give its --image-size")
    for kind in vocabulary.given:
        if config.withholds(kind) and not theirs.withholds(kind):
            remedy = f"give {drop_flag_of(kind)} 0 --all-drop 0 here too"
            raise UserError(f"{named} never learnt to do without {flag_of(kind)}; {remedy}")
    if theirs.few_steps and not (theirs.teacher and config.teacher):
        raise UserError(f"{named} knows {theirs.few_steps} times alone; name one that knows all")
    if config.reference:
        training.reference = model
        return
    if theirs.teacher and theirs.teacher_steps != config.teacher_steps:
        raise UserError(
            f"{named} learnt walks of {theirs.teacher_steps} steps: give --teacher-steps {theirs.teacher_steps}"
        )
    if theirs.teacher and theirs.few_steps < config.few_steps:
        raise UserError(f"--few-steps {config.few_steps}: {model.name} takes {theirs.few_steps}; give fewer")
    walk = theirs.few_times or log_snr_times(training.schedule, config.teacher_steps)
    if unknown := [t for t in config.few_times if t not in walk]:
        raise UserError(
            f"--few-times {unknown[0]}: {model.name} comes by {' '.join(map(str, walk))}; give some of those"
        )
    training.teacher = model


# What a training that starts from a checkpoint's weights must have in common with it.
SAME = (
    *("objective", "schedule", "timesteps", "zero_terminal_snr", "image_channels"),
    *("channels", "mults", "blocks", "attention", "patch", "lean"),
)


def start_from(training: Training, vocabulary: Vocabulary) -> None:
    """Give a new training the averaged weights of the checkpoint --init, or of its teacher or its reference.

    A class of the mask, a label's value, a source or a word finds the weights of the one with its name; those that the
    checkpoint does not know keep the weights they were drawn with, but for a source's and the places', which are 0, so
    that the network begins as the checkpoint's where it is told no new word; all are named. Raises UserError if the
    network is another one.
    """
    config = training.config
    flagged = "--teacher" if config.teacher else "--reference" if config.reference else "--init"
    path = checkpoint.find(config.teacher or config.reference or config.init)
    loaded = checkpoint.load(path)
    for name in SAME:
        if (there := getattr(loaded["config"], name)) != getattr(config, name):
            given = " ".join(map(str, there)) if isinstance(there, list) else there
            given = f"{flag(name)} {given}" if not isinstance(there, bool) else flag(f"{'' if there else 'no_'}{name}")
            raise UserError(f"{flagged} {path} was trained with {given}; give that here too")
    ours = parts_of(training.unet.state_dict(), vocabulary, config.image_channels)
    theirs = parts_of(loaded["ema"], loaded["conditions"], config.image_channels)
    shapes, known = ({part: weight.shape for part, weight in parts.items()} for parts in (ours, theirs))
    for layer, name in {**shapes, **known}:  # only a class or a value may be missing, on either side
        here, there = shapes.get((layer, name)), known.get((layer, name))
        if here != there and not (name and None in (here, there)):
            raise UserError(f"{flagged} {path} is another network (see {layer}); give the flags it was trained with")
    for part in ours:
        if part in theirs:
            ours[part].copy_(theirs[part])
        elif part[1].startswith(("source ", "place ")):
            ours[part].zero_()
    training.ema.load_state_dict(training.unet.state_dict())
    missing = [(layer, name) for layer, name in ours if (layer, name) not in theirs]
    anew = ["words" if layer.startswith("words.") else f"{name} ({layer.split('.')[-2]})" for layer, name in missing]
    anew = dict.fromkeys(anew)
    print(f"weights of {path}, step {loaded['step']}" + f"; anew: {', '.join(anew)}" * bool(anew))


def parts_of(weights: dict, vocabulary: Vocabulary, image_channels: int) -> dict[tuple[str, str], torch.Tensor]:
    """(layer, name) -> weights, as views: those that belong to one class or one label's value apart from all others,
    which have the name ""."""
    parts = {}
    for layer, weight in weights.items():
        if (
            layer == "conv_in.weight"
        ):  # its columns: the image's channels, the mask's, the source's, with words the places
            names = [f"image {channel}" for channel in range(image_channels)]
            names += [*vocabulary.classes, *(f"source {name}" for name in vocabulary.source)]
            names += ["place right", "place down"] if "words" in vocabulary.given else []
            columns = weight.chunk(len(names), dim=1)
        elif layer.startswith("labels."):  # its rows: null, then the values
            columns, names = weight.split(1), ["none given", *vocabulary.labels[layer.split(".")[1]]]
        elif layer == "words.table.weight":  # its rows: no word, then the words
            columns, names = weight.split(1), ["no word", *vocabulary.words]
        elif layer.startswith("words."):
            columns, names = [weight], ["all words"]
        else:
            columns, names = [weight], [""]
        parts |= {(layer, name): part for name, part in zip(names, columns, strict=True)}
    return parts


def describe(vocabulary: Vocabulary) -> str:
    parts = {"classes": vocabulary.classes, **{f"{name}s": values for name, values in vocabulary.labels.items()}}
    parts |= {name: known for name, known in (("source", vocabulary.source), ("words", vocabulary.words)) if known}
    told = [f"{name} {list(values)}" for name, values in parts.items()]
    return ", ".join(told + [f"vectors of {vocabulary.vectors} numbers for texts"] * bool(vocabulary.vectors))


# ---------------------------------------------------------------------------------------------------------
# The plan. What is measured is decided once: it is written to the run's config and checkpoints, and read back.


def plan(training: Training, data: Slices, started: float) -> Config:
    """The configuration with the precision, the CPU threads and the number of steps that fit --minutes decided, by a
    few discarded steps. started: time.perf_counter() at the start of the program."""
    config = training.config
    # Images at a time in each process: more might not fit into memory.
    part = -(-config.batch_size // (config.grad_accum * distributed.size()))
    threads = choose_threads(training, data, part)  # first: all else is measured with them
    precision, note = choose_precision(training, data, part)
    config = replace(config, threads=threads, precision=precision)
    print(f"precision {precision}{note}")
    if config.steps == 0:
        step = seconds(training, data, part, precision) * config.grad_accum
        extra = step * share_of_validation(config)
        left = 60 * config.minutes - distributed.broadcast(lambda: time.perf_counter() - started)
        config.steps = max(1, int((left - extra) / (step + extra / config.sample_every)))
        more = ", and --evaluate-every takes more" * bool(config.evaluate_every)
        print(f"plan: {config.steps} steps of {step:.2f} s fill {config.minutes:g} minutes{more}")
    return config


def share_of_validation(config: Config) -> float:
    """How many training steps a validation and its sample grid take. Counted in forward passes of an image (two, where
    it is guided), of which a step of training takes three."""
    drawn = config.few_steps if config.teacher else 2 * (config.few_steps or STEPS["dpm-solver"])
    if config.teacher:
        walk = 2 * config.teacher_steps
        step, validation = walk + 3 * config.few_steps, VALIDATION_WALKS * (walk + config.few_steps)
    elif config.reference:  # draws an image, and looks at two with both networks
        step, validation = drawn + 8 * LOOKS, VALIDATION_IMAGES
    else:
        step, validation = 3, VALIDATION_IMAGES
    return (validation + GRID_IMAGES * drawn) / (step * config.batch_size / distributed.size())


def seconds(training: Training, data: Slices, images: int, precision: str) -> float:
    """The time of a step of so many images in each process, on a copy of the training: the median of a few after the
    first, or the first alone if it takes over 3 s."""
    changed = {"batch_size": images * distributed.size(), "grad_accum": 1, "precision": precision}
    config = replace(training.config, **changed, steps=1000)  # any number: it says what a step's rate is
    unet, ema = copy.deepcopy(training.unet), copy.deepcopy(training.ema)
    trial = replace(training, config=config, unet=unet, ema=ema, optimizers=make_optimizers(unet, config))
    times: list[float] = []
    while distributed.broadcast(lambda: len(times) < 6 and sum(times) < 3):
        begun = time.perf_counter()
        training_step(trial, data, 0).grad_norm.item()  # waits for a GPU
        times.append(time.perf_counter() - begun)
    return distributed.broadcast(lambda: statistics.median(times[1:] or times))


def choose_precision(training: Training, data: Slices, part: int) -> tuple[str, str]:
    """fp32, or bf16 where it is clearly faster, and a note of what was measured."""
    if training.config.precision != "auto":
        return training.config.precision, ""
    if training.device.type == "mps":
        return "fp32", ""
    for images in (2, part):
        fp32, bf16 = (seconds(training, data, images, precision) for precision in ("fp32", "bf16"))
        if bf16 >= 2 * fp32:
            break  # where the processor has no bf16 it can be a hundred times slower, so two images are enough
    note = f" (a step of {images} images: {fp32:.2f} s in fp32, {bf16:.2f} s in bf16)"
    return ("bf16" if bf16 < 0.9 * fp32 else "fp32"), note


def choose_threads(training: Training, data: Slices, part: int) -> int:
    """The CPU threads to compute with, from now on: PyTorch's choice, or one where that is faster.

    PyTorch's threads wait for each other, so beside another busy process several can be ten times slower than one.
    """
    several = torch.get_num_threads()
    if training.config.threads or training.device.type != "cpu" or several == 1:
        return several
    precision = "bf16" if training.config.precision == "bf16" else "fp32"
    many = seconds(training, data, part, precision)
    torch.set_num_threads(1)
    one = seconds(training, data, part, precision)
    if distributed.broadcast(lambda: one < 0.9 * many):
        measured = f"one thread (a step of {one:.2f} s) is faster than {several} ({many:.2f} s)"
        print(f"{measured}: is another program busy here?")
        return 1
    torch.set_num_threads(several)
    return several
