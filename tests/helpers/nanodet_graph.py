"""A detector in the layout of the published one: a graph of TensorFlow.js, and its weights in half precision.

write_nanodet_graph(Detector().state_dict(), folder / "nanodet.json")
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

# The convolutions in the order of the published graph.
ORDER = (
    "stem.0",
    "stages.0.entry.0 stages.0.units.0.first.0 stages.0.units.0.second.0 stages.0.exit.0",
    "stages.1.entry.0 stages.1.units.0.first.0 stages.1.units.0.second.0",
    "stages.1.units.1.first.0 stages.1.units.1.second.0 stages.1.exit.0 laterals.0",
    "stages.2.entry.0 stages.2.units.0.first.0 stages.2.units.0.second.0",
    "stages.2.units.1.first.0 stages.2.units.1.second.0 stages.2.exit.0 laterals.1",
    "stages.3.entry.0 stages.3.units.0.first.0 stages.3.units.0.second.0",
    "stages.3.units.1.first.0 stages.3.units.1.second.0",
    "stages.3.units.2.first.0 stages.3.units.2.second.0 stages.3.exit.0 laterals.2",
    "heads.0.0 heads.1.0 outputs.0 heads.2.0 outputs.1 outputs.2",
)


def write_nanodet_graph(state: Mapping[str, Tensor], file: Path) -> None:
    """Write FILE and the weights beside it, as FILE's name with the suffix .bin."""
    nodes, entries, data = [], [], b""
    for name in " ".join(ORDER).split():
        kernel = state[f"{name}.weight"].numpy().transpose(2, 3, 1, 0)  # TensorFlow: h, w, in, out
        bias = state[f"{name}.bias"].numpy()
        for part, values in (("kernel", kernel), ("bias", bias)):
            entries.append(
                {
                    "name": f"{name}/{part}",
                    "shape": list(values.shape),
                    "dtype": "float32",
                    "quantization": {"dtype": "float16", "original_dtype": "float32"},
                }
            )
            data += values.astype(np.float16).tobytes()
            nodes.append({"name": f"{name}/{part}", "op": "Const", "input": []})
        nodes += [
            {"name": name, "op": "Conv2D", "input": ["x", f"{name}/kernel"]},
            {"name": f"{name}/moved", "op": "Transpose", "input": [name, "order"]},
            {"name": f"{name}/sum", "op": "Add", "input": [f"{name}/moved", f"{name}/bias"]},
        ]
    weights = file.with_suffix(".bin")
    manifest = [{"paths": [weights.name], "weights": entries}]
    file.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(data)
    file.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}))
