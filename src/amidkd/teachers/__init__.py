"""Teachers: what they say about a batch, and the proof that they speak the student's vocabulary."""

from amidkd.teachers.aligned import Aligned
from amidkd.teachers.base import Group, Grouped, Said, Teacher, TeacherError
from amidkd.teachers.live import LiveTeacher, make_live, self_distillation_loss
from amidkd.teachers.make import make_teacher, teacher_tokenizer
from amidkd.teachers.vocabulary import prove_same_vocabulary

__all__ = [
    "Aligned",
    "Group",
    "Grouped",
    "LiveTeacher",
    "Said",
    "Teacher",
    "TeacherError",
    "make_live",
    "make_teacher",
    "prove_same_vocabulary",
    "self_distillation_loss",
    "teacher_tokenizer",
]
