"""The built-in demonstration: a task made by rule, the packaged teacher, and the comparison of students."""
