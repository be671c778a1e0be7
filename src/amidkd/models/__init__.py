"""Models: loading, the backbone without logits, students, generation."""

from amidkd.models.backbone import Backbone
from amidkd.models.generate import generate
from amidkd.models.load import eos_ids_of, load_model, load_tokenizer, pad_id_of, vocabulary_size
from amidkd.models.modes import evaluating
from amidkd.models.students import checkpoint_weights, make_student, save_student, student_tokenizer

__all__ = [
    "Backbone",
    "checkpoint_weights",
    "eos_ids_of",
    "evaluating",
    "generate",
    "load_model",
    "load_tokenizer",
    "make_student",
    "pad_id_of",
    "save_student",
    "student_tokenizer",
    "vocabulary_size",
]
