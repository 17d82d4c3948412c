"""A multimodal LLM with LoRA and its selector as one module, what it reads, and what it loses.

    student = Student(reasoner, selector, lora_settings)
    batch = collate([example(reasoner, turns, regions_of), ...], pad)
    sums, counts = student(batch)           # of each loss, to be divided by the counts of the whole step

Losses as LLM-Seg's (arXiv 2404.08767): cross-entropy of the answers, KL of softmax(cosine / .05) to softmax(IoU / .05),
the share of a proposal inside the target; and, for what is not there, presence and the choice between [SEG] and [ABS].
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.selector import Scores, reachable, selection_losses
from assistant.mllm.trained import StandardisedSelector
from finetune.mllm.mixture import Asked
from finetune.region_cache import overlaps


@dataclass
class Example:
    """A conversation, read. Of its K targets: which of its P pictures they are in, which are there, and their overlaps."""

    inputs: dict[str, Tensor]
    labels: Tensor  # (1, L)
    features: list[Tensor]  # P of (N, R)
    owner: list[int]  # K
    present: list[bool]  # K
    iou: list[np.ndarray]  # K of (N,)
    iop: list[np.ndarray]  # K of (N,)


def example(llm: MultimodalLLM, asked: list[Asked], regions_of, open_image) -> Example:
    """regions_of, open_image: functions of a picture's path."""
    turns, images, owners = [], [], []
    for one in asked:
        shown = []
        if not images or images[-1] != one.image:
            images.append(one.image)
            shown = [open_image(one.image)]
        for turn in (*one.record.history, Turn(one.record.question, one.record.answer)):
            turns.append(Turn(turn.question, turn.answer, shown))
            shown = []
            owners.append(None)  # what was said before is read, not learned
        owners[-1] = len(images) - 1
    inputs, labels, learned = llm.conversation(turns, [o is not None for o in owners])
    learned, owners = zip(*((taught, o) for taught, o in zip(learned, owners) if o is not None))
    regions = [regions_of(image) for image in images]
    out = Example(dict(inputs), labels, [r.features for r in regions], [], [], [], [])
    for one, owner, taught in zip(asked, owners, learned):
        for target in one.record.targets if taught else ():
            rles = regions[owner].rles
            both = overlaps(rles, target.rle) if target.rle else (np.zeros(len(rles), np.float32),) * 2
            out.owner.append(owner), out.present.append(target.rle is not None)
            out.iou.append(both[0]), out.iop.append(both[1])
    return out


def collate(examples: list[Example], pad_token: int) -> dict[str, Tensor]:
    """One batch: texts padded on the right, pictures one after the other, each target with its picture's proposals."""
    batch = {
        f"input {name}": joined(
            [e.inputs[name] for e in examples if name in e.inputs], pad_token if name == "input_ids" else 0
        )
        for name in dict.fromkeys(n for e in examples for n in e.inputs)
    }
    batch["labels"] = joined([e.labels for e in examples], -100)
    pictures = [f for e in examples for f in e.features]
    most = max(max((len(f) for f in pictures), default=0), 1)
    batch["features"] = torch.stack([F.pad(f, (0, 0, 0, most - len(f))) for f in pictures])
    first = np.cumsum([0, *(len(e.features) for e in examples)])
    owner = [int(first[i]) + o for i, e in enumerate(examples) for o in e.owner]
    batch["owner"] = torch.tensor(owner, dtype=torch.long)
    batch["present"] = torch.tensor([p for e in examples for p in e.present], dtype=torch.bool)
    for name in ("iou", "iop"):
        rows = [torch.from_numpy(x) for e in examples for x in getattr(e, name)]
        batch[name] = (
            torch.stack([F.pad(x, (0, most - len(x))) for x in rows]) if rows else torch.zeros(0, most)
        )
    sizes = torch.tensor([len(f) for f in pictures])
    batch["ignored"] = torch.arange(most) >= sizes[batch["owner"]][:, None]
    return batch


def joined(tensors: list[Tensor], value) -> Tensor:
    """Stacked along the first dimension, the others padded at the end: what a processor gives for one conversation
    differs from the next in its length, its number of pictures or their size."""
    shape = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    wide = lambda t: F.pad(
        t, [p for s, m in reversed(list(zip(t.shape[1:], shape))) for p in (0, m - s)], value=value
    )
    return torch.cat([wide(t) for t in tensors])


