"""What a cache says is what the teacher said, up to the rounding of its storage."""

import random
from dataclasses import replace

import pytest
import torch
from caching import PADDED, VOCABULARY, opened, rows, settings, teacher, written

from amidkd.config import CachedTeacher as CachedTeacherConfig
from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.data import Example, collate
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.models import load_tokenizer
from amidkd.signals import Hidden, Logits, TopK
from amidkd.teachers import make_live
from amidkd.teachers.cached import open_cache
from amidkd.teachers.cached.layout import Layout, layout_of
from tiny_models import FAMILIES, tiny_model
from tiny_models import VOCABULARY as FAMILY_VOCABULARY

OBJECTIVES = [
    Objective(divergence=divergence(name), between=between, **mixture)
    for name in ("kl", "reverse_kl", "jensen_shannon", "total_variation", "squared_hellinger")
    for between, mixture in (
        ("teacher||student", {}),
        ("teacher||assistant", {"alpha": -0.5, "lam": 0.1}),
        ("student||assistant", {"alpha": -1.0, "lam": 0.5}),
    )
]


def loss(objective: Objective, said, count: int):
    z = torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = distillation_loss(student=Logits(z), teacher=said, objective=objective, vocab_size=VOCABULARY)
    (gradient,) = torch.autograd.grad(out.loss, z)
    return out.loss.detach(), gradient


def dense(said: Hidden) -> torch.Tensor:
    return torch.nn.functional.linear(said.states, said.weight)[:, :VOCABULARY].log_softmax(-1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "cache"
    written(folder, live := teacher(), settings(top_k=VOCABULARY + 50))
    cached = opened(folder, top_k=VOCABULARY + 50)
    yield live, cached
    cached.close()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_token_kept_is_the_live_teacher(whole, objective) -> None:
    live, cached = whole
    batch = collate(rows()[:12], pad_id=0)
    said, kept = live.signal(batch), cached.signal(batch)
    count = batch.token_count()
    assert (kept.log_tail == -torch.inf).all(), "K = V leaves nothing over"
    # In float16 a log-probability is wrong by a half of 2^-10 of itself, and a probability by as much more.
    rounding = float(dense(said).abs().max()) * 2.0**-11
    wanted, found = loss(objective, said, count), loss(objective, kept, count)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=2 * rounding)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=2 * rounding / count)


def test_top_k_is_what_was_computed_before_it_was_rounded(tmp_path) -> None:
    written(tmp_path / "cache", live := teacher(), settings(top_k=4))
    batch = collate(rows()[5:9], pad_id=0)
    cached = opened(tmp_path / "cache", top_k=4)
    said, log_p = cached.signal(batch), dense(live.signal(batch))
    best, ids = log_p.topk(4)
    assert torch.equal(said.ids, ids)
    assert torch.equal(said.log_probs, best.half().float())
    rest = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    torch.testing.assert_close(said.log_tail, rest, rtol=1e-5, atol=1e-6)
    assert said.ids.dtype == torch.int64
    assert said.log_probs.dtype == said.log_tail.dtype == torch.float32
    cached.close()


@pytest.mark.parametrize("family", ["gemma2", "cohere", "gptj", "llama_tied"])
def test_hidden_is_exact_for_a_teacher_in_bfloat16(tmp_path, family) -> None:
    assert FAMILY_VOCABULARY >= VOCABULARY
    live = teacher(torch.bfloat16, tiny_model(family))
    # The batch that the cache is written in: a model's last bits hang on the company.
    examples = sorted(rows()[:4], key=lambda example: len(example.tokens))
    written(tmp_path / "cache", live, settings("hidden"), examples)
    cached = opened(tmp_path / "cache", "hidden")
    batch = collate(examples, pad_id=0)
    said, kept = live.signal(batch), cached.signal(batch)
    assert kept.states.dtype == torch.bfloat16
    assert torch.equal(kept.states, said.states)
    assert torch.equal(kept.weight, said.weight)
    assert (kept.bias is None) == (said.bias is None)
    assert kept.bias is None or torch.equal(kept.bias, said.bias)
    assert (kept.scale, kept.softcap) == (said.scale, said.softcap)
    assert "final_logit_softcapping" not in FAMILIES[family][1] or kept.softcap is not None
    cached.close()


def test_hidden_states_come_back_bit_by_bit_in_the_teachers_type() -> None:
    states = torch.randn(7, 16, dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        head = {"weight": torch.randn(9, 16, dtype=dtype), "bias": None, "scale": 1.0, "softcap": None}
        layout = Layout("hidden", 9, width=16)
        back = layout.decode(layout.encode(Hidden(states.to(dtype), head["weight"])), head)
        assert back.states.dtype == dtype
        assert torch.equal(back.states, states.to(dtype))


def test_hidden_of_a_float32_teacher_is_rounded_to_bfloat16(tmp_path) -> None:
    written(tmp_path / "cache", live := teacher(), settings("hidden"))
    cached = opened(tmp_path / "cache", "hidden")
    batch = collate(rows()[:12], pad_id=0)
    said, kept = live.signal(batch), cached.signal(batch)
    assert kept.states.dtype == torch.float32
    torch.testing.assert_close(kept.states, said.states, rtol=2.0**-8, atol=1e-6)
    assert kept.weight.shape == (PADDED, 16)
    for objective in OBJECTIVES[:3]:
        found, wanted = (loss(objective, each, batch.token_count())[0] for each in (kept, said))
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-3)
    cached.close()


