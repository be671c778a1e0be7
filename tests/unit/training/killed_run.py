"""A run that kills itself: ``killed_run.py RUN.yaml WHEN STEP`` with WHEN one of ``step``, ``saved`` and ``saving``."""

import os
import signal
import sys

import torch

from amidkd.config import load
from amidkd.training import DistillationTrainer, distill


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(when: str, step: int) -> None:
    finish, save, write = DistillationTrainer.finish_step, DistillationTrainer._save_checkpoint, torch.save
    saving = []

    def finish_step(self):
        finish(self)
        if when == "step" and self.state.global_step + 1 == step:
            kill()

    def save_checkpoint(self, model, trial):
        saving.append(self.state.global_step)
        save(self, model, trial)
        saving.clear()
        if when == "saved" and self.state.global_step == step:
            kill()

    def torch_save(value, path, *rest, **options):
        write(value, path, *rest, **options)
        if when == "saving" and saving == [step] and str(path).endswith("optimizer.pt"):
            kill()

    DistillationTrainer.finish_step = finish_step
    DistillationTrainer._save_checkpoint = save_checkpoint
    torch.save = torch_save


if __name__ == "__main__":
    file, moment, number, *overrides = sys.argv[1:]
    kill_at(moment, int(number))
    distill(load(file, overrides))
