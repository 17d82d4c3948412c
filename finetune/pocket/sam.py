"""Train the pocket SAM: neck, prompt encoder and mask decoder over the frozen backbone.

    python -m finetune sam --data ../shared/data --out runs/sam --steps 9000            # 384 px, the bulk
    python -m finetune sam --data ../shared/data --out runs/sam512 --size 512 --init runs/sam/sam.safetensors

The same command again resumes. Loss as SAM's: 20 focal + 1 dice on the mask, the best of three readings
for a single click, squared error on predicted IoU. The IoU of a reading is taken against every mask
outlined in the picture, not only the prompted one: a click on a wheel that returns the car is right too.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from assistant.files import make_folder, replace_whole
from assistant.pocket.sam import build_pocket_sam, load_backbone
from assistant.pocket.wheels import backbone_state
from finetune.log import Log
from finetune.pocket.sam_data import PromptData


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """20 focal (gamma 2) + dice of (B, M, h, w) logits against (B, 1, h, w) targets in [0, 1] -> (B, M)."""
    target = target.expand_as(logits)
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = 0.5 * (p - target).square() * ce
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    return 20 * focal.mean((2, 3)) + dice


def pairwise_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of (I, N, h, w) logits with (I, P, h, w) targets of the same picture -> (I, N, P)."""
    a, b = (logits > 0).flatten(2).float(), (targets > 0.5).flatten(2).float()
    inter = a @ b.transpose(1, 2)
    return inter / (a.sum(2)[:, :, None] + b.sum(2)[:, None] - inter).clamp(min=1)


def step_loss(sam, batch, correct: bool, rng: torch.Generator) -> tuple[Tensor, dict]:
    """One step over I pictures with P prompts each; `correct`: a first answer, then a click in its error."""
    image, targets, points, labels, kind = batch
    images, prompts = kind.shape
    grid = image.shape[-1] // 16
    embedding = sam.image_encoder((image.float() - 127) / 128).bfloat16()
    pe = sam.prompt_encoder.pe_layer((grid, grid))[None]
    target = targets.flatten(0, 1)[:, None].float() / 255
    points, labels, kind = points.flatten(0, 1), labels.flatten(0, 1), kind.flatten()

    def answer(masks=None):
        sparse, dense = sam.prompt_encoder.encode(points, labels, masks, grid)
        decoded = sam.mask_decoder.decode(embedding, pe, sparse, dense)
        return sam.mask_decoder.draw(decoded, embedding), decoded.iou.float()

    masks = None
    if correct:
        with torch.no_grad():
            logits, _ = answer()
            readings = mask_losses(logits, target)
            best = torch.where(kind == 0, torch.zeros_like(kind), 1 + readings[:, 1:].argmin(1))
            masks = logits[torch.arange(len(best)), best][:, None]
            wrong = (masks > 0) != (target > 0.5)
            score = torch.rand(wrong.shape, generator=rng) * wrong
            score = F.avg_pool2d(wrong.float(), 5, 1, 2) * score  # deep inside the error, as people click
            where = score.flatten(1).argmax(1)
            x, y = where % score.shape[-1], where // score.shape[-1]
            points, labels = points.clone(), labels.clone()
            points[:, -1] = torch.stack([x, y], -1) * 4.0 + 1.5
            hit = target.flatten(1).gather(1, where[:, None])[:, 0] > 0.5
            labels[:, -1] = torch.where(wrong.flatten(1).any(1), hit.long(), labels[:, -1])
            kind = torch.where(kind == 1, torch.zeros_like(kind), kind)
    logits, iou = answer(masks)
    per_mask = mask_losses(logits, target)
    single, other = kind == 1, kind == 0
    loss_mask = torch.where(single, per_mask[:, 1:].amin(1), per_mask[:, 0]) * (kind < 2)
    with torch.no_grad():
        table = pairwise_iou(logits.unflatten(0, (images, prompts)).flatten(1, 2), targets.float() / 255)
        to_any = table.amax(2).view(-1, 4)
        own = table.view(images, prompts, 4, prompts).diagonal(dim1=1, dim2=3).permute(0, 2, 1).reshape(-1, 4)
        truth = torch.cat([own[:, :1], to_any[:, 1:]], 1)
        used = torch.stack([other] + [~other] * 3, 1).float()
    loss_iou = ((iou - truth).square() * used).sum() / used.sum()
    loss = loss_mask.sum() / (kind < 2).sum() + loss_iou
    best = own[:, 1:].amax(1)
    figures = {
        "loss": loss.item(),
        "box_iou": own[other, 0].mean().item(),
        "click_iou": best[single].mean().item(),
        "iou_error": loss_iou.item() ** 0.5,
    }
    return loss, figures


def trained_parts(sam) -> dict[str, Tensor]:
    """The tensors that training changes, by name: what is committed."""
    return {k: v for k, v in sam.state_dict().items() if not k.startswith("image_encoder.backbone.")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="root of the training folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from these weights (default: untrained)")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument(
        "--size", type=int, default=384, help="side of the training pictures, a multiple of 32"
    )
    parser.add_argument("--images", type=int, default=6, help="pictures a step")
    parser.add_argument("--prompts", type=int, default=12, help="prompts a picture")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--correct", type=float, default=0.25, help="share of steps with a correction click")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    make_folder(args.out)
    sam = build_pocket_sam()
    load_backbone(sam.image_encoder, backbone_state())
    if args.init:
        sam.load_state_dict(load_file(args.init), strict=False)
    parameters = [
        p
        for n, p in sam.named_parameters()
        if p.requires_grad and not n.startswith("image_encoder.backbone.")
    ]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.02)
    average = {k: v.detach().clone() for k, v in trained_parts(sam).items()}
    start = 0
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        sam.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
        print(f"resuming at step {start}", flush=True)
    sam.train()
    data = PromptData(args.data, args.size, args.prompts, args.seed, args.steps * args.images)
    order = range(start * args.images, args.steps * args.images)
    loader = torch.utils.data.DataLoader(
        data,
        args.images,
        sampler=order,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
    )
    log, saved = Log(args.out / "log.jsonl"), time.time()

    def save(step: int) -> None:
        with replace_whole(state_file) as path:
            torch.save(
                {
                    "model": trained_parts(sam),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step,
                },
                path,
            )
        with replace_whole(args.out / "sam.safetensors") as path:
            save_file({k: v.contiguous() for k, v in average.items()}, path)

    for step, batch in enumerate(loader, start):
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        correct = torch.rand((), generator=rng).item() < args.correct
        progress = step / args.steps
        rate = min(1, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures = step_loss(sam, batch, correct, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        for k, v in trained_parts(sam).items():
            average[k].lerp_(v, 1 - decay)
        log.add(step, figures, every=50)
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            save(step + 1)
            saved = time.time()