def test_masked_tokens_and_large_vocabularies_survive() -> None:
    for size in (1 << 16, (1 << 16) + 1, 1 << 18):
        logits = torch.full((3, size), -torch.inf)
        logits[:, [0, size // 2, size - 1]] = torch.tensor([[0.0, -1.0, 2.0], [3.0, 2.0, 1.0], [0.0, -90000.0, 0.0]])
        layout = layout_of("top_k", 5, Logits(logits), vocab_size=size)
        assert layout.id_bytes == (2 if size == 1 << 16 else 3)
        back = layout.decode(layout.encode(Logits(logits)), None)
        assert back.ids[0, :3].tolist() == [size - 1, 0, size // 2]
        assert (back.log_probs[:, 3:] == -torch.inf).all()
        assert torch.isfinite(back.log_probs[:, :3]).all(), "a number that float16 has no room for stays one"
        assert (back.log_tail == -torch.inf).all()


def test_what_a_server_gave_is_stored_as_it_is() -> None:
    ids = torch.tensor([[7, 2, 9], [1, 0, 3]])
    given = TopK(ids, torch.tensor([[-1.0, -0.5, -4.0], [-0.25, -2.0, -8.0]]), torch.tensor([-3.3, -torch.inf]))
    layout = layout_of("top_k", 3, given, vocab_size=12)
    back = layout.decode(layout.encode(given), None)
    assert back.ids.tolist() == [[2, 7, 9], [1, 0, 3]], "likeliest first"
    assert back.log_probs.tolist() == [[-0.5, -1.0, -4.0], [-0.25, -2.0, -8.0]]
    assert torch.equal(back.log_tail, given.log_tail)


def test_order_company_and_padding_change_nothing(tmp_path) -> None:
    written(tmp_path / "cache", teacher(), settings())
    cached, examples = opened(tmp_path / "cache"), rows()
    alone = [cached.signal(collate([example], pad_id=0)) for example in examples]
    for epoch in range(3):
        order = random.Random(epoch).sample(range(len(examples)), len(examples))
        batches = [order[start : start + 7] for start in range(0, len(order), 7)]
        made = [collate([examples[row] for row in batch], pad_id=epoch, multiple_of=8 * epoch + 1) for batch in batches]
        for place, (batch, sequences) in enumerate(zip(batches, made, strict=True)):
            if epoch:
                cached.expect(made[place : place + 3])
            said = cached.signal(sequences)
            assert torch.equal(said.ids, torch.cat([alone[row].ids for row in batch]))
            assert torch.equal(said.log_probs, torch.cat([alone[row].log_probs for row in batch]))
            assert torch.equal(said.log_tail, torch.cat([alone[row].log_tail for row in batch]))
    cached.close()


def test_equal_rows_are_one_entry_and_any_part_of_it_can_be_had(tmp_path) -> None:
    tokens = (5, 6, 7, 8, 9, 10)
    first = Example(tokens, (False, False, True, False, False, True), 0)
    second = Example(tokens, (False, False, True, True, False, False), 1)
    manifest = written(tmp_path / "cache", live := teacher(), settings(), [first, second])
    assert (manifest.rows, manifest.tokens) == (1, 3)
    cached = opened(tmp_path / "cache")
    for example in (first, second):
        batch = collate([example], pad_id=0)
        log_p = dense(live.signal(batch))
        assert torch.equal(cached.signal(batch).ids, log_p.topk(4).indices)
    nothing = collate([Example((11, 12), (False, False), -1)], pad_id=0)
    assert cached.signal(nothing).ids.shape == (0, 4), "a row that only fills a batch need not be there"
    cached.close()


def test_a_real_model(shared, tmp_path) -> None:
    source = LiveTeacherConfig(model=str(shared / "models/stories260K-hf"))
    tokenizer = load_tokenizer(source.model)
    live = make_live(source, student_tokenizer=tokenizer)
    texts = ["Once upon a time there was a dog.", "Lily liked to play with her red ball in the park.\nShe was happy."]
    ids = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    examples = [Example(each, (False, *[True] * (len(each) - 1)), row) for row, each in enumerate(ids)]
    made = replace(settings(top_k=512), tokenizer=tokenizer)
    written(tmp_path / "cache", live, made, examples)
    cached = open_cache(
        CachedTeacherConfig(folder=str(tmp_path / "cache"), model=source.model, top_k=512),
        student_tokenizer=tokenizer,
        folder=tmp_path,
    )
    batch = collate(examples, pad_id=0)
    said, kept = live.signal(batch), cached.signal(batch)
    student = Hidden(said.states.flip(0), said.weight)
    for objective in OBJECTIVES:
        found, wanted = (
            distillation_loss(student=student, teacher=each, objective=objective, vocab_size=live.vocab_size).loss
            for each in (kept, said)
        )
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4)
    cached.close()
