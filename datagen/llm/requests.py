"""What is asked of a model: messages, and the JSON schema that the answer has to follow.

schema = object_schema("answer", numbers=NUMBERS)
request = Request([{"role": "user", "content": "Which numbers?"}], schema, seed=0)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Schema = dict[str, Any]
Message = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBERS: Schema = {"type": "array", "items": INTEGER}


def object_schema(title: str, **properties: Schema) -> Schema:
    """The JSON schema of an object with just these properties, all of them required."""
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_schema(items: Schema) -> Schema:
    """The JSON schema of a list of items."""
    return {"type": "array", "items": items}


@dataclass(frozen=True)
class Request:
    """One thing to ask a model.

    Attributes:
        messages: In the form of OpenAI's chat completions.
        schema: The JSON schema of the answer.
        seed: Another seed draws another answer.
        image: To be shown with the last message, which makes it a request to the multimodal model: a path or
            (H, W, 3) uint8 RGB.
    """

    messages: list[Message]
    schema: Schema
    seed: int
    image: Path | np.ndarray | None = None
