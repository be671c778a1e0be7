"""Models and tokenizers from a folder or a hub name, with one clear message where that fails."""

import importlib.util
from pathlib import Path
from typing import Any, NoReturn
from warnings import warn

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from amidkd.errors import SettingError, SettingWarning

__all__ = [
    "LOADING_ERRORS",
    "eos_ids_of",
    "load_model",
    "load_tokenizer",
    "pad_id_of",
    "require_peft",
    "vocabulary_size",
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What transformers, its hub client and safetensors raise for files and settings that they cannot use.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder or hub name.

    Nothing is added to it: where it has no pad token, :func:`pad_id_of` says what to fill batches with.

    Args:
        source: Folder or hub name.
        trust_remote_code: Run tokenizer code that comes with the files.

    Raises:
        SettingError: There is no such folder, or it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    _check_source(source, "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        _explain(source, "tokenizer", error)


def pad_id_of(tokenizer: Any) -> int:
    """Token id that fills batches: the pad token, or else EOS. It never decides what is supervised.

    Raises:
        SettingError: The tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SettingError(
        "the tokenizer has neither a pad nor an EOS token; set `eos_token` in its tokenizer_config.json, "
        "or else no answer could end"
    )


def eos_ids_of(tokenizer: Any, model: Any = None) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's EOS, and those of the model's generation settings.

    Chat models often name several (``<|im_end|>`` and ``<|endoftext|>``); any of them ends an answer.
    """
    found: list[int] = []
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    settings = getattr(model, "generation_config", None)
    listed = getattr(settings, "eos_token_id", None)
    if listed is not None:
        found.extend(int(token) for token in (listed if isinstance(listed, list | tuple) else [listed]))
    return tuple(dict.fromkeys(found))


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id (``len(tokenizer)`` is too small where ids have holes)."""
    return int(max(max(tokenizer.get_vocab().values()) + 1, len(tokenizer)))


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    adapter: str | Path | None = None,
    merge_adapter: bool = True,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model from a folder or hub name.

    Args:
        source: Folder or hub name.
        dtype: Type of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` to keep the file's.
        device: Where to put it; None leaves it on the CPU (quantised: the current CUDA device).
        adapter: Folder or hub name of a LoRA adapter on top of the model (extra ``lora``).
        merge_adapter: Add the adapter into the weights, so that it costs nothing afterwards.
        quantization: ``8bit`` or ``4bit`` through bitsandbytes (extra ``quantization``), or None.
        trust_remote_code: Run model code that comes with the weights.

    Returns:
        A ``transformers`` model in evaluation mode; a ``peft`` model where an adapter stays apart.

    Raises:
        SettingError: Nothing usable at ``source`` or ``adapter``; weights missing from the file; a missing
            extra; quantisation without a CUDA device.
    """
    from transformers import AutoModelForCausalLM

    _check_source(source, "model")
    options: dict[str, Any] = {"dtype": _DTYPES.get(dtype, dtype), "trust_remote_code": trust_remote_code}
    if quantization is not None:
        options.update(_quantization_options(quantization, dtype, device))
    if adapter is not None:
        require_peft("adapter")
        _check_source(adapter, "adapter")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(str(source), output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        _explain(source, "model", error)
    missing = sorted(found["missing_keys"])
    if missing:
        raise SettingError(
            f"model {source}: the file lacks {len(missing)} weights that {type(model).__name__} needs, such as "
            f"{', '.join(missing[:3])}; they would be random. Is it a causal language model?"
        )
    if adapter is not None:
        model = _with_adapter(model, adapter, merge=merge_adapter, quantized=quantization is not None)
    if device is not None and quantization is None:
        model = model.to(device)
    return model.eval()


def require_peft(setting: str) -> None:
    """Check that peft is installed.

    Raises:
        SettingError: It is not; the message names the extra.
    """
    if importlib.util.find_spec("peft") is None:
        raise SettingError(f"{setting} needs peft: pip install 'amidkd[lora]'")


def _check_source(source: str | Path, what: str) -> None:
    """Refuse a path where nothing is, before a hub client makes a riddle of it."""
    text = str(source)
    path = Path(text).expanduser()
    if path.is_dir():
        names = {p.name for p in path.iterdir()}
        if what == "model" and "config.json" not in names:
            hint = (
                "it holds a LoRA adapter: give the base model, and this folder as `adapter`"
                if "adapter_config.json" in names
                else "a model folder holds config.json and *.safetensors"
            )
            raise SettingError(f"model {text}: no config.json there; {hint}")
        return
    if path.is_file():
        raise SettingError(f"{what} {text} is a file; give the folder that holds it")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text:
        raise SettingError(f"{what} {text!r}: there is no such folder")


def _explain(source: str | Path, what: str, error: BaseException) -> NoReturn:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    if Path(source).expanduser().is_dir():
        raise SettingError(f"{what} {source} cannot be loaded: {cause}") from error
    raise SettingError(
        f"{what} {source!s}: no such folder here, and as a hub name it could not be fetched "
        f"(is it spelt rightly, public, and the machine online?): {cause}"
    ) from error


def _quantization_options(quantization: str, dtype: str, device: str | torch.device | None) -> dict[str, Any]:
    if quantization not in ("8bit", "4bit"):
        raise SettingError(f"quantization must be 8bit or 4bit; got {quantization!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingError(f"quantization: {quantization} needs bitsandbytes: pip install 'amidkd[quantization]'")
    if not torch.cuda.is_available():
        raise SettingError(f"quantization: {quantization} needs a CUDA device, and there is none; leave it out")
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=_DTYPES.get(dtype, torch.bfloat16),
        )
    place = torch.cuda.current_device() if device is None else device
    return {"quantization_config": settings, "device_map": {"": place}}


def _with_adapter(model: Any, adapter: str | Path, *, merge: bool, quantized: bool) -> Any:
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
    except LOADING_ERRORS as error:
        _explain(adapter, "adapter", error)
    if merge and quantized:
        warn(
            "merge_adapter has no effect on a quantised model: merging would round the adapter away; it stays apart",
            SettingWarning,
            stacklevel=3,
        )
        return adapted
    return adapted.merge_and_unload() if merge else adapted
