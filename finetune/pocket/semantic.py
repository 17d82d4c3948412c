"""Train the heads of `assistant.pocket.semantic`, after the records stage, in two phases:

1. The semantic head learns which taught name every cell of an image has, from labelled instances in images
   that are augmented differently each time.
2. The pixel head learns to weigh the semantic map with the selector's scores, on the images that the records
   stage held out: neither the map nor the selector was trained on those.

    python -m finetune semantic --data runs/q/{coco,camvid,clothing}/records.jsonl \\
        --named DATA/coco/train/instances.json --sam assistant/pocket/sam.safetensors \\
        --reasoner runs/reasoner --out runs/semantic

The same command again continues a run that was stopped. Names of one records file compete with each other
only, because what another file labels may be unlabelled in its images. Losses: cross-entropy, in which names
of few cells count more (1); soft IoU and cross-entropy (2).
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import make_folder
from assistant.pocket.opening import load_pocket_opener
from finetune.check import must_exist
from finetune.pocket.pixel_head import train_pixel_head
from finetune.pocket.semantic_head import LabelledImages, train_semantic_head
from finetune.pocket.settings import RecordSources, SemanticSettings
from finetune.pocket.sources import add_source_arguments
from finetune.settings import option_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    add_source_arguments(parser)
    add = parser.add_argument
    add("--reasoner", type=Path, required=True, help="folder that the records stage wrote")
    add("--out", type=Path, required=True, help="folder for the weights and the state of the run")
    add("--steps", type=int, default=1500, help="steps of the semantic head")
    add("--init", type=Path, help="head.pt of another run to start from")
    add("--lr", type=float, default=1e-3, help="learning rate of the semantic head")
    add("--batch", type=int, default=8, help="images per step of the semantic head")
    add("--pixel-steps", type=int, default=600, help="steps of the pixel head, of 16 targets each")
    add("--questions", type=int, default=160, help="images with questions that the pixel head learns from")
    add("--save-every", type=float, default=4, help="minutes between checkpoints")
    add("--workers", type=int, default=1, help="processes that prepare batches in advance (default: 1)")
    add("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Train both heads, or continue where an earlier run was stopped."""
    must_exist(*args.data, args.sam, args.reasoner, args.init)
    for name in ("steps", "batch", "pixel_steps", "questions"):
        if vars(args)[name] < 1:
            raise BadInput(f"{option_of(name)} must be at least 1")
    make_folder(args.out)
    settings = SemanticSettings(
        records_folder=args.reasoner,
        init=args.init,
        steps=args.steps,
        lr=args.lr,
        batch=args.batch,
        pixel_steps=args.pixel_steps,
        questions=args.questions,
        save_minutes=args.save_every,
        workers=args.workers,
        seed=args.seed,
    )
    regions_folder = args.regions or args.reasoner / "regions"
    sources = RecordSources(tuple(args.data), tuple(args.named), args.sam, regions_folder)
    images = LabelledImages.read(sources)
    opener = load_pocket_opener(args.sam)
    head = train_semantic_head(settings, args.out, opener, images)
    train_pixel_head(settings, args.out, sources, opener, head, images.names)
