"""Ask photos, label a folder of them, or see where the model attends, from the command line.

python -m assistant ask photo.jpg "what keeps the rain off?" --out answer
python -m assistant ask photos "is there a dog?"
python -m assistant label photos --classes "cup, spoon" --out labelled
python -m assistant everything photo.jpg --out masks
python -m assistant like photo.jpg --reference mug.jpg --mask mug-mask.png --out like
python -m assistant attend photo.jpg "a mug" --out attention
python -m assistant rank-layers --images photos --out ranking.json
python -m assistant doctor --preset base
"""

if __name__ == "__main__":  # Ctrl-C may come while the modules below are imported
    import signal

    from assistant.interruption import end_at_once

    signal.signal(signal.SIGINT, end_at_once)

import argparse
import sys
from pathlib import Path

import assistant.commands.ask
import assistant.commands.doctor
import assistant.commands.label
import assistant.commands.names
from assistant.cli import add_model_arguments, model_options
from assistant.errors import exit_code

MAX_SAVED_REGIONS = 60  # of `everything`, by default: more overlays than that can hardly be told apart
RANKED_LAYERS = (
    4  # that `attend` follows by default; chosen on training images, see docs/examples-and-attention.md
)
MAX_PRINTED_RANKS = 8  # layers and heads that rank-layers prints
SHEET_JPEG_QUALITY = 85  # of 100


def everything(args: argparse.Namespace) -> None:
    """Save the masks of everything mode; the language model is not loaded."""
    from assistant.answer import Answer, Target
    from assistant.images import open_image
    from assistant.loading.sams import load_image_opener

    options = model_options(args)
    opener, _ = load_image_opener(options.sam_or_preset, options.device)
    image = open_image(args.image)
    _, proposals = opener.propose(image)
    largest_first = sorted(range(len(proposals)), key=lambda i: -proposals.areas[i])[: args.most]
    targets = [
        Target(f"region {i}", True, float(proposals.predicted_iou[i].clip(0, 1)), proposals.mask(i), [i])
        for i in largest_first
    ]
    Answer(f"{len(targets)} regions", targets, proposals.size, image).save(args.out)
    print(f"{len(targets)} masks in {args.out}")


def like(args: argparse.Namespace) -> None:
    """Segment what is like one or several references, in one or several images."""
    from assistant.answer import Answer, Target
    from assistant.export.drawing import side_by_side
    from assistant.few_shot.matcher import Matcher, check_mask, open_references, pocket_matcher
    from assistant.files import replace_whole
    from assistant.images import open_image
    from assistant.loading.sams import load_segmenter
    from assistant.mask_images import open_mask

    options = model_options(args)
    segmenter, _ = load_segmenter(options.sam_or_preset, options.device)
    matcher = Matcher.load(args.weights, segmenter) if args.weights else pocket_matcher(segmenter)
    images = [open_image(file) for file in args.reference]
    masks = [open_mask(file) for file in args.mask]
    examples = open_references(matcher, images, masks)
    name = args.label or "like this"
    panels = [
        (f"reference: {name}", image, check_mask(mask, image.shape[:2]))
        for image, mask in zip(images, masks, strict=True)
    ]
    for number, file in enumerate(args.image, 1):
        image = open_image(file)
        out = args.out / f"{number}-{file.stem}" if len(args.image) > 1 else args.out
        mask, score = matcher.segment(matcher.open(image), examples, args.label)
        target = Target(name, bool(mask.any()), score, mask if mask.any() else None, [])
        Answer(f"{name}: {int(mask.sum()):,} px", [target], mask.shape, image).save(out)
        print(f"{file.name}: {name}: {int(mask.sum()):,} px (score {score:.2f}) in {out}")
        panels.append((f"found, score {score:.2f}", image, mask))
    if args.sheet:
        image_format = "PNG" if args.sheet.suffix.lower() == ".png" else "JPEG"
        with replace_whole(args.sheet) as path:
            side_by_side(panels).save(path, image_format, quality=SHEET_JPEG_QUALITY)


def attend(args: argparse.Namespace) -> None:
    """Save a heat map of where the model attends for a phrase."""
    import numpy as np
    from PIL import Image

    from assistant.attention import maps
    from assistant.attention.prompt_attention import Ranking
    from assistant.export.drawing import draw_heat
    from assistant.files import replace_whole
    from assistant.images import open_image
    from assistant.presets import load_attention_probe

    maps.check_phrase(args.phrase)
    probe, _ = load_attention_probe(model_options(args))
    image = open_image(args.image)
    if args.ranking:
        probe.ranking = Ranking.load(args.ranking)
    heat = maps.attend(probe, probe.open(image), args.phrase)
    sixteen_bit = Image.fromarray(np.rint(heat * 65535).astype(np.uint16))
    for name, picture in (("heat", sixteen_bit), ("overlay", draw_heat(image, heat))):
        with replace_whole(args.out / f"{name}.png") as path:
            picture.save(path, "PNG")
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    most = f"{heat.max():.2f} at x {x}, y {y}"
    print(f"{args.phrase}: attention of at most {most} (from 0, as for what is not there, to 1)")
    print(f"heat.png (16 bit) and overlay.png in {args.out}")


def rank_layers(args: argparse.Namespace) -> None:
    """Rank the layers and heads of a model by InfoScore over unlabelled images."""
    from tqdm import tqdm

    from assistant.attention.ranking import rank, read_names
    from assistant.errors import BadInput
    from assistant.images import images_in
    from assistant.presets import load_attention_probe

    names = read_names(args.names)
    if not args.images.is_dir():
        raise BadInput(f"no folder --images {args.images}")
    files = images_in(args.images)[:: args.every]
    probe, _ = load_attention_probe(model_options(args))
    probe.restore({})  # the model's own attention is ranked, not what was tuned for a ranking
    opened = (probe.open(file, args.keep) for file in tqdm(files, desc="images", disable=None))
    ranking = rank(probe, opened, names, args.layers, args.heads, args.deepest)
    ranking.about = {"model": args.mllm or args.preset, "pictures": args.images.name, "names": len(names)}
    ranking.save(args.out)
    layers = ", ".join(f"{layer} ({score:.1f})" for layer, score in ranking.layers[:MAX_PRINTED_RANKS])
    heads = ", ".join(
        f"{layer}.{head} ({score:.1f})" for layer, head, score in ranking.heads[:MAX_PRINTED_RANKS]
    )
    used = ", ".join(str(layer) if head is None else f"{layer}.{head}" for layer, head in ranking.use)
    print(
        f"{ranking.images} images, {ranking.prompts} prompts; best first:\n  layers {layers}\n  heads {heads}"
    )
    print(f"attend uses {used}; written to {args.out}")


def add_everything(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("everything", help="all the masks of an image")
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--most", type=int, default=MAX_SAVED_REGIONS, help="number of masks at most, largest first"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=everything)


def add_like(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("like", help="what is like a reference: an image with a mask")
    parser.add_argument("image", type=Path, nargs="+", help="one or several images")
    parser.add_argument("--reference", type=Path, nargs="+", required=True, help="one or several images")
    parser.add_argument(
        "--mask", type=Path, nargs="+", required=True, help="a mask for each: black outside, white inside"
    )
    parser.add_argument("--label", help="what it is called (default: go by the looks alone)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the mask, overlay, COCO and LabelMe files; for several images, one folder each",
    )
    parser.add_argument(
        "--sheet", type=Path, help="also draw references and images side by side: .jpg or .png"
    )
    parser.add_argument(
        "--weights", type=Path, help="what finetune reference wrote (default: the preset's own)"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=like)


def add_attend(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("attend", help="a heat map of where the model attends for a phrase")
    parser.add_argument("image", type=Path)
    parser.add_argument("phrase")
    parser.add_argument("--out", type=Path, required=True, help="folder for heat.png and overlay.png")
    parser.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    add_model_arguments(parser)
    parser.set_defaults(run=attend)


def add_rank_layers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "rank-layers", help="rank layers by how well they attend to what they read: InfoScore, no labels"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of images; none that will be evaluated"
    )
    parser.add_argument(
        "--names",
        type=Path,
        help="what may be in them: a text file, one name a line, or a json with COCO's categories",
    )
    parser.add_argument("--every", type=int, default=1, help="use every N-th image (default: all)")
    parser.add_argument(
        "--layers", type=int, default=RANKED_LAYERS, help="attend shall use the best N layers"
    )
    parser.add_argument("--heads", type=int, default=0, help="or the best N heads")
    parser.add_argument(
        "--deepest", type=int, help="use none deeper than this layer, where the forward pass then ends"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder that stores the regions of opened images (pocket), for a second ranking",
    )
    parser.add_argument("--out", type=Path, required=True, help="the ranking, json")
    add_model_arguments(parser)
    parser.set_defaults(run=rank_layers)


def main(arguments: list[str] | None = None, prog: str = "python -m assistant") -> int:
    """Run the command that a command line names.

    Args:
        arguments: The command line; None for this process's own.
        prog: What the program is called in its help.

    Returns:
        The exit code.
    """
    return exit_code(lambda: run(arguments, prog))


def run(arguments: list[str] | None, prog: str) -> None:
    """Run the command that a command line names; the arguments are those of `main`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        assistant.commands.ask.add_parser,
        assistant.commands.label.add_parser,
        assistant.commands.names.add_parser,
        add_everything,
        add_like,
        add_attend,
        add_rank_layers,
        assistant.commands.doctor.add_parser,
    ):
        add(commands)
    args = parser.parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
