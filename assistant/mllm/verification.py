"""Verification: each mask that a model selected is shown to it again, alone, to be kept or dropped.

    answers = Verifier(model, question, "cup", opened, options).verify(selection)

The model sees the image with the mask outlined, and a crop around it.
"""

from typing import Any, NamedTuple

import numpy as np

from assistant.grammar import Turn
from assistant.mllm.grounding_prompts import KEEP_SCHEMA, VERIFICATION_PROMPT
from assistant.mllm.set_of_mark import draw_sheet
from assistant.mllm.structured_answer import StructuredAnswer, StructuredModel, probabilities, read_json
from assistant.pipeline import Selection
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import tight_box

MAX_VERIFIED_MASKS = 8  # of one target; the others are kept
MIN_CROP_MARGIN = 16  # px around the mask


class _Verdict(NamedTuple):
    """What a model says of a mask.

    Attributes:
        keep: Whether it keeps the mask.
        probability: In [0, 1], that it does.
        answer: Its answer.
    """

    keep: bool
    probability: float
    answer: StructuredAnswer


class Verifier:
    """Verifies the masks of one target.

    Args:
        model: Is asked about each mask.
        question: What the user asked.
        phrase: What the model called the target.
        opened: The image.
        options: Of `StructuredModel.ask`.
    """

    def __init__(
        self,
        model: StructuredModel,
        question: str,
        phrase: str,
        opened: SamOpenedImage,
        options: dict[str, Any],
    ):
        self.model = model
        self.prompt = f"The user asked: {question}\nThe answer names: {phrase}\nIs this it?"
        self.opened = opened
        self.options = options

    def verify(self, selection: Selection) -> list[StructuredAnswer]:
        """Drop from a selection the masks that the model no longer means.

        The selection's confidence becomes at most the highest probability of "keep" among the masks that were
        kept, or among all where none was.

        Returns:
            The answers of the model.
        """
        verdicts: list[_Verdict] = []

        def is_kept(mask: np.ndarray) -> bool:
            verdicts.append(self._ask(mask))
            return verdicts[-1].keep

        proposals = self.opened.proposals
        selection.proposals = [
            i
            for k, i in enumerate(selection.proposals)
            if k >= MAX_VERIFIED_MASKS or is_kept(proposals.mask(i))
        ]
        if selection.mask is not None and not is_kept(selection.mask):
            selection.mask = None
        if verdicts:
            kept = [verdict.probability for verdict in verdicts if verdict.keep]
            highest = max(kept or [verdict.probability for verdict in verdicts])
            selection.confidence = min(selection.confidence, highest)
        return [verdict.answer for verdict in verdicts]

    def _ask(self, mask: np.ndarray) -> _Verdict:
        """Ask the model about a mask (H, W) bool."""
        images = [self.model.image_fit.fit(image) for image in outlined_images(self.opened.image, mask)]
        answer = self.model.ask(
            [Turn(self.prompt, images=images)], VERIFICATION_PROMPT, KEEP_SCHEMA, **self.options
        )
        value = read_json(answer.text)
        # An unclear answer drops nothing.
        keep = not (isinstance(value, dict) and value.get("keep") is False)
        written = probabilities(answer, rb'"keep"\s*:\s*', lambda byte: byte == b"t")
        probability = written[0] if written and written[0] is not None else float(keep)
        return _Verdict(keep, probability, answer)


def outlined_images(image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """A mask as the model is shown it.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.

    Returns:
        The image with the mask outlined, and a crop that leaves half the mask's size around it.
    """
    box = tight_box(mask)
    assert box is not None, "an empty mask cannot be verified"
    x0, y0, x1, y1 = box
    margin = max(MIN_CROP_MARGIN, (y1 - 1 - y0) // 2, (x1 - 1 - x0) // 2)
    crop = (slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin))
    return [
        draw_sheet(image, [(None, mask)]),
        draw_sheet(np.ascontiguousarray(image[crop]), [(None, mask[crop])]),
    ]
