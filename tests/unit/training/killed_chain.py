"""A run with stages that kills itself: ``killed_chain.py RUN.yaml WHERE [override ...]``.

WHERE is ``corrected:N`` (after the Nth batch of corrections), ``STAGE:N`` (in optimizer step N of the
stage), or ``saved:STAGE`` (the stage's student has its name, and nothing says yet that the stage is finished).
"""

import os
import signal
import sys
from pathlib import Path

import amidkd.training.run as run_module
from amidkd.config import load
from amidkd.policies.texts.journal import Journal
from amidkd.training import DistillationTrainer, distill


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(where: str) -> None:
    place, _, number = where.partition(":")
    append, finish, save = Journal.append, DistillationTrainer.finish_step, run_module.save_student
    batches = []

    def journal_append(self, answers):
        append(self, answers)
        if self._path.parent.name == place and not self._path.name.startswith(".corrections"):
            batches.append(self._path)
            if len(batches) == int(number):
                kill()

    def finish_step(self):
        finish(self)
        if Path(self.args.output_dir).name == place and self.state.global_step + 1 == int(number):
            kill()

    def save_student(model, tokenizer, folder, **options):
        save(model, tokenizer, folder, **options)
        if place == "saved" and Path(folder).parent.name == number:
            kill()

    Journal.append, DistillationTrainer.finish_step = journal_append, finish_step
    run_module.save_student = save_student


if __name__ == "__main__":
    file, where, *overrides = sys.argv[1:]
    kill_at(where)
    distill(load(file, overrides))