class Student(nn.Module):
    """llm: with LoRA; seg, abs: ids of the markers."""

    def __init__(self, llm: nn.Module, selector: StandardisedSelector, seg: int, abs: int, hard: int = 0):
        super().__init__()
        self.llm, self.selector, self.seg, self.abs, self.hard = llm, selector, seg, abs, hard
        # FSDP spreads the weights of each of these by itself; a model may list layers that this one of its kind lacks.
        there = {type(module).__name__ for module in llm.modules()}
        self._no_split_modules = sorted(there & set(getattr(llm, "_no_split_modules", None) or ()))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
        """-> sums of the losses `finetune.tune.LOSS_NAMES`, (5,), their counts, and {"scores", "figures"} without gradient.
        Computes in the LLM's own precision."""
        with self.precision():
            return self._losses(batch)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def precision(self):
        """The context in which the LLM's own precision is computed with."""
        weight = next(self.llm.get_input_embeddings().parameters())
        return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16)

    def _losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
        inputs = {k.removeprefix("input "): v for k, v in batch.items() if k.startswith("input ")}
        labels = batch["labels"][:, 1:]
        kept = (labels != -100).any(0).nonzero()[:, 0]  # only there the vocabulary is worth computing
        seen: list[Tensor] = []
        head = self.llm.get_output_embeddings()
        with head.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
            logits = self.llm(**inputs, logits_to_keep=kept, use_cache=False).logits.float()
        wanted = labels[:, kept]
        text = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
        marker = (wanted == self.seg) | (wanted == self.abs)
        at = logits[marker]
        margin = at[:, self.seg] - at[:, self.abs]
        present, ignored = batch["present"], batch["ignored"]
        if len(margin) != len(present):
            raise ValueError(f"{len(margin)} markers for {len(present)} targets")
        # A batch without targets still passes through the selector, as every process must take the same steps.
        none = len(present) == 0
        states = seen[-1][marker] if not none else seen[-1][:1, 0]
        features = batch["features"][batch["owner"]] if not none else batch["features"][:1]
        scores = self.selector(
            states,
            features,
            margin.detach() if not none else margin.new_zeros(1),
            ignored if not none else None,
        )
        if none:
            zero = sum(s.sum() for s in scores) * 0
            sums = torch.stack([text, zero, zero, zero, zero])
            return sums, torch.stack([(wanted != -100).sum(), *[torch.zeros_like(kept[:1].sum())] * 4]), {}
        losses = selection_losses(scores, batch["iou"], batch["iop"], present, ignored, self.hard)
        usable = reachable(present, batch["iou"]).sum()
        count = torch.tensor(len(present), device=usable.device)
        said = F.binary_cross_entropy_with_logits(margin, present.float(), reduction="sum")
        sums = torch.stack(
            [text, losses["align"] * usable, losses["iop"] * count, losses["presence"] * count, said]
        )
        return (
            sums,
            torch.stack([(wanted != -100).sum(), usable, count, count, count]),
            {
                "scores": Scores(*(s.detach() for s in scores)),
                "word_right": (logits.argmax(-1) == wanted).sum().detach(),
                "marker_right": ((margin > 0) == present).sum().detach(),
            },
        )


def add_lora(
    llm: MultimodalLLM,
    rank: int,
    alpha: float,
    dropout: float,
    targets: list[str] | None,
    vision: bool,
    adapter: Path | None = None,
):
    """LoRA on the language model's linear layers (`targets`: names of some; vision: the vision tower's too), and the rows
    of [SEG] and [ABS]. adapter: a peft folder to go on from. -> peft's model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = llm.model
    if adapter is not None:
        return PeftModel.from_pretrained(model, adapter, is_trainable=True)
    decoder = model.get_decoder()
    within = next(name for name, module in model.named_modules() if module is decoder)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and (vision or not within or name.startswith(within + "."))
    ]
    chosen = [n for n in linear if targets is None or n.rsplit(".", 1)[-1] in targets]
    if not chosen:
        from assistant.errors import BadInput

        names = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise BadInput(
            f"--targets {' '.join(targets)}: this model has no such linear layers; it has {', '.join(names)}"
        )
    pattern = "|".join(
        sorted({re.sub(r"\d+", lambda _: r"\d+", re.escape(n)) for n in chosen})
    )  # short, for many layers
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=pattern,
            trainable_token_indices=llm.marker_rows(),
        ),
    )
