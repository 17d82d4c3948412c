"""The sentence encoder of the pocket preset: all-MiniLM-L6-v2, frozen. It compares texts by their meaning.

    encoder = SentenceEncoder.load(minilm_folder())
    vectors = encoder(["what keeps the rain off?", "an umbrella"])      # (2, 384) unit vectors
    vectors @ vectors.T                                                 # cosines

A question takes a few milliseconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 384  # of a vector
MAX_TOKENS = 128  # of a text; what follows is not read
BATCH_SIZE = 64


class SentenceEncoder:
    """Encodes texts.

    Args:
        model: A `BertModel`.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> "SentenceEncoder":
        """Load it from a transformers folder; see `wheels.minilm_folder`."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, WIDTH) float32 unit vectors: the mean over the tokens of each."""
        vectors = [
            self._encode_batch(list(texts[start : start + BATCH_SIZE]))
            for start in range(0, len(texts), BATCH_SIZE)
        ]
        return torch.cat(vectors) if vectors else torch.zeros(0, WIDTH)

    def _encode_batch(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
