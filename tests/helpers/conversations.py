"""Conversations with images in every place where they can stand."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import skimage.data

from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM

WIDE_IMAGE = skimage.data.coffee()[::8, ::4]
TALL_IMAGE = skimage.data.astronaut()[::4, ::8]
ANSWER = "The cup [SEG]; I see no bench [ABS]."
CONVERSATIONS = {
    "no image": [Turn("What is it?")],
    "one image": [Turn("What keeps the rain off?", images=[TALL_IMAGE])],
    "images in two turns": [
        Turn("Which?", "The red car [SEG].", [WIDE_IMAGE, TALL_IMAGE]),
        Turn("And here?", images=[WIDE_IMAGE]),
    ],
    "an image that comes later": [
        Turn("Are you there?", "I see no picture [ABS]."),
        Turn("Now?", images=[TALL_IMAGE]),
    ],
}


@contextmanager
def recorded_generation(llm: MultimodalLLM) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """Records of each call of the model's `generate` the inputs and the sequences that it returns."""
    generate = llm.model.generate
    calls = []

    def recorded(**inputs):
        output = generate(**inputs)
        calls.append((inputs, output.sequences))
        return output

    llm.model.generate = recorded
    try:
        yield calls
    finally:
        del llm.model.generate
