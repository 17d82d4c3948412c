"""A pretended GPU for tests: tensors that say they are on cuda:0 while their values are on the CPU.

    with PretendedGpu():
        model = on_gpu(model)
        model(pixels.to("cuda"))        # runs
        model(pixels)                   # raises MixedDevices: a GPU refuses this

What is refused here is refused by every GPU: operations that mix tensors of both devices, `.numpy()` of a
GPU tensor, and indices on the GPU for a tensor on the CPU. A 0-dimensional CPU tensor may be mixed in, as
on a GPU. While the context is active

- `torch.inference_mode` behaves as `torch.no_grad`, since tensor subclasses cannot be made in inference mode;
- `torch.cuda` tells of one card of 8 GB that computes in bfloat16;
- `from_pretrained` of transformers loads to the CPU, then moves the model to where `device_map` says.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
# Their operands may be on different devices: indices on the CPU are copied to the GPU.
INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}
# They return a Python number, from whatever device.
READING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}
COPYING = {"aten::_to_copy", "aten::to"}
CARD_BYTES = 8 * 2**30  # of the pretended card


class MixedDevices(RuntimeError):
    """What a GPU would refuse."""


class GpuTensor(torch.Tensor):
    """A tensor on the pretended GPU; `values` holds what it contains, on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "GpuTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=torch.device("meta"),
            requires_grad=values.requires_grad,
        )
        made.values = values.detach() if values.requires_grad else values
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def data(self) -> torch.Tensor:
        return GpuTensor(self.values)

    @data.setter
    def data(self, new: "GpuTensor") -> None:
        torch.Tensor.data.__set__(self, new)  # its shape and dtype
        self.values = new.values

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __repr__(self) -> str:
        return f"GpuTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return self.values.__reduce_ex__(protocol)  # read back on the CPU, as by map_location="cpu"

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied: torch.Tensor = GpuTensor(self.values.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        elif self.is_leaf:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


def names_gpu(device: Any) -> bool:
    """Whether a `device` argument names the pretended GPU (wrapper tensors are made on "meta")."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


def without_gpu(value: Any) -> Any:
    """An argument of an operation as the CPU can take it."""
    if isinstance(value, GpuTensor):
        return value.values
    if isinstance(value, torch.device) and names_gpu(value):
        return CPU
    return value


def run(func, args: tuple, kwargs: dict) -> Any:
    """Run one operation on the values, and decide on which device a GPU would have put its result."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    on_gpu_too = any(isinstance(tensor, GpuTensor) for tensor in tensors)
    name, device = func._schema.name, kwargs.get("device")
    options = kwargs | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    plain_args, plain_kwargs = tree_map(without_gpu, args), tree_map(without_gpu, options)
    if name == "aten::copy_":
        without_gpu(args[0]).copy_(plain_args[1])
        return args[0]
    if name == "aten::_fused_sdp_choice":
        return 0  # the plain implementation of attention
    if name in READING:
        return func(*plain_args, **plain_kwargs)
    if on_gpu_too and name not in COPYING:
        refuse_mixed(name, args, tensors)
    result = func(*plain_args, **plain_kwargs)
    to_gpu = on_gpu_too if device is None else names_gpu(device)
    return wrapped(result, tensors) if to_gpu else result


def refuse_mixed(name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise MixedDevices for operands that a GPU does not take together."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor) and tensor.dim() > 0]
    if name in INDEXING:
        if not isinstance(args[0], GpuTensor):
            raise MixedDevices(f"{name}: indices on {GPU} for a tensor on the cpu")
        written = args[2] if len(args) > 2 else None
        on_cpu = [tensor for tensor in on_cpu if tensor is written]
    if on_cpu and name != "aten::tensor_split":
        shapes = [
            f"{tuple(tensor.shape)} {tensor.dtype} on {'cuda:0' if isinstance(tensor, GpuTensor) else 'cpu'}"
            for tensor in tensors
        ]
        raise MixedDevices(f"{name}: {', '.join(shapes)}")


def wrapped(result: Any, tensors: list[torch.Tensor]) -> Any:
    """The result on the GPU; an operation in place returns the tensor that it was given."""
    known = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not isinstance(value, GpuTensor):
            return known.get(id(value)) if id(value) in known else GpuTensor(value)
        return value

    return tree_map(wrap, result)


class GpuFunctions(TorchFunctionMode):
    """The calls that do not arrive at the dispatcher: making tensors, reading them, indexing with lists."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if suspended.depth:
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and names_gpu(kwargs.get("device")):
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
            return GpuTensor(func(*tree_map(without_gpu, args), **kwargs))
        name = getattr(func, "__name__", "")
        if name in ("to", "cuda"):  # without an index torch would ask the driver which GPU is the current one
            args, kwargs = tree_map(with_index, (args, kwargs))
            if name == "cuda":
                return args[0].to(GPU)
        if not (args and isinstance(args[0], GpuTensor)):
            return func(*args, **kwargs)
        if name in ("numpy", "__array__"):
            raise MixedDevices("a tensor on cuda:0 cannot become a numpy array; call .cpu() first")
        if name in ("tolist", "item", "__int__", "__float__", "__bool__", "__index__"):
            return getattr(args[0].values, name)()
        if name == "get_device":
            return GPU.index
        if name in ("__getitem__", "__setitem__"):
            index = args[1]
            index = tuple(map(list_to_gpu, index)) if isinstance(index, tuple) else list_to_gpu(index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


def with_index(value: Any) -> Any:
    """The device "cuda" as "cuda:0"; anything else as it is."""
    if (
        isinstance(value, str)
        and value.startswith("cuda")
        or isinstance(value, torch.device)
        and value.type == "cuda"
    ):
        return GPU
    return value


def list_to_gpu(index: Any) -> Any:
    """A list of indices as a tensor on the GPU, which is where torch would put it."""
    return (
        GpuTensor(torch.tensor(index, dtype=None if index else torch.long))
        if isinstance(index, list)
        else index
    )


class GpuOperations(TorchDispatchMode):
    """The operations that no GpuTensor takes part in, such as `torch.zeros(3, device="cuda")`."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if suspended.depth:
            return func(*args, **(kwargs or {}))
        return run(func, args, kwargs or {})


class Suspension:
    """While entered, the two modes above leave everything to torch, whose "meta" is then a device again."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *error: object) -> None:
        self.depth -= 1


suspended = Suspension()


@contextlib.contextmanager
def PretendedGpu() -> Iterator[None]:
    """While active, "cuda" names a device that refuses what a GPU refuses."""
    from accelerate.state import AcceleratorState
    from transformers import PreTrainedModel

    patches: list[tuple[Any, str, Any]] = [
        (torch.nn.Module, "to", moving(torch.nn.Module.to)),
        (PreTrainedModel, "from_pretrained", loading(PreTrainedModel.from_pretrained.__func__)),
        (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
        *((torch.inference_mode, name, method) for name, method in inference_mode_methods().items()),
        *((torch.cuda, name, answer) for name, answer in card().items()),
    ]
    with contextlib.ExitStack() as stack:
        # accelerate remembers for the whole process on which device it runs: neither ours nor an earlier one.
        AcceleratorState._reset_state(reset_partial_state=True)
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        for owner, name, replacement in patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(GpuFunctions())
        stack.enter_context(GpuOperations())
        yield


def inference_mode_methods() -> dict[str, Callable[..., None]]:
    """The methods of `torch.inference_mode` that make it behave as `torch.no_grad`."""
    contexts: list[Any] = []

    def enter(self: Any) -> None:
        contexts.append(torch.no_grad() if self.mode else torch.enable_grad())
        contexts[-1].__enter__()

    def leave(self: Any, *error: Any) -> None:
        contexts.pop().__exit__(*error)

    return {"__enter__": enter, "__exit__": leave}


def moving(module_to: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """`Module.to`, which also knows the pretended GPU."""

    def move(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or not names_gpu(device):
            return module_to(self, *args, **kwargs)
        return on_gpu(self if dtype is None else module_to(self, dtype))

    return move


def loading(from_pretrained: Callable[..., Any]) -> classmethod:
    """`PreTrainedModel.from_pretrained`, which also knows the pretended GPU."""

    def load(cls: Any, *args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        to_gpu = "auto" in devices or any(names_gpu(device) for device in devices)
        with suspended:
            loaded = from_pretrained(cls, *args, **kwargs)
        for model in loaded if isinstance(loaded, tuple) else (loaded,):
            if to_gpu and isinstance(model, torch.nn.Module):
                on_gpu(model)
        return loaded

    return classmethod(load)


def card() -> dict[str, Any]:
    """What `torch.cuda` tells of the pretended card."""
    properties = SimpleNamespace(name="a pretended GPU", total_memory=CARD_BYTES, major=9, minor=0)
    return {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device": lambda device: contextlib.nullcontext(),
        "device_count": lambda: 1,
        "current_device": lambda: GPU.index,
        "set_device": lambda device: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "mem_get_info": lambda *_: (CARD_BYTES, CARD_BYTES),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "manual_seed_all": lambda seed: None,
    }


def on_gpu(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module's parameters and buffers to the pretended GPU; tied parameters stay tied."""
    moved: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter.data, GpuTensor):
                if id(parameter) not in moved:
                    moved[id(parameter)] = torch.nn.Parameter(
                        GpuTensor(parameter.data), parameter.requires_grad
                    )
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, GpuTensor):
                part._buffers[name] = GpuTensor(buffer)
    return module
