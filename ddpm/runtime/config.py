"""What a run is made of: one dataclass, whose fields are the flags of train.py, and the presets."""

import math
from copy import copy
from dataclasses import dataclass, field, fields
from operator import ge, gt, le

from ddpm import UserError
from ddpm.forward import LOSS_WEIGHTS
from ddpm.reverse import log_snr_times, middle_times, nonuniform_times, uniform_times
from ddpm.schedule import OBJECTIVES, SCHEDULES, Schedule, make_schedule
from ddpm.unet import size_multiple


def option(default, help: str, choices: tuple | None = None, **limits: float):
    """A field that is also a command-line flag. limits: those of `check_limits`."""
    metadata = {"help": help, "choices": choices, "limits": limits}
    return field(default_factory=lambda: copy(default), metadata=metadata)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


AXES = ("axial", "coronal", "sagittal")

# What a student's defaults are (--teacher). Its batch counts walks, each of --few-steps lessons; it starts from what its
# teacher knows, so it takes smaller steps.
STUDENT = dict(
    few_steps=4, extra_noise=0.015, batch_size=8, lr=1.5e-3, muon_lr=4e-3, muon_decay=0.0, warmup=20, ema_decay=0.98
)
# What they are with --reference. Its batch counts pairs, each looked at several times; what was learnt must not be lost in
# the noise of large steps.
REFINED = dict(batch_size=16, lr=2e-5, muon_lr=5e-5, muon_decay=0.0, warmup=30, ema_decay=0.99)


def as_flags(settings: dict) -> str:
    return ", ".join(f"{flag(name)} {value}" for name, value in settings.items())


