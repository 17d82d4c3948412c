"""Train few-shot segmentation ("segment like this") from outlined images.

    python -m finetune reference --data DATA/coco/train --out runs/reference
    python -m finetune reference --data DATA/coco/train --fold 2 --out runs/reference-2    # for eval fewshot
    python -m finetune reference --data DATA/coco/train --clip openai/clip-vit-base-patch16 \\
        --sam sam_vit_b_01ec64.pth --no-coarse --out runs/reference-clip

This is VLP-SAM, and VRP-SAM for references without a label. DATA are COCO-format folders (instances.json,
images/). Two encoders learn from the same episodes, one that reads the category's name and one that does not.
An episode is a category, a query that shows it, and one to three references in other images.

What is frozen is computed once and cached under --looks, where several runs share it: the features of each
image (and of --views other views of it: cropped, mirrored, in other light), and how similar query and
references of each episode are. The same command again resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.few_shot.features import ClipFeatureExtractor, FeatureExtractor, PocketFeatureExtractor
from assistant.few_shot.matcher import WITH_LABEL, WITHOUT_LABEL, Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder
from finetune.reference_data import (
    FOLDS,
    CachedView,
    cache_episodes,
    cache_views,
    labels_in,
    outlined_images,
    sample_episodes,
    training_labels,
)
from finetune.reference_training import (
    ReferenceTrainer,
    ReferenceTrainingSettings,
    channel_statistics,
    validate,
)

HELD_OUT_EVERY = 10  # every tenth image is held out, to validate on


@dataclass(frozen=True)
class ReferenceSettings:
    """What `python -m finetune reference` is asked for.

    Attributes:
        data: COCO-format folders.
        out: Folder of the result.
        fold: The fold whose categories are left out; None to learn all.
        cache: Folder of frozen features.
        extra_views: Number of other views of each image.
        sam: What `assistant.loading.sams.load_segmenter` takes; None for the pocket SAM.
        clip: Folder or hub id of a CLIP model; None for the pocket preset's features.
        coarse: Whether the encoders also draw a mask prompt.
        episodes: Number of episodes, drawn once, of all categories.
        device: See `assistant.loading.devices.pick_device`.
        training: How the encoders are trained.
    """

    data: tuple[Path, ...]
    out: Path
    fold: int | None
    cache: Path
    extra_views: int
    sam: str | None
    clip: str | None
    coarse: bool
    episodes: int
    device: str | None
    training: ReferenceTrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="COCO-format folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and of the checkpoint")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(FOLDS),
        help="leave out every fourth category, from this one on (COCO-20i's rule); default: learn all",
    )
    parser.add_argument("--looks", type=Path, help="folder of cached features (default: OUT/looks)")
    parser.add_argument(
        "--views", type=int, default=0, help="number of other views of each image (default: 0)"
    )
    parser.add_argument("--sam", help="official .pth, transformers folder or hub id; default: the pocket SAM")
    parser.add_argument("--clip", help="transformers folder or hub id; default: the pocket preset's features")
    parser.add_argument(
        "--no-coarse",
        action="store_true",
        help="prompt SAM with embedded tokens alone, as the paper does; the default adds a mask prompt",
    )
    parser.add_argument("--steps", type=int, default=280, help="number of steps (default: 280)")
    parser.add_argument(
        "--alone",
        type=float,
        default=0.85,
        help="share of the steps, at first, that train the coarse map without SAM, at a fifth of the cost "
        "(default: 0.85)",
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=1000,
        help="number of episodes, drawn once, of all categories; a fold learns from those of its own, each "
        "several times (default: 1000)",
    )
    parser.add_argument("--batch", type=int, default=8, help="episodes per step (default: 8)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate at its peak (default: 5e-4)")
    parser.add_argument(
        "--save-every", type=float, default=2, help="minutes between checkpoints (default: 2)"
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1 (default: the GPU if there is one; the pocket SAM: the CPU)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of episodes, weights and dropout (default: 0)")


def read_settings(args: argparse.Namespace) -> ReferenceSettings:
    """The settings that the options of `add_arguments` name."""
    return ReferenceSettings(
        data=tuple(args.data),
        out=args.out,
        fold=args.fold,
        cache=args.looks or args.out / "looks",
        extra_views=args.views,
        sam=args.sam,
        clip=args.clip,
        coarse=not args.no_coarse,
        episodes=args.episodes,
        device=args.device,
        training=ReferenceTrainingSettings(
            steps=args.steps,
            coarse_steps=0 if args.no_coarse else int(args.alone * args.steps),
            batch=args.batch,
            lr=args.lr,
            save_every=args.save_every,
            seed=args.seed,
        ),
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and train."""
    train(read_settings(args))


