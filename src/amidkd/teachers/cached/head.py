"""``head.safetensors``: the head that turns stored hidden states into logits, in the type of the teacher's weights."""

from pathlib import Path
from typing import Any

import torch

from amidkd.errors import SettingError
from amidkd.record import write_atomic
from amidkd.signals import Hidden

__all__ = ["HEAD", "read_head", "write_head"]

HEAD = "head.safetensors"


def write_head(folder: Path, signal: Hidden) -> None:
    """Write weight, bias, scale and soft cap, atomically.

    Args:
        folder: The cache.
        signal: Any signal of the teacher.
    """
    from safetensors.torch import save

    tensors = {
        "weight": signal.weight.detach().cpu().contiguous(),
        "scale": torch.tensor(signal.scale, dtype=torch.float64),
    }
    if signal.bias is not None:
        tensors["bias"] = signal.bias.detach().cpu().contiguous()
    if signal.softcap is not None:
        tensors["softcap"] = torch.tensor(signal.softcap, dtype=torch.float64)
    write_atomic(folder / HEAD, save(tensors))


def read_head(folder: Path) -> dict[str, Any]:
    """The arguments of ``Hidden`` beside its states, on the CPU.

    Args:
        folder: The cache.

    Raises:
        SettingError: It is missing, or is none of ours.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / HEAD)
        softcap = tensors.get("softcap")
        return {
            "weight": tensors["weight"],
            "bias": tensors.get("bias"),
            "scale": float(tensors["scale"]),
            "softcap": None if softcap is None else float(softcap),
        }
    except (OSError, KeyError, SafetensorError) as error:
        raise SettingError(
            f"{folder / HEAD}: the head of the cache cannot be read ({error}); make the cache anew with "
            "`amidkd cache RUN`"
        ) from None
