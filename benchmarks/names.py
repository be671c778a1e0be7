"""Names that rows are found by."""

__all__ = [
    "ALPHAS",
    "DISTILLATION",
    "GENERATE",
    "LAM",
    "LOOP",
    "MADE",
    "ON_POLICY_ALPHA",
    "OWN",
    "OWN_AMID",
    "OWN_REUSE",
    "OWN_TRAINER",
    "PRODUCTS",
    "REAL",
    "REUSED",
    "TRAINER",
    "WRITER",
    "alpha_case",
    "amid_linear",
    "group",
]

ALPHAS = (-3.0, 0.5)
LAM = 0.1
OWN = ("chunked", "fused")
PRODUCTS, LOOP, TRAINER = "four products", "textbook loop", "TRL GKDTrainer"
DISTILLATION = "TRL DistillationTrainer"
MADE, REAL = "made Llama", "stories Llama"
"""Pairs of student and teacher: large vocabulary and random weights; V = 512 and trained on stories."""
GENERATE, WRITER = "transformers generate", "amidkd"
ON_POLICY_ALPHA, REUSED = -0.5, 4
OWN_TRAINER = "amidkd"
OWN_AMID = f"amidkd, α = {ON_POLICY_ALPHA:g}"
OWN_REUSE = f"amidkd, text for {REUSED}"
"""The last writes once for that many steps."""


def alpha_case(alpha: float) -> str:
    """The case KL(p‖r), r the α-mixture of λ = 0.1."""
    return f"alpha={alpha:g}"


def group(what: str, dtype: str) -> str:
    """A group of methods that compute the same, in one dtype."""
    return f"{what} {dtype}"


def amid_linear(backend: str) -> str:
    """A backend's row from hidden states with the α-mixture, beside its row with GKD's objective."""
    return f"{backend}, α = {ALPHAS[0]:g}"