def train(settings: ReferenceSettings) -> None:
    """Cache the frozen features, train the encoders, write OUT/reference.safetensors and print the
    validation.

    Raises:
        BadInput: The data or the models cannot be used.
    """
    for folder in settings.data:
        if not (folder / "instances.json").is_file():
            raise BadInput(f"{folder} is not a COCO-format folder: it has no instances.json")
    seed = settings.training.seed
    torch.manual_seed(seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    matcher, key = load_frozen_parts(settings.sam, settings.clip, settings.device)
    labels = training_labels(settings.data, settings.fold)
    views, held_out = _cached_views(settings, matcher, key)
    matcher.encoders |= _new_encoders(matcher, views, settings.coarse, seed)
    sampled = sample_episodes(views, seed, settings.episodes)
    if settings.fold is not None:
        sampled = [episode for episode in sampled if episode.label in labels]
    episodes = cache_episodes(matcher, key, sampled, settings.cache / "episodes")
    ReferenceTrainer(matcher, settings.training, settings.out).run(episodes)
    print(json.dumps({"aside": validate(matcher, held_out, views, labels, seed)}), flush=True)


def load_frozen_parts(sam: str | None, clip: str | None, device: str | None = None) -> tuple[Matcher, str]:
    """Load the SAM and the frozen features.

    Args:
        sam: What `assistant.loading.sams.load_segmenter` takes; None for the pocket SAM.
        clip: Folder or hub id of a CLIP model; None for the pocket preset's features.
        device: See `assistant.loading.devices.pick_device`; the pocket SAM stays on the CPU.

    Returns:
        A matcher without encoders, and a key that identifies its frozen parts.

    Raises:
        BadInput: They do not go together, or cannot be had.
    """
    from assistant.loading.sams import load_segmenter

    if clip is None and sam is not None:
        raise BadInput("the pocket preset's features need the pocket SAM: give --clip as well")
    segmenter, checksum = load_segmenter(sam or "pocket", device)
    extractor: FeatureExtractor = ClipFeatureExtractor(clip, segmenter) if clip else PocketFeatureExtractor()
    segmenter.model.requires_grad_(False)
    return Matcher(segmenter, extractor, {}), f"{checksum} {json.dumps(extractor.description)}"


def _cached_views(
    settings: ReferenceSettings, matcher: Matcher, key: str
) -> tuple[list[CachedView], list[CachedView]]:
    """Cache the views of all images: those to train on, and the whole images that are held out."""
    settings.cache.mkdir(parents=True, exist_ok=True)
    views = []
    held_out = []
    images = outlined_images(settings.data)
    for k, (image, named) in enumerate(tqdm(images, desc="features", disable=None)):
        files = cache_views(matcher, key, image, named, settings.extra_views, settings.cache)
        if k % HELD_OUT_EVERY == 0:
            held_out.append(CachedView(files[0], k, labels_in(files[0])))
        else:
            views += [CachedView(file, k, labels_in(file)) for file in files]
    return views, held_out


def _new_encoders(
    matcher: Matcher, views: Sequence[CachedView], coarse: bool, seed: int
) -> dict[str, PromptEncoder]:
    """Encoders to train, without and with a label, each from the same random numbers."""
    extractor = matcher.extractor
    encoders = {}
    for name, reads_label in ((WITHOUT_LABEL, False), (WITH_LABEL, True)):
        torch.manual_seed(seed)
        encoders[name] = PromptEncoder(
            extractor.width,
            extractor.joint_width,
            matcher.segmenter.prompt_width,
            text=reads_label,
            coarse=coarse,
        ).to(matcher.segmenter.device)
    if extractor.standardises_patches:
        mean, scale = channel_statistics(views)
        for encoder in encoders.values():
            encoder.mean.copy_(mean)
            encoder.scale.copy_(scale)
    return encoders
