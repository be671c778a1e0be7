"""Names that rows are found by."""

__all__ = ["ALPHAS", "LAM", "LOOP", "OWN", "PRODUCTS", "TRAINER", "alpha_case", "amid_linear", "group"]

ALPHAS = (-3.0, 0.5)
LAM = 0.1
OWN = ("chunked", "fused")
PRODUCTS, LOOP, TRAINER = "four products", "textbook loop", "TRL GKDTrainer"


def alpha_case(alpha: float) -> str:
    """The case KL(p‖r), r the α-mixture of λ = 0.1."""
    return f"alpha={alpha:g}"


def group(what: str, dtype: str) -> str:
    """A group of methods that compute the same, in one dtype."""
    return f"{what} {dtype}"


def amid_linear(backend: str) -> str:
    """A backend's row from hidden states with the α-mixture, beside its row with GKD's objective."""
    return f"{backend}, α = {ALPHAS[0]:g}"
