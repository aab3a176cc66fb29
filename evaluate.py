"""How good are the samples? One table, one report.

python evaluate.py                         the newest checkpoint: samples for held-out masks, then all the questions
python evaluate.py --real DIR --fake DIR   two folders of images, or of volumes
"""

import sys
import time
from pathlib import Path

from ddpm import UserError
from ddpm.evaluation.comparison import Comparison, from_folders, from_model
from ddpm.evaluation.questions import QUESTIONS
from ddpm.evaluation.report import table, write_report
from ddpm.metrics.features import make_extractor
from ddpm.model import load_model
from ddpm.runtime import checkpoint, distributed
from ddpm.runtime.command_line import Parser, add_sampling_flags, check_range, one_line_errors, pick_device, sampling_of
from ddpm.runtime.config import flag
from ddpm.runtime.files import make_folder

FOLDERS_ALONE = ("subject_pattern", "skip_bad")
SAMPLING = (
    *("ckpt", "sampler", "sample_steps", "guidance", "guided", "guidance_interval", "extra_noise"),
    *("precision", "batch_size", "device", "split"),
)


@one_line_errors
@distributed.in_each_process  # they share the sampling, then process 0 goes on alone
def main(argv):
    args = distributed.broadcast(read_arguments, argv)
    begun = time.perf_counter()
    if args.out and (Path(args.out) / "report.json").exists():
        print(f"note: {args.out} holds a report already; this one takes its place")
    comparison, title = compare(args)

    rows, unanswered = [], []
    for name in args.metrics:
        try:
            rows += (answer := QUESTIONS[name].ask(comparison))
            if args.named and not answer:
                unanswered.append(f"{name}: nothing here can be asked that ({QUESTIONS[name].help})")
        except UserError as error:  # what cannot be asked of this data costs no other answer
            unanswered.append(f"{name}: {error}")
    if not rows:
        raise UserError("; ".join(unanswered))
    comparison.warnings += [f"not answered: {reason}" for reason in unanswered]

    out = make_folder(args.out, "results/evaluation")
    notice = write_report(Path(out), title, rows, comparison)
    print(table(rows))
    for name, choice in comparison.choices.items():
        print(f"{name}: {choice}")
    for warning in comparison.warnings + [notice] * bool(notice):
        print(f"warning: {warning}")
    print(f"{out}/report.html, report.json; {time.perf_counter() - begun:.0f} s")


def compare(args) -> tuple[Comparison, str]:
    """What is compared, and what to call it."""
    extractor = make_extractor(args.features, args.inception_weights)  # whatever cannot be read fails before the work
    rest = args.n, args.seed, extractor, args.out or "results"
    if args.real:
        distributed.gather(None)
        comparison = from_folders(args.real, args.fake, args.subject_pattern, args.skip_bad, *rest)
        return comparison, f"{args.fake} against {args.real}"
    model = load_model(distributed.broadcast(checkpoint.find, args.ckpt), "ema", pick_device(args.device))
    if not model.vocabulary.classes and {QUESTIONS[name].needs for name in args.metrics} == {"masks"}:
        raise UserError(f"--metrics {args.metrics[0]}: {model.name} was trained without masks")
    if not model.vocabulary.source and (model.config.segment or args.metrics == ["paired"]):
        raise UserError(
            f"{model.name}: what it draws has no one truth, as it has no source; --metrics paired cannot be asked"
        )
    if model.config.segment:
        print(f"{model.name} draws masks: how like the true ones they are is asked, all else is of images")
        args.metrics = ["paired"]
    sampling = distributed.broadcast(sampling_of, args)
    return from_model(model, sampling, args.batch_size, *rest, args.split), f"{model.name}, step {model.step}"


# ---------------------------------------------------------------- the command line


def make_parser() -> Parser:
    parser = Parser(prog="evaluate.py", description="How good are the samples? One table, one report.")
    add_sampling_flags(parser, batch_size=50)
    add = parser.add_argument
    add("--real", metavar="DIR", help="compare two folders of pictures, or of NIfTI volumes: real ones ...")
    add("--fake", metavar="DIR", help="... and samples")
    asked = (f"{name}: {q.help}{'' if q.default else ', only if asked for'}" for name, q in QUESTIONS.items())
    add("--metrics", nargs="+", choices=[*QUESTIONS, "all"], help="; ".join(asked))
    add(
        "--n",
        type=int,
        help="samples (default 1000, or half of the held-out images; of two folders as many as there are)",
    )
    choose = "choose settings on val and report them on test, or the figures flatter what was chosen"
    add("--split", choices=("val", "test"), help=f"the held-out images (default test, where there is one): {choose}")
    file = "a TorchScript FILE that takes (B, 3, H, W) in [0, 1] and returns (B, D)"
    known = f"segmenter (default), inception (with --inception-weights), or {file}"
    add("--features", default="segmenter", help=known)
    add("--inception-weights", default="", metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth")
    add("--subject-pattern", default="", help="with --real: a regular expression that finds the subject in a name")
    add("--skip-bad", action="store_true", help="with --real: leave unreadable files out, and count them")
    add("--out", help="folder of the report (default results/evaluation-TIME)")
    return parser


def read_arguments(argv):
    """The command line, checked. Raises UserError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if bool(args.real) != bool(args.fake) or "" in (args.real, args.fake):
        raise UserError("--real and --fake go together: give two folders, or neither")
    misplaced = SAMPLING if args.real else FOLDERS_ALONE
    if wrong := [name for name in misplaced if getattr(args, name) != parser.get_default(name)]:
        remedy = "two folders are compared, nothing is drawn" if args.real else "it is for --real and --fake"
        raise UserError(f"{flag(wrong[0])}: {remedy}; leave it out")
    check_range(args, n=(40, 10**9))
    given = args.metrics or [name for name, question in QUESTIONS.items() if question.default]
    if args.real and args.metrics and (wrong := [name for name in given if name != "all" and QUESTIONS[name].needs]):
        raise UserError(f"--metrics {wrong[0]} needs --ckpt; two folders do not say what was asked for")
    asked = QUESTIONS if "all" in given else given
    args.named = bool(args.metrics) and "all" not in given  # what is asked by name is answered, or it is said why not
    args.metrics = [name for name in QUESTIONS if name in asked and not (args.real and QUESTIONS[name].needs)]
    if args.features == "inception" and not args.inception_weights:
        remedy = "see 'Inception' in docs/evaluation.md; or use --features segmenter"
        raise UserError(f"--features inception needs --inception-weights FILE: {remedy}")
    if args.inception_weights and args.features != "inception":
        raise UserError("--inception-weights belongs to --features inception")
    return args


if __name__ == "__main__":
    sys.exit(main())
