"""Teachers: what they say about a batch, and the proof that they speak the student's vocabulary."""

from amidkd.teachers.live import LiveTeacher, Teacher, make_teacher, self_distillation_loss
from amidkd.teachers.vocabulary import prove_same_vocabulary

__all__ = ["LiveTeacher", "Teacher", "make_teacher", "prove_same_vocabulary", "self_distillation_loss"]
