"""The backbone's hidden states and head say what the model's own logits say, and pass the same gradients."""

import warnings

import pytest
import torch
from torch import nn

from amidkd.errors import SettingWarning
from amidkd.models import Backbone
from amidkd.signals import Hidden, Logits
from tiny_models import FAMILIES, VOCABULARY, tiny_model


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three right-padded rows of different lengths, and some positions to predict from."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=generator)
    attention = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()
    predicts = (torch.rand(3, 9, generator=generator) < 0.6) & (attention.roll(-1, 1) == 1) & (attention == 1)
    assert predicts.any(dim=1).all()
    return tokens, attention, predicts


def logits_of(signal: Hidden | Logits) -> torch.Tensor:
    if isinstance(signal, Logits):
        return signal.logits
    raw = signal.scale * nn.functional.linear(signal.states, signal.weight, signal.bias)
    return raw if signal.softcap is None else signal.softcap * torch.tanh(raw / signal.softcap)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(model: nn.Module, backbone: Backbone, tolerance: float = 1e-5) -> None:
    """Backward through hidden states and head, and through full logits, of the same function."""
    tokens, attention, predicts = batch()
    direction = torch.randn(int(predicts.sum()), VOCABULARY, generator=torch.Generator().manual_seed(1))
    (logits_of(backbone(tokens, attention, predicts)).log_softmax(-1) * direction).sum().backward()
    found = gradients(model)
    full = model(input_ids=tokens, attention_mask=attention, use_cache=False).logits[predicts]
    (full.log_softmax(-1) * direction).sum().backward()
    wanted = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_give_the_models_logits(family: str) -> None:
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        backbone = Backbone(model)
    tokens, attention, predicts = batch()
    signal = backbone(tokens, attention, predicts)
    assert backbone.form == "hidden"
    assert backbone.width == VOCABULARY
    assert isinstance(signal, Hidden)
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=attention).logits[predicts]
    torch.testing.assert_close(logits_of(signal), wanted, rtol=1e-5, atol=1e-5)
    assert signal.weight is model.get_output_embeddings().weight


def test_scale_and_soft_cap_are_read() -> None:
    tokens, attention, predicts = batch()
    found = {name: Backbone(tiny_model(name))(tokens, attention, predicts) for name in ("gemma2", "cohere", "granite")}
    assert found["gemma2"].softcap == 3.0
    assert (found["cohere"].scale, found["granite"].scale) == (0.25, 0.125)


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "gpt2", "gemma2", "gptj"])
def test_gradients_equal_those_through_full_logits(family: str) -> None:
    model = tiny_model(family)
    assert_same_gradients(model, Backbone(model))


def test_gradients_under_gradient_checkpointing() -> None:
    model = tiny_model("llama_tied")
    backbone = Backbone(model)
    model.gradient_checkpointing_enable()
    model.train()
    assert model.is_gradient_checkpointing
    assert_same_gradients(model, backbone)


def test_lora_model_keeps_hidden_form_and_gradients() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama_tied"), peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    backbone = Backbone(model)
    assert backbone.form == "hidden"
    assert_same_gradients(model, backbone)


def test_lora_on_the_head_falls_back_to_logits() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama_untied"), peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    with pytest.warns(SettingWarning, match="not a plain linear layer"):
        backbone = Backbone(model)
    tokens, attention, predicts = batch()
    signal = backbone(tokens, attention, predicts)
    assert backbone.form == "logits"
    assert backbone.width == VOCABULARY
    torch.testing.assert_close(signal.logits, model(input_ids=tokens, attention_mask=attention).logits[predicts])


@pytest.mark.parametrize(
    "after",
    [
        lambda z: 50 * torch.tanh(z / 50),
        lambda z: z * 1.01,
        lambda z: z.masked_fill(torch.arange(z.shape[-1]) == z.shape[-1] - 1, -1e9),
        lambda z: z[..., :VOCABULARY] + 0.1 * z[..., 5:6],
    ],
    ids=["soft cap", "scale", "masked token", "needs the whole width"],
)
def test_an_unknown_step_after_the_head_is_found_out(after: object) -> None:
    """Small weights, so that a soft cap hardly shows in the model's own logits."""
    model = tiny_model("llama_tied")
    for parameter in model.parameters():
        parameter.data.mul_(0.2)
    inner = type(model).forward

    def forward(*args: object, **kwargs: object) -> object:
        output = inner(model, *args, **kwargs)
        output.logits = after(output.logits)
        return output

    model.forward = forward
    with pytest.warns(SettingWarning, match="full logits are computed"):
        backbone = Backbone(model)
    tokens, attention, predicts = batch()
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=attention).logits[predicts]
        assert torch.equal(backbone(tokens, attention, predicts).logits, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_type_is_proved_within_its_rounding(family: str, dtype: torch.dtype) -> None:
    assert Backbone(tiny_model(family).to(dtype)).form == "hidden"


def test_padding_ids_beyond_the_embedding_do_not_matter() -> None:
    backbone = Backbone(tiny_model("llama_tied"))
    tokens, attention, predicts = batch()
    wanted = backbone(tokens, attention, predicts)
    found = backbone(tokens.masked_fill(attention == 0, VOCABULARY + 7), attention, predicts)
    assert torch.equal(found.states, wanted.states)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "opt"])
def test_left_padded_rows_see_their_own_positions(family: str) -> None:
    model = tiny_model(family)
    backbone = Backbone(model)
    row = torch.tensor([[5, 9, 11, 20]])
    whole = torch.tensor([[False, True, True, True]])
    alone = backbone(row, torch.ones_like(row), whole)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), row], dim=1)
    attention = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    moved = backbone(padded, attention, torch.cat([torch.zeros(1, 3, dtype=torch.bool), whole], dim=1))
    torch.testing.assert_close(moved.states, alone.states, rtol=1e-5, atol=1e-5)


def test_construction_and_calls_leave_the_model_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    head = model.get_output_embeddings()
    generator = torch.get_rng_state()
    Backbone(model)(*batch())
    assert model.training
    assert not model.transformer.h[0].training
    assert "forward" not in head.__dict__
    model.eval()
    Backbone(model)
    torch.set_rng_state(generator)
    assert not model.training
    assert head(torch.ones(1, 32)).shape == (1, VOCABULARY)


def test_construction_does_not_touch_the_generator() -> None:
    model = tiny_model("gpt2").train()
    before = torch.get_rng_state()
    Backbone(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_vocabulary_wide_tensor_is_made() -> None:
    model = tiny_model("llama_untied")
    backbone = Backbone(model)
    widths: set[int] = set()

    class Widths(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.ndim >= 2 and tensor.shape[0] != VOCABULARY:
                    widths.add(int(tensor.shape[-1]))
            return result

    tokens, attention, predicts = batch()
    with Widths():
        backbone(tokens, attention, predicts)
    assert 32 in widths
    assert VOCABULARY not in widths


@pytest.mark.parametrize("find_unused", [True, False])
@pytest.mark.parametrize("family", ["llama_tied", "llama_untied"])
def test_through_a_distributed_wrapper(family: str, find_unused: bool, tmp_path: object) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[operator]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = tiny_model(family).train()
        backbone = Backbone(model)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
        tokens, attention, predicts = batch()
        for _ in range(2):
            logits_of(backbone(tokens, attention, predicts, through=wrapped)).logsumexp(-1).sum().backward()
            found = gradients(model)
        logits_of(backbone(tokens, attention, predicts)).logsumexp(-1).sum().backward()
        wanted = gradients(model)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, msg=name)
    finally:
        torch.distributed.destroy_process_group()
