"""How probes name the parameters that one-shot tuning trains, in files too.

layer_name(9, "q_proj.weight")          # "layers.9.q_proj.weight": of the attention of a layer
row_name(1834)                          # "rows.1834": the input embedding of a token
"""

from collections.abc import Mapping

from torch import Tensor

LAYER_PREFIX = "layers."
ROW_PREFIX = "rows."


def layer_name(layer: int, parameter: str) -> str:
    """The name of a parameter of a layer's attention module."""
    return f"{LAYER_PREFIX}{layer}.{parameter}"


def row_name(token: int) -> str:
    """The name of a token's input embedding."""
    return f"{ROW_PREFIX}{token}"


def tuned_layers(tuned: Mapping[str, Tensor]) -> list[tuple[int, str, Tensor]]:
    """(layer, name in its attention module, value) of the tuned parameters of attention, in their order."""
    layers = []
    for name, value in tuned.items():
        if name.startswith(LAYER_PREFIX):
            layer, _, parameter = name.removeprefix(LAYER_PREFIX).partition(".")
            layers.append((int(layer), parameter, value))
    return layers


def tuned_rows(tuned: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """{token: embedding} of the tuned input embeddings."""
    return {
        int(name.removeprefix(ROW_PREFIX)): value
        for name, value in tuned.items()
        if name.startswith(ROW_PREFIX)
    }
