"""The region encoder and the selector that `python -m finetune` trains, in one file, `heads.safetensors`.

heads = Heads.load(pocket_file("heads.safetensors"))
heads.encoder, heads.selector, heads.phrase_rows
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.mllm.selector import Selector
from assistant.pocket.region_encoder import RegionEncoder
from assistant.weights import read_weights


@dataclass
class Heads:
    """What stands on both sides of the pocket LLM.

    Attributes:
        encoder: Turns regions into input embeddings of the LLM.
        selector: Selects proposals by the LLM's states.
        phrase_rows: {phrase in lower case: row of `encoder.names`}, every form of each taught name; the first
            form of a row is its plain one.
        unspoken: The phrases that the language model was not taught to answer with.
    """

    encoder: RegionEncoder
    selector: Selector
    phrase_rows: dict[str, int]
    unspoken: frozenset[str] = frozenset()

    @classmethod
    def load(cls, file: Path) -> "Heads":
        """Load what `save` wrote, in evaluation mode.

        Raises:
            BadInput: The file cannot be read, is damaged, or was written for another model than the pocket
                preset's.
        """
        tensors, metadata = read_weights(file)
        if "forms" not in metadata:
            raise BadInput(f"{file} is not of the pocket preset; leave out --preset pocket and give --mllm")
        try:
            config = json.loads(metadata["selector"])
            phrase_rows = json.loads(metadata["forms"])
            unspoken = frozenset(json.loads(metadata.get("unspoken", "[]")))
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"cannot read the heads' description ({error}); fetch heads.safetensors again"
            ) from None
        selector = Selector(**config)
        selector.load_state_dict(tensors_under(tensors, "selector."))
        encoder = RegionEncoder(config["state_dim"], len(tensors["encoder.names"]))
        encoder.load_state_dict(tensors_under(tensors, "encoder."))
        return cls(encoder.eval(), selector.eval(), phrase_rows, unspoken)

    def save(self, file: Path) -> None:
        """Write them in half precision to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        tensors |= {f"selector.{k}": v for k, v in self.selector.state_dict().items()}
        metadata = {
            "selector": json.dumps(self.selector.config),
            "forms": json.dumps(self.phrase_rows),
            "unspoken": json.dumps(sorted(self.unspoken)),
        }
        with replace_whole(file) as path:
            save_file({k: v.half().contiguous() for k, v in tensors.items()}, path, metadata)


def tensors_under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with `prefix`, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
