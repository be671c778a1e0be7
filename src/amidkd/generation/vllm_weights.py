"""How a vLLM server gets the weights of a student that is being trained."""

import importlib.util
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors.torch import save_file

from amidkd.config.policy import VllmEngine
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError
from amidkd.generation.vllm_http import RefusedError, VllmClient
from amidkd.models import checkpoint_weights
from amidkd.models.facts import base_of
from amidkd.record import atomic_folder

__all__ = ["DiskPush", "NcclPush", "NoPush", "WeightPush", "make_push"]

# Running requests are begun anew: their cached prefixes are of the old weights. Versions that do not know the option
# read over it.
_RESET = "/reset_prefix_cache?reset_running_requests=true"
_JOIN_SECONDS = 60.0
_NAME = "weights-for-vllm-step-"


class WeightPush(Protocol):
    """Brings weights to a server."""

    def push(self, version: int) -> None:
        """Make the server write with the model's weights as they are. One process calls it, while no other asks.

        Args:
            version: Optimizer steps made.
        """

    def hold(self, version: int) -> None:
        """Note that the server holds a version, whoever pushed it. Every process calls it."""

    def restore(self) -> None:
        """The server was away, hence may have lost what was pushed: see that it has it again, or refuse."""

    def close(self) -> None:
        """Let go of what was held."""


@final
class NoPush:
    """The writer does not change, such as a teacher."""

    def push(self, version: int) -> None:
        """Nothing to bring."""

    def hold(self, version: int) -> None:
        """Nothing to note."""

    def restore(self) -> None:
        """A server that was started anew has the same weights."""

    def close(self) -> None:
        """Nothing to let go of."""


@final
class DiskPush:
    """Weights go through a folder that both sides see: one a version, with adapters merged in.

    Every run needs a folder of its own, since what an older version left there is removed. It takes a server with
    ``VLLM_SERVER_DEV_MODE=1`` whose ``reload_weights`` takes a path.

    Args:
        client: The server.
        model: The student, not wrapped for distribution.
        folder: The folder, as both sides see it.
    """

    def __init__(self, client: VllmClient, *, model: Any, folder: Path) -> None:
        self._client, self._model = client, model
        self._folder = folder.absolute()
        self._held: Path | None = None
        self._pushes = False

    def push(self, version: int) -> None:
        """Write the folder of this version, have the server read it, remove older ones."""
        path = self._path(version)
        self._pushes = True
        weights = {name: tensor.contiguous() for name, tensor in checkpoint_weights(self._model).items()}
        with atomic_folder(path) as temporary:
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            base_of(self._model).config.save_pretrained(temporary)
        self._load(path, self._client.post)
        self._remove(path)

    def hold(self, version: int) -> None:
        """The version to read again where the server was away."""
        self._held = self._path(version)

    def restore(self) -> None:
        """Have the server read the held version again: it may be a new process with its first weights."""
        if self._held is not None:
            self._load(self._held, self._client.post_inside)

    def close(self) -> None:
        """Remove what was written; a run that goes on writes it anew."""
        if self._pushes:
            self._remove(None)

    def _remove(self, keep: Path | None) -> None:
        for name in (f"{_NAME}*", f".{_NAME}*"):
            for path in self._folder.glob(name):
                if path != keep:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, version: int) -> Path:
        # A name for each version: no cache of names, pages or file handles can then give older weights.
        return self._folder / f"{_NAME}{version}"

    def _load(self, path: Path, post: Callable[[str, dict[str, Any] | None], Any]) -> None:
        try:
            post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
            _check_reset(post(_RESET, None))
        except RefusedError as error:
            raise _explained(error) from error


