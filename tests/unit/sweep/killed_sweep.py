"""A sweep that kills itself: ``killed_sweep.py RUN.yaml TRIAL STEP``, before that step of that trial."""

import os
import signal
import sys

from amidkd.config import load
from amidkd.sweep import run_sweep
from amidkd.training import DistillationTrainer


def kill_at(trial: str, step: int) -> None:
    finish = DistillationTrainer.finish_step

    def finish_step(self):
        finish(self)
        if f"/trials/{trial}/" in self.args.output_dir and self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)

    DistillationTrainer.finish_step = finish_step


if __name__ == "__main__":
    file, name, number = sys.argv[1:]
    kill_at(name, int(number))
    sys.exit(run_sweep(load(file)))
