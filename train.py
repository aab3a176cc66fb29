"""Train the network: the paper's Algorithm 1. `python train.py --help` lists what can be set.

The step itself, lines 2 to 5, is `training_step` in ddpm/training.py; this is the loop around it.
"""

import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import torch

from ddpm.data import Slices, folders
from ddpm.data.sources import load_data
from ddpm.runtime import distributed
from ddpm.runtime.command_line import one_line_errors, pick_device
from ddpm.runtime.config import Config
from ddpm.runtime.files import make_folder
from ddpm.runtime.progress import progress
from ddpm.runtime.run import Onlooker, Run
from ddpm.runtime.start import go_on, learn_from, plan, read_command_line, start_from
from ddpm.training import make_training, training_step


@one_line_errors
@distributed.in_each_process
def main(argv):
    started = time.perf_counter()
    config, resumed = distributed.broadcast(read_command_line, argv)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    data, held_out = open_data(config)
    training = make_training(config, data.vocabulary, device)
    training.trained_on = folders.contents(data)
    step, planned = 0, not config.steps
    if resumed:
        step = go_on(training, resumed, data.vocabulary)
        if step >= config.steps:
            print("nothing left to do; go on with a larger --steps")
            return
    if config.teacher or config.reference:
        learn_from(training, data.vocabulary)
    if not resumed:
        if config.init or config.teacher or config.reference:
            start_from(training, data.vocabulary)
        training.config = plan(training, data, started)
    config = training.config

    last = False
    with (
        closing((Onlooker if distributed.rank() else Run)(training, held_out, step)) as run,
        progress(total=config.steps, initial=step, unit="step", leave=True) as bar,
        StopSignals() as stop,
    ):
        while not last:
            figures = training_step(training, data, step)
            step += 1

            last = step == config.steps or distributed.any_of(stop.name)
            run.record(step, figures, bar, last)
            if step % config.sample_every == 0 or step == config.steps:
                run.validate(step, bar)
            if step % config.save_every == 0 or last:  # after the log, so that nothing logged up to here can be missing
                run.save(step)
            if config.evaluate_every and step % config.evaluate_every == 0:
                run.evaluate(step, bar)
    run.finish(step, stop.name, (time.perf_counter() - started) / 60, planned)


def open_data(config: Config) -> tuple[Slices, Slices]:
    """The training and the validation split, and a word on them. Raises UserError."""
    with distributed.rank_0_first():
        data, held_out = load_data(config, "train"), load_data(config, "val")
    if config.evaluate_every:
        from ddpm.evaluation.small import check_enough  # only here: a run that asks nothing loads no metrics

        check_enough(held_out)
    config.out = distributed.broadcast(make_folder, config.out, f"results/{Path(config.data).resolve().name}")
    if data.index:
        print(folders.table(data, held_out))
    what = "images of {}x{}, classes ".format(*config.image_size) + (", ".join(data.classes) or "none")
    print(f"{config.out}: {len(data)} training and {len(held_out)} validation {what}")
    return data, held_out


class StopSignals:
    """Within it, SIGINT or SIGTERM only sets `name`: the loop ends after the step at hand. A second one kills."""

    def __enter__(self):
        self.name = ""
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame):
        self.name = signal.Signals(number).name
        signal.signal(number, self.before[number])

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