@dataclass
class Config:
    """One training run. The defaults are the preset `laptop`."""

    # The data
    data: str = option("phantom", "'phantom' (embedded), or a folder; docs/data.md shows what may lie in it")
    masks: str = option("", "folder of masks, if they do not lie in masks/ beside images/")
    labels: str = option(
        "lesion", "the phantom's label set; none: no masks, also in a folder", ("lesion", "tissue", "none")
    )
    num_classes: int = option(2, "classes in masks, background counted (2: also 0/255)", at_least=1, at_most=256)
    subject_pattern: str = option("", "regular expression that finds the subject in an image's name, to split by")
    skip_bad: bool = option(False, "count and leave out a folder's bad files instead of refusing them")
    image_channels: int = option(1, "of a folder's images: 1 grey, 3 in colour (LGG: its three contrasts)", (1, 3))
    phantom_images: int = option(0, "phantom images to train on; 0: 8,000", at_least=0, at_most=10_000_000)
    contrast: str = option("all", "render all of the phantom's subjects in this one", ("all", "T1", "T2", "FLAIR"))
    source: str = option(
        "",
        "condition on another image of the same place: the phantom's subject in another contrast, a spoilt copy (noisy: "
        "Rician noise; coarse: a quarter of the pixels each way), or a folder's pairs (DIR/source beside DIR/images)",
        ("T1", "T2", "FLAIR", "noisy", "coarse", "pairs"),
    )
    segment: bool = option(
        False,
        "the roles turned round: draw the mask (of two classes), the image is its source (none with --source-drop 1)",
    )
    words: bool = option(False, "condition on the phantom's descriptions of its images, to ask with sample.py --prompt")
    text_embeddings: str = option("", "FILE.npz of texts and vectors (N, D) that stand for --words (tools/embed.py)")
    axis: str = option("axial", "along which a folder's volumes are cut into slices", AXES)
    spacing: float = option(
        0.0,
        "mm a pixel of a volume's slices, cropped or padded to the size; 0: stretched to it",
        at_least=0,
        at_most=100,
    )
    volume: int = option(-1, "of a folder's 4-D series, from 0; -1: those with b = 0, by the .bval beside", at_least=-1)
    flip: bool = option(False, "mirror half of the images, masks and all; never where left and right matter")
    image_size: list[int] = option([64, 64], "height and width; one number means both", at_least=1, at_most=4096)

    # The network (see ddpm/unet.py)
    channels: int = option(64, "channels after the first convolution", at_least=4, at_most=4096)
    mults: list[int] = option([1, 2, 2], "channels of each level, as multiples of --channels", at_least=1, at_most=64)
    blocks: int = option(1, "residual blocks a level", at_least=1, at_most=64)
    attention: list[int] = option([2], "levels with attention, counted from 0")
    patch: int = option(2, "pixels folded into channels at the input, each way", at_least=1, at_most=64)
    dropout: float = option(0.0, "dropout in the residual blocks", at_least=0, at_most=1)
    lean: bool = option(True, "the three changes that learn more in equal time; --no-lean: the paper's network")

    # The diffusion. What changes the schedule or the target must be in --init's list too (start_from of start.py).
    timesteps: int = option(1000, "T", at_least=2, at_most=1_000_000)
    schedule: str = option("cosine", "noise schedule", SCHEDULES)
    zero_terminal_snr: bool = option(False, "rescale the schedule so that x_T is pure noise")
    objective: str = option("v", "what the network predicts", OBJECTIVES)
    loss_weight: str = option("plain", "the weight of each sample's loss; plain is the paper's", LOSS_WEIGHTS)
    gamma: float = option(5.0, "of the min-SNR weight", above=0)
    foreground_weight: float = option(
        4.0,
        "how often an error counts where the mask is not background, so that lesions are learnt early; 1: as any other",
        above=0,
        at_most=1000,
    )
    time_mean: float = option(-0.5, "of logit(t / T) in training, which is normal", at_least=-10, at_most=10)
    time_std: float = option(
        1.2, "of logit(t / T) in training; 0: t is uniform, as in the paper", at_least=0, at_most=10
    )
    few_steps: int = option(
        0,
        "train for sampling in so few steps and no others (Fast-DDPM, --teacher); 0: in any number",
        at_least=0,
        at_most=1000,
    )
    few_times: list[int] = option(
        [], "the same by the times themselves, falling from T to 0; --few-steps chooses them by a rule", at_least=0
    )
    train_times: str = option(
        "uniform",
        "that rule, without --teacher (Fast-DDPM); nonuniform: 60 % in the noisiest 30 % of T",
        ("uniform", "nonuniform"),
    )
    teacher: str = option(
        "", f"distil this checkpoint (pretrained: the model in the box); then the defaults are {as_flags(STUDENT)}"
    )
    teacher_steps: int = option(
        10, "the teacher's steps in a walk; the student takes several at once", at_least=1, at_most=1000
    )
    reference: str = option(
        "",
        "refine this checkpoint: learn to tell real images from those that it draws; then the defaults are "
        + as_flags(REFINED),
    )
    mask_drop: float = option(0.05, "probability that a sample's mask is withheld", at_least=0, at_most=1)
    label_drop: float = option(0.05, "probability that its labels (the contrast) are", at_least=0, at_most=1)
    source_drop: float = option(0.05, "probability that its source is", at_least=0, at_most=1)
    words_drop: float = option(0.05, "probability that its words are", at_least=0, at_most=1)
    all_drop: float = option(0.08, "probability that all are, so that all can be guided", at_least=0, at_most=1)

    guidance: float = option(
        1.25,
        "the default of sample.py and evaluate.py for this model; the longer the training, the less it wants",
        at_least=0,
        at_most=1000,
    )
    extra_noise: float = option(
        0.08,
        "the default of sample.py and evaluate.py for this model, by dpm-solver (without a source) or a student's walk: the share of noise "
        "beyond what the network is told; the longer the training, the less it wants",
        at_least=0,
        at_most=1,
    )

    # The optimisation
    steps: int = option(0, "optimiser steps; 0 lets --minutes decide", at_least=0)
    minutes: float = option(17.0, "plan the steps to take this long; --steps overrides", above=0, at_most=1_000_000)
    batch_size: int = option(32, "images an optimiser step", at_least=1, at_most=65_536)
    grad_accum: int = option(1, "parts each batch is computed in, in turn (less memory, same gradient)", at_least=1)
    lr: float = option(5e-3, "AdamW's rate: a straight line from it to 0 at the end, times a linear warm-up", above=0)
    muon_lr: float = option(
        0.015, "Muon's, which trains the inner convolutions; 0: AdamW trains all (with --lr 8e-4)", at_least=0
    )
    muon_decay: float = option(
        0.1,
        "Muon's weight decay in a training of 3,000 steps; of n steps 3,000 / n times as much, but at most 1, so that "
        "it is as much in all; with --init the default is 0: what was learnt stays",
        at_least=0,
        at_most=10,
    )
    warmup: int = option(200, "steps of warm-up, but at most a tenth of all", at_least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay (0 is Adam)", at_least=0)
    clip: float = option(1.0, "largest gradient norm", above=0)
    ema_decay: float = option(0.995, "decay of the averaged weights, after a warm-up", at_least=0, at_most=1)
    precision: str = option("auto", "auto: the fastest of those measured at start", ("auto", "fp32", "bf16"))
    compile: bool = option(False, "torch.compile the network: worth its minute on a GPU (--minutes plans without it)")
    threads: int = option(0, "CPU threads; 0: PyTorch's choice, or one where that is faster", at_least=0, at_most=1024)
    init: str = option("", "start from the averaged weights of this checkpoint; pretrained: of the model in the box")
    seed: int = option(0, "of the weights, the data order and the noise", at_least=0, at_most=2**63 - 1)

    # The run
    device: str = option("auto", "where to compute (mps: not yet run)", ("auto", "cpu", "cuda", "mps"))
    out: str = option("", "folder of the run; default results/DATA-TIME")
    log_every: int = option(20, "steps between lines in log.jsonl", at_least=1)
    save_every: int = option(500, "steps between checkpoints", at_least=1)
    keep: int = option(3, "newest checkpoints to keep, besides the one with the lowest validation loss", at_least=1)
    sample_every: int = option(500, "steps between validation losses and sample grids", at_least=1)
    evaluate_every: int = option(0, "steps between small evaluations (100 samples) in the log; 0: never", at_least=0)
    tensorboard: bool = option(False, "write the log and the grids for TensorBoard too, in the run's tensorboard/")

    def withholds(self, name: str) -> bool:
        """Whether training withholds a condition now and then: "mask", "source", "words", or a label."""
        alone = {"mask": self.mask_drop, "source": self.source_drop, "words": self.words_drop}
        return self.all_drop > 0 or alone.get(name, self.label_drop) > 0

    def make_schedule(self) -> Schedule:
        """The schedule that training, sampling and all else of a checkpoint share. Raises ValueError."""
        return make_schedule(self.schedule, self.timesteps, self.zero_terminal_snr)

    def choose_few_times(self) -> None:
        """Fill in few_times by the rule. They are kept as numbers, since a network knows those that it learnt at, whatever
        the rule will be by then. Raises ValueError if so many steps cannot be had."""
        if not self.few_steps or self.few_times:
            return
        if self.teacher:
            schedule = self.make_schedule()
            self.few_times = middle_times(schedule, log_snr_times(schedule, self.teacher_steps), self.few_steps)
        elif self.train_times == "uniform":
            self.few_times = uniform_times(self.timesteps, self.few_steps)
        else:
            self.few_times = nonuniform_times(self.timesteps, self.few_steps)


# What says nothing about the phantom.
FOLDER_ONLY = ("masks", "num_classes", "subject_pattern", "skip_bad", "image_channels", "axis", "spacing", "volume")

# What may differ between a run and its continuation; all else is read from the checkpoint.
CHANGEABLE = (
    *("guidance", "extra_noise", "steps", "grad_accum", "compile", "device", "threads", "out", "data", "masks"),
    *("text_embeddings", "teacher", "reference", "log_every", "save_every", "keep", "sample_every", "evaluate_every"),
    "tensorboard",
)

# A line each for the network, the diffusion, the optimisation and the run.
# fmt: off
PRESETS: dict[str, dict] = {
    # 2 CPU cores, 64 x 64, about 17 minutes. The defaults.
    "laptop": {},
    # Seconds a run: for tests, and to see every part move.
    "tiny": dict(
        image_size=[32, 32], channels=16, mults=[1, 2], attention=[1],
        steps=40, batch_size=8, warmup=5,
        log_every=10, save_every=20, sample_every=20,
    ),
    # Ho et al. 2020, appendix B: the CIFAR-10 network, schedule, objective, batch, rate and averaging. It differs in
    # that images have one channel (theirs: three), follow a mask and a contrast and are not mirrored (--flip), the learning
    # rate decays, the average is warmed up and a batch's times are spread evenly. For one GPU; not yet run in full.
    "ho": dict(
        image_size=[32, 32], channels=128, mults=[1, 2, 2, 2], blocks=2, attention=[1], patch=1, dropout=0.1,
        lean=False, schedule="linear", objective="eps", time_std=0.0, foreground_weight=1.0,
        steps=800_000, batch_size=128, lr=2e-4, muon_lr=0.0, warmup=5000, ema_decay=0.9999,
        log_every=100, save_every=50_000, sample_every=5000,
    ),
    # One GPU, real data. Not yet run in full.
    "gpu-128": dict(
        image_size=[128, 128], channels=128, mults=[1, 2, 2, 2], blocks=2, attention=[2, 3],
        steps=200_000, batch_size=64, lr=2e-3, warmup=1000, ema_decay=0.9999,
        save_every=20_000, sample_every=2000,
    ),
    "gpu-256": dict(
        image_size=[256, 256], channels=128, mults=[1, 1, 2, 2, 4], blocks=2, attention=[3, 4], dropout=0.1,
        steps=400_000, batch_size=32, lr=2e-3, warmup=2000, ema_decay=0.9999,
        save_every=20_000, sample_every=5000,
    ),
}
# fmt: on


def check_limits(name: str, value, at_least=None, above=None, at_most=None) -> None:
    """Raises UserError if the value of a flag (or one of its values, in a list) is beyond a limit."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{flag(name)} is {value}; it must be a finite number")
        for limit, holds, words in ((at_least, ge, "at least"), (above, gt, "greater than"), (at_most, le, "at most")):
            if limit is not None and not holds(number, limit):
                raise UserError(f"{flag(name)} is {value}; it must be {words} {limit:,}")


def check_fields(given: dict) -> None:
    """Raises UserError for a value beyond the limits of its field, and for an empty name of what shall be read."""
    for f in fields(Config):
        if f.name in given:
            check_limits(f.name, given[f.name], **f.metadata["limits"])
    for name in ("data", "masks", "text_embeddings", "init", "teacher", "reference"):
        if given.get(name) == "":
            raise UserError(f"{flag(name)}: an empty name (an unset variable?); name one, or leave it out")


def make_config(preset: str, given: dict) -> Config:
    """The preset with the given flags on top, checked one by one and as a whole. Raises UserError."""
    check_fields(given)
    other = [name for name in ("teacher", "reference", "init") if given.get(name)]
    if len(other) > 1:
        raise UserError(f"{flag(other[1])} has no meaning with {flag(other[0])}; leave one of them out")
    learnt = {"teacher": STUDENT, "reference": REFINED, "init": {"muon_decay": 0.0}}[other[0]] if other else {}
    config = Config(**{**PRESETS[preset], **learnt, **given})
    if "minutes" in given and "steps" not in given:
        config.steps = 0
    multiple = size_multiple(config.patch, config.mults)
    for size in config.image_size:
        if size < multiple or size % multiple:
            below = size // multiple * multiple
            nearest = f"{below} or {below + multiple}" if below else multiple
            raise UserError(f"--image-size {size}: this network needs a multiple of {multiple}; nearest: {nearest}")
    check_conditions(config, given)
    if "muon_decay" in given and not config.muon_lr:
        raise UserError("--muon-decay has no meaning with --muon-lr 0, where AdamW trains all; see --weight-decay")
    if "foreground_weight" in given and (config.segment or config.labels == "none"):
        raise UserError("--foreground-weight has no meaning where no mask is followed; leave it out")
    if "gamma" in given and config.loss_weight != "min-snr":
        raise UserError("--gamma has no meaning without --loss-weight min-snr; give that too, or leave it out")
    if given.get("time_mean") and not config.time_std:
        raise UserError("--time-mean has no meaning with --time-std 0, where t is uniform; give --time-std too")
    withheld = {"words_drop": config.words, "source_drop": config.source or config.segment}
    withheld["mask_drop"] = config.labels != "none" and not config.segment
    if wrong := [name for name, known in withheld.items() if name in given and not known]:
        raise UserError(f"{flag(wrong[0])} has no meaning where there is nothing of the kind to withhold; leave it out")
    if config.objective == "eps" and config.zero_terminal_snr:
        raise UserError("--objective eps is undefined with --zero-terminal-snr (x_T holds no signal); use v or x_0")
    try:
        config.make_schedule()
    except ValueError as error:
        fewer = "to sample in fewer steps use sample.py --sample-steps"
        raise UserError(f"--timesteps {config.timesteps}: {error}; {fewer}") from None
    settle_few_steps(config, given)
    if config.reference and config.few_steps:
        raise UserError("--few-steps has no meaning with --reference, which is refined at all times; leave it out")
    if config.reference and (misplaced := [name for name in ("loss_weight", "foreground_weight") if name in given]):
        raise UserError(f"{flag(misplaced[0])} has no meaning with --reference; leave it out")
    check_parts(config)
    if not all(0 <= level < len(config.mults) for level in config.attention):
        raise UserError(f"--attention {config.attention} names a level that --mults {config.mults} does not have")
    return config


def check_parts(config: Config) -> None:
    """Raises UserError for more parts of a batch than it has images."""
    if config.grad_accum > config.batch_size:
        raise UserError(f"--grad-accum {config.grad_accum} is more parts than --batch-size {config.batch_size} images")


def check_conditions(config: Config, given: dict) -> None:
    """Raises UserError for conditions that the data has not, or that do not go together."""
    phantom = config.data == "phantom"
    others = FOLDER_ONLY if phantom else ("contrast", "labels", "phantom_images")
    if misplaced := [name for name in others if name in given and given[name] != "none"]:
        raise UserError(f"{flag(misplaced[0])} has no meaning with --data {config.data}; leave it out")
    if config.source in (("pairs",) if phantom else ("T1", "T2", "FLAIR")):
        have = "T1, T2, FLAIR, noisy and coarse" if phantom else "noisy and coarse, and pairs if DIR/source is there"
        raise UserError(f"--source {config.source}: --data {config.data} has {have}")
    if config.source and config.source == config.contrast:
        raise UserError(f"--source {config.source} is what --contrast {config.contrast} asks for; name another")
    if config.segment and (config.source or config.labels == "none" or config.image_channels != 1):
        raise UserError(
            "--segment draws masks, and the image is the source: leave --source, --labels none and colour out"
        )
    if config.segment and config.labels != "lesion":
        raise UserError(f"--segment draws masks of two classes, not the label set {config.labels}; leave --labels out")
    if config.segment and config.evaluate_every:
        raise UserError("--evaluate-every judges images, and --segment draws masks; leave one of them out")
    if config.segment and config.num_classes != 2:
        raise UserError(f"--segment draws masks of two classes, not of --num-classes {config.num_classes}")
    if (config.words or config.text_embeddings) and not phantom:
        raise UserError(f"--words are the phantom's; --data {config.data} has none, leave --words out")
    if config.text_embeddings and not config.words:
        raise UserError("--text-embeddings says how --words enter; give that too")
    if config.words and config.flip:
        raise UserError("--flip makes left and right one, and --words tell them apart; leave one of them out")


def settle_few_steps(config: Config, given: dict) -> None:
    """Fill in few_steps and few_times. Raises UserError for flags of few steps that do not go together."""
    if config.few_times:
        if config.few_times != sorted({*config.few_times, 0}, reverse=True) or config.few_times[0] != config.timesteps:
            fall = f"they must fall from {config.timesteps} to 0"
            raise UserError(f"--few-times {' '.join(map(str, config.few_times))}: {fall}")
        if misplaced := [name for name in ("few_steps", "train_times") if name in given]:
            raise UserError(f"{flag(misplaced[0])} has no meaning with --few-times; leave it out")
        config.few_steps = len(config.few_times) - 1
    if "train_times" in given and not config.few_steps:
        raise UserError("--train-times says how --few-steps lie; give their number too")
    if "teacher_steps" in given and not config.teacher:
        raise UserError("--teacher-steps has no meaning without --teacher; leave it out")
    if config.teacher and config.teacher_steps > config.timesteps:
        raise UserError(f"--teacher-steps {config.teacher_steps} is more than --timesteps {config.timesteps}")
    if config.teacher and not config.few_steps:
        raise UserError("--few-steps 0: with --teacher, give the steps of the student, such as 4")
    try:
        config.choose_few_times()
    except ValueError as error:
        raise UserError(f"--few-steps {config.few_steps}: {error}") from None
    if config.few_steps and (misplaced := [name for name in ("time_mean", "time_std") if name in given]):
        raise UserError(f"{flag(misplaced[0])} has no meaning with --few-steps or --teacher; leave it out")
    if not config.teacher:
        return
    if config.objective != "v":
        raise UserError(f"--objective {config.objective}: a student learns v; leave it out")
    if misplaced := [name for name in ("train_times", "loss_weight", "foreground_weight") if name in given]:
        raise UserError(f"{flag(misplaced[0])} has no meaning with --teacher; leave it out")
