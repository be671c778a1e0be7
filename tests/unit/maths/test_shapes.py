import pytest
import torch

from amidkd.maths import Objective, divergence, log_mixture, log_mixture_of

P = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
Q = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_everywhere(dtype):
    message = f"float32 or float64 log-probabilities; got {dtype}"
    with pytest.raises(ValueError, match=message):
        log_mixture(P.to(dtype), Q, alpha=0.5, lam=0.1)
    with pytest.raises(ValueError, match=message):
        log_mixture_of([P, Q.to(dtype)], alpha=0.5)
    with pytest.raises(ValueError, match=f"student must be {message}"):
        Objective()(teacher=P, student=Q.to(dtype))
    with pytest.raises(ValueError, match=message):
        divergence("kl")(P, Q.to(dtype))


def test_float64_on_one_side_makes_all_float64():
    assert log_mixture(P.double(), Q, alpha=0.5, lam=0.1).dtype == torch.float64
    assert Objective()(teacher=P, student=Q.double()).dtype == torch.float64
    assert Objective()(teacher=P, student=Q).dtype == torch.float32


def test_shapes_that_differ_name_both_and_the_fix():
    with pytest.raises(ValueError, match=r"student has shape \(3, 4, 4\) and teacher \(3, 4, 5\); mask both"):
        Objective()(teacher=P, student=Q[..., :4])
    with pytest.raises(ValueError, match=r"\[\*N, V\] with V ≥ 1"):
        divergence("kl")(torch.tensor(0.0), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 4, 5), (0, 5), (2, 1)])
def test_any_leading_axes(shape):
    log_p, log_q = torch.zeros(shape).log_softmax(-1), torch.ones(shape).log_softmax(-1)
    per_row = torch.full(shape[:-1], 0.5)
    assert log_mixture(log_p, log_q, alpha=per_row, lam=per_row).shape == shape
    assert Objective(alpha=per_row, lam=0.3)(teacher=log_p, student=log_q).shape == shape[:-1]


def test_a_setting_per_token_is_that_of_the_token():
    alpha = torch.linspace(-5, 5, 12).reshape(3, 4)
    lam = torch.linspace(0, 1, 12).reshape(3, 4)
    together = Objective(alpha=alpha, lam=lam)(teacher=P, student=Q)
    for row in range(3):
        for column in range(4):
            objective = Objective(alpha=alpha[row, column].item(), lam=lam[row, column].item())
            alone = objective(teacher=P[row, column], student=Q[row, column])
            torch.testing.assert_close(together[row, column], alone, rtol=2e-5, atol=1e-7)


def test_a_scalar_tensor_is_a_number():
    found = Objective(alpha=torch.tensor(0.5), lam=torch.tensor(0.3))(teacher=P, student=Q)
    torch.testing.assert_close(found, Objective(alpha=0.5, lam=0.3)(teacher=P, student=Q))


def test_a_setting_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"one value per token, shape \(3, 4\); got \(4,\)"):
        Objective(lam=torch.full((4,), 0.1))(teacher=P, student=Q)
    with pytest.raises(ValueError, match=r"alpha as a tensor must have one value per token"):
        log_mixture(P, Q, alpha=torch.zeros(3, 4, 1), lam=0.1)


@pytest.mark.parametrize("lam", [-0.1, 1.2, float("nan"), torch.tensor([0.5, 1.2]), torch.tensor([float("nan")])])
def test_lambda_outside_its_domain(lam):
    with pytest.raises(ValueError, match=r"lam must be within \[0, 1\].*got (-0.1|1.2|nan)"):
        Objective(lam=lam)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf"), torch.tensor([0.0, float("nan")])])
def test_alpha_must_be_finite(alpha):
    with pytest.raises(ValueError, match=r"alpha must be .*finite.*got (nan|inf|-inf)"):
        Objective(alpha=alpha)
    with pytest.raises(ValueError, match="alpha must be"):
        log_mixture(P, Q, alpha=alpha, lam=0.5)


@pytest.mark.parametrize("alpha", ["1", None, True, torch.tensor([1, 2])])
def test_alpha_must_be_a_number(alpha):
    with pytest.raises(ValueError, match=r"alpha .*(number|floating)"):
        Objective(alpha=alpha)


def test_weights_must_fit_and_sum_to_one():
    with pytest.raises(ValueError, match=r"weights must sum to 1; got \[0.5, 0.6\]"):
        log_mixture_of([P, Q], weights=[0.5, 0.6], alpha=0.5)
    with pytest.raises(ValueError, match="one entry for each of the 2 sources; got 3"):
        log_mixture_of([P, Q], weights=[0.5, 0.2, 0.3], alpha=0.5)
    with pytest.raises(ValueError, match=r"weights\[1\] must be within \[0, 1\]; got -0.5"):
        log_mixture_of([P, Q], weights=[0.5, -0.5], alpha=0.5)
    with pytest.raises(ValueError, match="log_ps is empty"):
        log_mixture_of([], alpha=0.5)
    torch.testing.assert_close(log_mixture_of([P, Q], alpha=0.5), log_mixture(P, Q, alpha=0.5, lam=0.5))
    assert torch.equal(log_mixture_of([P], alpha=0.5), P)
