"""Conversations about images as batches of tensors.

    read_batch = BatchReader(llm, regions_of)
    batch = read_batch([mixture.conversation(k) for k in numbers])
    batch["input input_ids"], batch["labels"]      # (B, L) each
    batch["features"], batch["iou"]                # (P, N, R) of P images, (M, N) of M targets

A reader holds no weights, so that the worker processes of a DataLoader may copy it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from assistant.grammar import Turn
from assistant.images import open_image
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.teacher_forcing import force_conversation
from finetune.image_record import ImageRecord
from finetune.mllm.mixture import Mixture
from finetune.region_cache import ImageRegions, iou_and_iop

Batch = dict[str, Tensor]

INPUT_PREFIX = "input "  # of the names of the LLM's inputs in a batch
MAX_OPEN_IMAGES = 8  # that a reader keeps for the next batch


@dataclass
class EncodedConversation:
    """A conversation about P images with M targets.

    Attributes:
        inputs: Inputs of the LLM, a batch of one.
        labels: (1, L) int64, -100 where nothing is learned.
        features: For each image, its proposals' features (N, R).
        owner: For each target, the index of its image.
        present: For each target, whether it is in the image.
        iou: For each target, (N,) IoU of its image's proposals with it.
        iop: For each target, (N,) share of each proposal that lies inside it.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    features: list[Tensor]
    owner: list[int] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    iou: list[np.ndarray] = field(default_factory=list)
    iop: list[np.ndarray] = field(default_factory=list)


def encode_conversation(
    llm: MultimodalLLM,
    questions: Sequence[ImageRecord],
    regions_of: Callable[[Path], ImageRegions],
    open_image: Callable[[Path], np.ndarray],
) -> EncodedConversation:
    """Encode the questions and answers of a conversation, and the targets that the model learns to point at.

    Args:
        llm: Its processor and chat template are used, not its weights.
        questions: In order. Earlier turns that a record brings are read, but not learned.
        regions_of: Gives the regions of an image file.
        open_image: Reads an image file as (H, W, 3) uint8 RGB.
    """
    turns: list[Turn] = []
    images: list[Path] = []
    owners: list[int | None] = []  # for each turn, the index of its image; None where it is not learned
    for question in questions:
        new_images = []
        if not images or images[-1] != question.image:
            images.append(question.image)
            new_images = [open_image(question.image)]
        record = question.record
        for turn in (*record.history, Turn(record.question, record.answer)):
            turns.append(Turn(turn.question, turn.answer, new_images))
            new_images = []
            owners.append(None)
        owners[-1] = len(images) - 1
    forced = force_conversation(llm, turns, [owner is not None for owner in owners])
    regions = [regions_of(image) for image in images]
    encoded = EncodedConversation(dict(forced.inputs), forced.labels, [r.features for r in regions])
    learned_turns = [
        (owner, learned) for owner, learned in zip(owners, forced.learned, strict=True) if owner is not None
    ]
    for question, (owner, learned) in zip(questions, learned_turns, strict=True):
        if learned:
            _add_targets(encoded, question, owner, regions[owner])
    return encoded


def _add_targets(
    encoded: EncodedConversation, question: ImageRecord, owner: int, regions: ImageRegions
) -> None:
    """Add the targets of a question about the image `owner`, with their overlaps with its regions."""
    for target in question.record.targets:
        if target.rle:
            iou, iop = iou_and_iop(regions.rles, target.rle)
        else:
            iou = iop = np.zeros(len(regions.rles), np.float32)
        encoded.owner.append(owner)
        encoded.present.append(target.rle is not None)
        encoded.iou.append(iou)
        encoded.iop.append(iop)


