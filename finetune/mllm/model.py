"""A multimodal LLM with LoRA and its selector as one module, and the losses that train both.

    model = LLMWithSelector(lora_model, selector, llm.seg, llm.abs)
    output = model(batch)                       # a batch of `finetune.mllm.batches.collate`
    loss = (output.sums / output.counts.clamp(min=1)).sum()

The losses are LLM-Seg's (arXiv 2404.08767): cross-entropy of the answers, KL of softmax(cosine / 0.05) to
softmax(IoU / 0.05), and the share of a proposal that lies inside the target. Absent targets add two:
presence, and the choice between [SEG] and [ABS].
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.mllm.selector import Scores, reachable, selection_losses
from assistant.mllm.trained import StandardisedSelector
from finetune.mllm.batches import INPUT_PREFIX, Batch


class Output(NamedTuple):
    """What the model makes of a batch of T answer tokens, M targets and N proposals.

    Attributes:
        sums: (5,) sum of each loss of `finetune.settings.LOSS_NAMES`.
        counts: (5,) int64, what each sum is to be divided by, over all parts of a step.
        scores: The selector's scores of the M targets, without gradient; None where M is 0.
        correct_words: Number of answer tokens that the LLM predicts as they are.
        correct_markers: Number of targets for which it prefers the right one of [SEG] and [ABS].
    """

    sums: Tensor
    counts: Tensor
    scores: Scores | None
    correct_words: Tensor
    correct_markers: Tensor


class LLMWithSelector(nn.Module):
    """The module that is trained.

    Args:
        llm: The multimodal LLM with LoRA.
        selector: Selects proposals.
        seg: Token id of [SEG].
        abs: Token id of [ABS].
        hard_negatives: Number of wrong proposals that count more, see `selection_losses`.
    """

    # peft's model hands other attributes on to the model of transformers, which type checkers cannot see.
    llm: Any

    def __init__(
        self, llm: nn.Module, selector: StandardisedSelector, seg: int, abs: int, hard_negatives: int = 0
    ):
        super().__init__()
        self.llm = llm
        self.selector = selector
        self.seg = seg
        self.abs = abs
        self.hard_negatives = hard_negatives
        # FSDP shards the weights of each of these layers separately. A model may list classes that it lacks
        # itself.
        existing = {type(module).__name__ for module in llm.modules()}
        self._no_split_modules = sorted(existing & set(getattr(llm, "_no_split_modules", None) or ()))

    def forward(self, batch: Batch) -> Output:
        """The losses of a batch, computed in the LLM's own precision."""
        with self.autocast():
            return self._losses(batch)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def autocast(self) -> AbstractContextManager:
        """The context in which everything is computed in the LLM's own precision."""
        weight = next(self.llm.get_input_embeddings().parameters())
        return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16)

    def _losses(self, batch: Batch) -> Output:
        logits, states, labels = self._answer_logits(batch)
        text = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        words = (labels != -100).sum()
        is_marker = (labels == self.seg) | (labels == self.abs)
        marker_logits = logits[is_marker]
        margins = marker_logits[:, self.seg] - marker_logits[:, self.abs]
        present = batch["present"]
        if len(margins) != len(present):
            raise ValueError(f"{len(margins)} markers for {len(present)} targets")
        correct_words = (logits.argmax(-1) == labels).sum().detach()
        correct_markers = ((margins > 0) == present).sum().detach()
        if len(present) == 0:
            sums, counts = self._sums_without_targets(batch, states, text, words)
            return Output(sums, counts, None, correct_words, correct_markers)
        features = batch["features"][batch["owner"]]
        scores = self.selector(states[is_marker], features, margins.detach(), batch["ignored"])
        losses = selection_losses(
            scores, batch["iou"], batch["iop"], present, batch["ignored"], self.hard_negatives
        )
        markers = F.binary_cross_entropy_with_logits(margins, present.float(), reduction="sum")
        alignable = reachable(present, batch["iou"]).sum()
        targets = torch.tensor(len(present), device=alignable.device)
        sums = torch.stack(
            [
                text,
                losses["align"] * alignable,
                losses["iop"] * targets,
                losses["presence"] * targets,
                markers,
            ]
        )
        counts = torch.stack([words, alignable, targets, targets, targets])
        detached = Scores(*(score.detach() for score in scores))
        return Output(sums, counts, detached, correct_words, correct_markers)

    def _answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The LLM over a batch, at the P positions where any conversation has an answer token.

        Only there the large output layer is computed.

        Returns:
            logits (B, P, vocabulary) float32, the states (B, P, width) that the output layer read, and labels
            (B, P) with -100 where a conversation has no answer token.
        """
        inputs = {
            name.removeprefix(INPUT_PREFIX): value
            for name, value in batch.items()
            if name.startswith(INPUT_PREFIX)
        }
        labels = batch["labels"][:, 1:]
        positions = (labels != -100).any(0).nonzero()[:, 0]
        states: list[Tensor] = []
        head = self.llm.get_output_embeddings()
        with head.register_forward_pre_hook(lambda _, args: states.append(args[0])):
            output = self.llm(**inputs, logits_to_keep=positions, use_cache=False)
        return output.logits.float(), states[-1], labels[:, positions]

    def _sums_without_targets(
        self, batch: Batch, states: Tensor, text: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums and counts of a batch without targets.

        It passes through the selector all the same, because every process must compute the same steps.
        """
        scores = self.selector(states[:1, 0], batch["features"][:1], text.new_zeros(1))
        zero = sum(score.sum() for score in scores) * 0
        sums = torch.stack([text, zero, zero, zero, zero])
        none = torch.zeros_like(words)
        return sums, torch.stack([words, none, none, none, none])
