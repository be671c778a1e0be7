"""The model to train: given, made from a configuration, or cut out of its teacher."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amidkd.config import FromScratchStudent, LoraConfig, StudentConfig
from amidkd.errors import SettingError
from amidkd.models.load import LOADING_ERRORS, load_model, require_peft, vocabulary_size
from amidkd.models.prune import depth_pruned
from amidkd.record import atomic_folder

__all__ = ["checkpoint_weights", "make_student", "save_student", "student_tokenizer"]

# Accepted by configuration classes under another name, and rewritten by them.
_LEGACY_FIELDS = {"rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype", "attn_implementation"}


def student_tokenizer(config: StudentConfig, teacher_source: str | None) -> str:
    """Folder or hub name of the tokenizer that a student uses.

    Args:
        config: The run file's ``student``.
        teacher_source: The teacher's folder or hub name, or None.

    Raises:
        SettingError: The student would take it from a teacher, and there is none.
    """
    if config.kind == "pretrained":
        return config.model
    source = (config.tokenizer if config.kind == "from_scratch" else None) or teacher_source
    if source is None:
        raise SettingError(f"student.kind: {config.kind} takes its tokenizer from a teacher; add a teacher section")
    return source


def make_student(
    config: StudentConfig,
    *,
    tokenizer: Any,
    seed: int,
    teacher_model: Any = None,
    teacher_source: str | None = None,
) -> Any:
    """Make the model that a run trains.

    Args:
        config: The run file's ``student``.
        tokenizer: The student's tokenizer (see :func:`student_tokenizer`).
        seed: Seed of random weights and of the adapters' start; the global generators are not touched.
        teacher_model: The live teacher, from which ``depth_pruned`` takes its layers.
        teacher_source: Where to load it from, where there is no live teacher.

    Returns:
        A transformers model, or a peft model with ``student.lora``; in training mode.

    Raises:
        SettingError: Unknown model type or field; a vocabulary smaller than the tokenizer's; more layers than
            the teacher has; adapters that fit no layer; nothing to train.
    """
    with _seeded(seed):
        if config.kind == "pretrained":
            model = load_model(config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        elif config.kind == "from_scratch":
            model = _from_scratch(config, tokenizer)
        else:
            teacher = teacher_model
            if teacher is None:
                if teacher_source is None:
                    raise SettingError(
                        "student.kind: depth_pruned takes its layers from a teacher; add a teacher section"
                    )
                teacher = load_model(teacher_source, trust_remote_code=config.trust_remote_code)
            model = depth_pruned(teacher, config.layers, dtype=config.dtype)
        _check_vocabulary(model, tokenizer)
        if config.lora is not None:
            model = _with_lora(model, config.lora)
    if not any(parameter.requires_grad and parameter.numel() for parameter in model.parameters()):
        raise SettingError(f"student ({config.kind}): no parameter is trainable")
    _make_savable(model)
    return model.train()


def save_student(model: Any, tokenizer: Any, folder: str | Path, *, merge_lora: bool = True) -> None:
    """Write a Hugging Face folder: weights, configuration, generation settings, tokenizer.

    The folder appears complete or not at all, and the model in memory stays as it is.

    Args:
        model: The student, not wrapped for distribution.
        tokenizer: Its tokenizer.
        folder: Where to write; what stood there is replaced.
        merge_lora: Write the model with its adapters merged in; False writes the adapters alone.
    """
    adapted = hasattr(model, "peft_config")
    with atomic_folder(Path(folder)) as temporary:
        if adapted and merge_lora:
            base = model.get_base_model()
            base.save_pretrained(temporary, state_dict=_merged_weights(base))
        else:
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def checkpoint_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names of a saved folder, as other engines read them.

    Adapters are merged into copies, a tied weight is there once, and what transformers fuses on loading is apart again.

    Args:
        model: The student, not wrapped for distribution.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    with torch.no_grad():
        state = _merged_weights(base) if base is not model else base.state_dict()
        seen: set[tuple[Any, ...]] = set()
        own = {}
        for name, tensor in state.items():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device)
            if tensor.numel() and place in seen:
                continue
            seen.add(place)
            own[name] = tensor.detach()
        return dict(revert_weight_conversion(base, own))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeded generators inside, the caller's outside."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _from_scratch(student: FromScratchStudent, tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = _scratch_config(student.config, tokenizer)
    dtype = torch.float32 if student.dtype == "auto" else getattr(torch, student.dtype)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=student.trust_remote_code)
    except (*LOADING_ERRORS, ArithmeticError, AssertionError) as error:
        raise SettingError(f"student.config makes no model: {' '.join(str(error).split())[:300]}") from error


def _scratch_config(fields: dict[str, Any], tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if "model_type" not in fields:
        raise SettingError("student.config needs `model_type`, such as llama, qwen2 or gpt2")
    model_type = fields["model_type"]
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), n=3)
        raise SettingError(f"student.config.model_type: transformers has no {model_type!r}{_near(near)}")
    given = {key: value for key, value in fields.items() if key != "model_type"}
    known = _known_fields(CONFIG_MAPPING[model_type])
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            raise SettingError(f"student.config.{key}: {model_type} has no such field{_near(near)}")
    least = vocabulary_size(tokenizer)
    if given.get("vocab_size", least) < least:
        raise SettingError(
            f"student.config.vocab_size: {given['vocab_size']} is smaller than the tokenizer's {least}; leave it out"
        )
    try:
        return AutoConfig.for_model(model_type, **{"vocab_size": least, **_special_ids(tokenizer), **given})
    except LOADING_ERRORS as error:
        raise SettingError(f"student.config: {' '.join(str(error).split())[:300]}") from error


def _known_fields(config_class: Any) -> set[str]:
    """Field names of a configuration class, which itself accepts any name without a word."""
    return set(config_class().to_dict()) | set(config_class.attribute_map) | _LEGACY_FIELDS


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    # An embedding gives its pad row no gradient; where pad is borrowed from a live token, that must not happen.
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": None if pad in (bos, eos) else pad}


def _near(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    rows, needed = int(model.get_input_embeddings().weight.shape[0]), vocabulary_size(tokenizer)
    if rows < needed:
        raise SettingError(
            f"student: its embedding has {rows} rows, but its tokenizer has ids up to {needed - 1}; "
            "use the tokenizer that the model was trained with, or resize the model's embedding"
        )


def _with_lora(model: Any, lora: LoraConfig) -> Any:
    require_peft("student.lora")
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    settings = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "weight")}
        raise SettingError(
            f"student.lora.target_modules: {lora.target_modules!r} cannot be used "
            f"({' '.join(str(error).split())[:200]}); this model's layers: {', '.join(sorted(names))}"
        ) from error


def _make_savable(model: Any) -> None:
    """Let generation settings be written: some published ones give a temperature with sampling off: refused."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


@torch.no_grad()
def _merged_weights(base: Any) -> dict[str, torch.Tensor]:
    """The state dict of the model under the adapters, with each adapter added to a copy of its weight."""
    from peft.tuners.lora import LoraLayer

    merged = {}
    for name, tensor in base.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if ".lora_" in name or "lora_" in leaf:
            continue
        layer = base.get_submodule(path.removesuffix(".base_layer")) if path.endswith(".base_layer") else None
        if isinstance(layer, LoraLayer) and leaf == "weight":
            for adapter in layer.active_adapters:
                tensor = tensor + layer.get_delta_weight(adapter).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged
