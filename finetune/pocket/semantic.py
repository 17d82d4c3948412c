"""Train the heads of `assistant.pocket.semantic`, after the records stage, in two phases:

1. The semantic head learns which taught name every cell of an image has, from labelled instances in images
   that are augmented differently each time.
2. The pixel head learns to weigh the semantic map with the selector's scores, on the images that are kept
   aside: neither the map nor the selector was trained on those.

    python -m finetune semantic --data runs/q/{coco,camvid,clothing}/records.jsonl \\
        --named DATA/coco/train/instances.json --sam assistant/pocket/sam.safetensors --out runs/semantic

The same command again continues a run that was stopped. Names of one records file compete with each other
only, because what another file labels may be unlabelled in its images. Losses: cross-entropy, in which names
of few cells count more (1); soft IoU and cross-entropy (2).

Images of which only names are known join in with `--outlined` and `--salient`
(`finetune.pocket.named_images`).
With `--start` the published heads are trained on; `--pixel-steps 0` then keeps the pixel head, and
`--steps 0` the semantic head:

    python -m finetune semantic --data runs/q/{coco,camvid,clothing}/records.jsonl \\
        --named DATA/coco/train/instances.json --sam assistant/pocket/sam.safetensors \\
        --outlined DATA/voc/train/instances.json --salient DATA/duts/train/instances.json \\
        --start assistant/pocket/semantic.safetensors --pixel-steps 0 --steps 900 --out runs/semantic
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import make_folder
from assistant.pocket.opening import load_pocket_opener
from assistant.pocket.pipeline import load_pocket
from assistant.pocket.semantic import PixelHead, SemanticSelector
from finetune.check import must_exist
from finetune.pocket.named_images import add_named_set_arguments, read_named_sets
from finetune.pocket.pixel_head import train_pixel_head
from finetune.pocket.semantic_head import LabelledImages, train_semantic_head
from finetune.pocket.settings import RecordSources, SemanticSettings
from finetune.pocket.sources import add_source_arguments
from finetune.settings import option_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    add_source_arguments(parser)
    add = parser.add_argument
    add_named_set_arguments(parser)
    add("--reasoner", type=Path, help="folder that the records stage wrote (default: the published weights)")
    add("--out", type=Path, required=True, help="folder for the weights and the state of the run")
    add("--steps", type=int, default=1500, help="steps of the semantic head; 0 to keep that of --start")
    add("--init", type=Path, help="head.pt of another run to start from, with the same names")
    add("--start", type=Path, help="published semantic.safetensors to start from, which may lack names")
    add("--lr", type=float, default=1e-3, help="learning rate of the semantic head")
    add("--batch", type=int, default=8, help="images per step of the semantic head")
    add(
        "--pixel-steps",
        type=int,
        default=600,
        help="steps of the pixel head, of 16 targets each; 0 to keep that of --start",
    )
    add("--photos", type=int, default=40, help="images of a source, at most, that the pixel head learns from")
    add("--save-every", type=float, default=4, help="minutes between checkpoints")
    add("--workers", type=int, default=1, help="processes that prepare batches in advance (default: 1)")
    add("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Train both heads, or continue where an earlier run was stopped."""
    must_exist(*args.data, args.sam, args.reasoner, args.init, args.start, *args.outlined, *args.salient)
    for name in ("batch", "photos"):
        if vars(args)[name] < 1:
            raise BadInput(f"{option_of(name)} must be at least 1")
    if args.init and args.start:
        raise BadInput("give --init or --start, not both")
    for name, kept in (("steps", "semantic"), ("pixel_steps", "pixel")):
        if vars(args)[name] < 1 and args.start is None:
            raise BadInput(
                f"{option_of(name)} must be at least 1, or give --start, whose {kept} head is then kept"
            )
    make_folder(args.out)
    settings = SemanticSettings(
        reasoner=args.reasoner,
        init=args.init,
        start=args.start,
        steps=args.steps,
        lr=args.lr,
        batch=args.batch,
        pixel_steps=args.pixel_steps,
        photos=args.photos,
        save_minutes=args.save_every,
        workers=args.workers,
        seed=args.seed,
    )
    regions_folder = args.regions or (args.reasoner or args.out) / "regions"
    sources = RecordSources(tuple(args.data), tuple(args.named), args.sam, regions_folder)
    images = LabelledImages.read(sources, read_named_sets(args.outlined, args.salient))
    start = SemanticSelector.load(args.start) if args.start else None
    if start and not settings.steps:
        semantic = start
    else:
        head = train_semantic_head(settings, args.out, load_pocket_opener(args.sam), images)
        semantic = SemanticSelector(head, start.pixel_head if start else PixelHead(), images.names)
    if settings.pixel_steps:
        pipeline, _ = load_pocket(settings.reasoner, args.sam, semantic)
        train_pixel_head(settings, args.out, pipeline, images)
    else:
        semantic.save(args.out / "semantic.safetensors")