def collate(conversations: Sequence[EncodedConversation], pad_token: int) -> Batch:
    """Join B conversations of P images and M targets in all into one batch.

    Args:
        conversations: What to join.
        pad_token: Token id with which shorter texts are padded on the right.

    Returns:
        "input NAME": the LLM's inputs; "labels" (B, L) int64; "features" (P, N, R), padded to the largest
        number of proposals; "owner" (M,) int64, the image of each target; "present" (M,) bool; "iou" and
        "iop" (M, N) float32; "ignored" (M, N) bool, True where a target's image has no such proposal.
    """
    batch: Batch = {}
    for name in dict.fromkeys(name for c in conversations for name in c.inputs):
        values = [c.inputs[name] for c in conversations if name in c.inputs]
        batch[INPUT_PREFIX + name] = pad_and_concatenate(values, pad_token if name == "input_ids" else 0)
    batch["labels"] = pad_and_concatenate([c.labels for c in conversations], -100)
    images = [features for c in conversations for features in c.features]
    count = max(max((len(features) for features in images), default=0), 1)
    batch["features"] = torch.stack(
        [F.pad(features, (0, 0, 0, count - len(features))) for features in images]
    )
    first_image = np.cumsum([0, *(len(c.features) for c in conversations)])
    owner = [int(first_image[i]) + o for i, c in enumerate(conversations) for o in c.owner]
    batch["owner"] = torch.tensor(owner, dtype=torch.long)
    batch["present"] = torch.tensor([p for c in conversations for p in c.present], dtype=torch.bool)
    batch["iou"] = _padded_rows([row for c in conversations for row in c.iou], count)
    batch["iop"] = _padded_rows([row for c in conversations for row in c.iop], count)
    sizes = torch.tensor([len(features) for features in images])
    batch["ignored"] = torch.arange(count) >= sizes[batch["owner"]][:, None]
    return batch


def _padded_rows(rows: Sequence[np.ndarray], count: int) -> Tensor:
    """M rows of different lengths as (M, count), padded with 0."""
    if not rows:
        return torch.zeros(0, count)
    return torch.stack([F.pad(torch.from_numpy(row), (0, count - len(row))) for row in rows])


def pad_and_concatenate(tensors: Sequence[Tensor], value: float) -> Tensor:
    """Tensors concatenated along the first dimension, padded at the end of the others to the largest size.

    A processor's outputs for two conversations differ in their length and in the number and size of their
    images.
    """
    largest = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    padded = []
    for tensor in tensors:
        missing = [large - size for large, size in zip(largest, tensor.shape[1:], strict=True)]
        # F.pad counts from the last dimension and wants (before, after) of each.
        padding = [side for extra in reversed(missing) for side in (0, extra)]
        padded.append(F.pad(tensor, padding, value=value))
    return torch.cat(padded)


class BatchReader:
    """Turns conversations into a batch.

    Args:
        llm: Its processor and chat template are used; its weights are left behind.
        regions_of: Gives the regions of an image file.
    """

    def __init__(self, llm: MultimodalLLM, regions_of: Callable[[Path], ImageRegions]):
        dtype = next(llm.model.get_input_embeddings().parameters()).dtype
        table = torch.nn.Embedding(1, 1, dtype=dtype)
        self._llm = copy.copy(llm)
        # Encoding asks the model for the device and the precision of its inputs only.
        self._llm.model = SimpleNamespace(get_input_embeddings=lambda: table)
        pad_token = llm.tokenizer.pad_token_id
        self._pad_token = llm.end_tokens[0] if pad_token is None else pad_token
        self._regions_of = regions_of
        self._open_image = lru_cache(maxsize=MAX_OPEN_IMAGES)(open_image)

    def __call__(self, conversations: Sequence[Sequence[ImageRecord]]) -> Batch:
        """The batch of some conversations, see `collate`."""
        encoded = [
            encode_conversation(self._llm, questions, self._regions_of, self._open_image)
            for questions in conversations
        ]
        return collate(encoded, self._pad_token)


class PartDataset(Dataset):
    """The parts of steps that one process computes, each read as a batch of `micro` conversations.

    Args:
        mixture: Gives the conversations of a step.
        parts: (step, number of the part in the step) of each item.
        batch: Conversations per step.
        micro: Conversations per part.
        read_batch: Reads the conversations.
    """

    def __init__(
        self,
        mixture: Mixture,
        parts: Sequence[tuple[int, int]],
        batch: int,
        micro: int,
        read_batch: Callable[[Any], Batch],
    ):
        self.mixture = mixture
        self.parts = parts
        self.batch = batch
        self.micro = micro
        self.read_batch = read_batch

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, n: int) -> Batch:
        step, part = self.parts[n]
        numbers = self.mixture.batch(step, self.batch)[part * self.micro : (part + 1) * self.micro]
        return self.read_batch([self.mixture.conversation(k) for k in numbers])
