"""Training: one trainer for distillation and fine-tuning, its stages, exact resume."""

from amidkd.training.arguments import check_training_settings, training_arguments
from amidkd.training.cache import run_cache
from amidkd.training.fingerprint import run_settings
from amidkd.training.generate import run_generate
from amidkd.training.lessons import warm_start_of
from amidkd.training.main_stage import check_policy
from amidkd.training.objective import ScheduledObjective, objective_at
from amidkd.training.observing import Observer
from amidkd.training.run import distill, sft
from amidkd.training.settings import Corpus, LossSettings
from amidkd.training.sharing import link, write_shared_text
from amidkd.training.trainer import DistillationTrainer

__all__ = [
    "Corpus",
    "DistillationTrainer",
    "LossSettings",
    "Observer",
    "ScheduledObjective",
    "check_policy",
    "check_training_settings",
    "distill",
    "link",
    "objective_at",
    "run_cache",
    "run_generate",
    "run_settings",
    "sft",
    "training_arguments",
    "warm_start_of",
    "write_shared_text",
]
