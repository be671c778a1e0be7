"""The cache's format ``samples`` beside ``top_k`` at equal bytes: error of the gradient of the student's head, in %.

    python benchmarks/stored_samples.py

Real teacher and student (stories260K, llama2xs-279K) on about 16,000 tokens of real stories in ../shared; one mean over
all tokens, as a large batch has it. Both formats go through what the cache writes and reads. A minute on one core.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Hidden, Logits, Signal
from amidkd.teachers.cached.layout import Layout

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROWS, LENGTH, V = 48, 400, 512
STORES = ((4, 0), (2, 3), (8, 0), (4, 5), (16, 0), (8, 9), (32, 0), (16, 17))
"""K and draws; the pairs have the same bytes."""

OBJECTIVES = {
    "forward KL": Objective(divergence=divergence("kl"), between="teacher||student"),
    "skew forward KL, κ = 0.1": Objective(divergence=divergence("kl"), alpha=-1.0, lam=0.1),
    "AMiD, KL, α = −0.5, λ = 0.1": Objective(divergence=divergence("kl"), alpha=-0.5, lam=0.1),
}


@torch.no_grad()
def spoken() -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's logits [N, V], the student's last hidden states [N, H] and its head [V, H]."""
    models = SHARED / "models"
    tokenizer = AutoTokenizer.from_pretrained(models / "stories260K-hf")
    teacher = AutoModelForCausalLM.from_pretrained(models / "stories260K-hf").eval()
    student = AutoModelForCausalLM.from_pretrained(models / "llama2xs-279K-hf").eval()
    logits, states = [], []
    for line in (SHARED / "data" / "tinystories_dev.jsonl").read_text().splitlines()[:ROWS]:
        ids = torch.tensor([tokenizer.encode(json.loads(line)["text"])[:LENGTH]])
        logits.append(teacher(ids).logits[0].float())
        states.append(student.model(ids).last_hidden_state[0].float())
    return torch.cat(logits), torch.cat(states), student.lm_head.weight.float()


def gradient(teacher: Signal, states: Tensor, head: Tensor, objective: Objective) -> Tensor:
    leaf = head.detach().clone().requires_grad_()
    out = distillation_loss(student=Hidden(states, leaf), teacher=teacher, objective=objective, vocab_size=V)
    out.loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def main() -> None:
    logits, states, head = spoken()
    whole = Logits(logits)
    exact = {name: gradient(whole, states, head, objective) for name, objective in OBJECTIVES.items()}
    print(f"{len(states):,} tokens\n\n| bytes | store | " + " | ".join(OBJECTIVES) + " |")
    print("|---|---|" + "---|" * len(OBJECTIVES))
    for k, draws in STORES:
        layout = Layout("samples" if draws else "top_k", V, top_k=k, draws=draws or None)
        stored = layout.decode(layout.encode(whole, seed=3), None)
        errors = []
        for name, objective in OBJECTIVES.items():
            found = gradient(stored, states, head, objective)
            errors.append(f"{100 * float((found - exact[name]).norm() / exact[name].norm()):.2g}")
        store = f"`samples`, {k} + {draws} draws" if draws else f"`top_k: {k}`"
        print(f"| {layout.token_bytes} | {store} | " + " | ".join(errors) + " |")


if __name__ == "__main__":
    main()