@final
class NcclPush:
    """Weights go from GPU to GPU over NCCL, through the server's own weight transfer.

    Needs CUDA, vLLM in this environment too (its communicator), and a server on other GPUs, started with
    ``VLLM_SERVER_DEV_MODE=1`` and ``--weight-transfer-config '{"backend": "nccl"}'`` (vLLM 0.17 or later).
    Not run so far: neither GPU nor vLLM was at hand when it was written.

    Args:
        client: The server.
        model: The student, on a CUDA device.

    Raises:
        SettingError: No CUDA device, or no vLLM.
    """

    def __init__(self, client: VllmClient, *, model: Any) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise SettingError(
                f"engine.weight_push: nccl needs the student on a CUDA device, and it is on {device}; take disk"
            )
        if importlib.util.find_spec("vllm") is None:
            raise SettingError("engine.weight_push: nccl needs vLLM here too: pip install 'amidkd[vllm]'; or take disk")
        self._client, self._model, self._device = client, model, device
        self._group: Any = None

    def push(self, version: int) -> None:
        """Broadcast every weight, in the order in which it is announced."""
        weights = {name: tensor.contiguous() for name, tensor in checkpoint_weights(self._model).items()}
        info = {
            "names": list(weights),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
            "shapes": [list(tensor.shape) for tensor in weights.values()],
        }
        try:
            if self._group is None:
                self._join()
            self._frame("/start_weight_update", {"is_checkpoint_format": True})
            self._both("/update_weights", {"update_info": info}, lambda: self._broadcast(list(weights.values())))
            self._frame("/finish_weight_update", {})
            _check_reset(self._client.post(_RESET, None))
        except RefusedError as error:
            raise _explained(error) from error

    def hold(self, version: int) -> None:
        """Nothing to note: what was sent cannot be sent again by others."""

    def restore(self) -> None:
        """A server that is a new process is outside the NCCL group, with its first weights.

        Raises:
            GenerationError: Always.
        """
        raise GenerationError(
            f"vLLM at {self._client.url} was away and may have lost the student's weights, which came over NCCL; "
            "see that it runs, then resume"
        )

    def close(self) -> None:
        """Leave the NCCL group."""
        self._group = None

    def _join(self) -> None:
        answer = self._client.get("/get_world_size")
        workers = answer.get("world_size") if isinstance(answer, dict) else None
        if not isinstance(workers, int) or workers < 1:
            raise GenerationError(f"vLLM at {self._client.url}: /get_world_size gave {answer!r}, no number of workers")
        address = _own_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
        info = {"master_address": address, "master_port": port, "rank_offset": 1, "world_size": workers + 1}
        found: list[Any] = []
        self._both(
            "/init_weight_transfer_engine",
            {"init_info": info},
            lambda: found.append(_communicator(address, port, workers + 1, self._device)),
        )
        (self._group,) = found

    def _broadcast(self, tensors: list[torch.Tensor]) -> None:
        stream = torch.cuda.current_stream(self._device)
        for tensor in tensors:
            self._group.broadcast(tensor, src=0, stream=stream)
        stream.synchronize()

    def _frame(self, path: str, body: dict[str, Any]) -> None:
        """What stands around an update; older servers have no such page, and need none."""
        try:
            self._client.post(path, body, once=True)
        except RefusedError as error:
            if error.status != 404:
                raise

    def _both(self, path: str, body: dict[str, Any], own: Callable[[], Any]) -> None:
        """The server's side and ours at once: each waits for the other.

        NCCL cannot be interrupted, so it has the side thread: where the server fails, that is what is raised, and the
        thread ends with the process.
        """
        failures: list[BaseException] = []

        def run() -> None:
            try:
                torch.cuda.set_device(self._device)
                own()
            except BaseException as error:
                failures.append(error)

        side = threading.Thread(target=run, daemon=True)
        side.start()
        self._client.post(path, body, once=True)
        side.join(_JOIN_SECONDS)
        if failures or side.is_alive():
            cause = failures[0] if failures else "no end within a minute of the server's"
            raise GenerationError(f"vLLM at {self._client.url}: {path}: this side of NCCL failed: {cause}")


def make_push(engine: VllmEngine, client: VllmClient, *, model: Any, run_folder: Path) -> DiskPush | NcclPush | NoPush:
    """The way that a run file asks for.

    Raises:
        SettingError: It cannot be gone here.
    """
    if engine.weight_push == "none":
        return NoPush()
    if engine.weight_push == "nccl":
        return NcclPush(client, model=model)
    folder = run_folder / "server_weights" if engine.weight_folder is None else Path(engine.weight_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"engine.weight_folder: {folder} cannot be made ({error}); name another") from error
    return DiskPush(client, model=model, folder=folder)


def _communicator(address: str, port: int, world: int, device: torch.device) -> Any:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=address, port=port, rank=0, world_size=world)
    return PyNcclCommunicator(group, device=device)


def _own_address() -> str:
    """The address under which others reach this machine."""
    from vllm.utils.network_utils import get_ip

    return str(get_ip())


def _check_reset(answer: Any) -> None:
    """Newer servers say whether their cache of prefixes is empty; older ones say nothing."""
    if isinstance(answer, dict) and answer.get("success") is False:
        raise GenerationError("vLLM could not empty its prefix cache after new weights came; stop its other users")


def _explained(error: RefusedError) -> GenerationError:
    if error.status != 404:
        return error
    return GenerationError(f"{error}. New weights need a server started with VLLM_SERVER_DEV_MODE=1")
