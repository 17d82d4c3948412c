"""Ask a picture, or list everything in it, from the command line."""

import argparse
import json
import sys
from pathlib import Path

from assistant.cli import add_model_arguments, model_options, open_assistant
from assistant.errors import exit_code


def ask(args: argparse.Namespace) -> None:
    scene = open_assistant(model_options(args)).open(args.image)
    answer = scene.ask(args.question)
    if args.out:
        answer.save(args.out)
    if args.json:
        print(json.dumps(answer.to_json()))
        return
    if answer.reasoning:
        print(f"({answer.reasoning})")
    print(answer.text)
    for target in answer.targets:
        where = f"{int(target.mask.sum()):,} px" if target.present else "not in the picture"
        print(f"  {target.phrase}: {where} (confidence {target.confidence:.2f})")
    if args.out:
        print(f"masks, overlay, COCO and LabelMe files: {args.out}")


def everything(args: argparse.Namespace) -> None:
    from assistant.answer import Answer, Target

    image, found = open_proposals(args)
    order = sorted(range(len(found)), key=lambda i: -found.areas[i])[: args.most]
    targets = [
        Target(f"region {i}", True, float(found.predicted_iou[i].clip(0, 1)), found.mask(i), [i])
        for i in order
    ]
    Answer(f"{len(order)} regions", targets, found.size, image).save(args.out)
    print(f"{len(order)} masks in {args.out}")


def open_proposals(args: argparse.Namespace):
    """(image, its proposals), without the language model, which takes no part in this."""
    from assistant.images import open_image
    from assistant.presets import load_image_opener

    options = model_options(args)
    opener, _ = load_image_opener(options.sam_or_preset, options.device)
    image = open_image(args.image)
    return image, opener.propose(image)[1]


def like(args: argparse.Namespace) -> None:
    from assistant.answer import Answer, Target
    from assistant.export.drawing import side_by_side
    from assistant.few_shot.matcher import Matcher, check_mask, open_mask, pocket_matcher, references
    from assistant.files import replace_whole
    from assistant.images import open_image
    from assistant.presets import load_segmenter

    options = model_options(args)
    segmenter, _ = load_segmenter(options.sam_or_preset, options.device)
    matcher = Matcher.load(args.weights, segmenter) if args.weights else pocket_matcher(segmenter)
    images, masks = [open_image(file) for file in args.reference], [open_mask(file) for file in args.mask]
    like, name = references(matcher, images, masks), args.label or "like this"
    shown = [
        (f"reference: {name}", image, check_mask(mask, image.shape[:2])) for image, mask in zip(images, masks)
    ]
    for k, file in enumerate(args.image, 1):
        image, out = open_image(file), args.out / f"{k}-{file.stem}" if len(args.image) > 1 else args.out
        mask, score = matcher.segment(matcher.open(image), like, args.label)
        target = Target(name, bool(mask.any()), score, mask if mask.any() else None, [])
        Answer(f"{name}: {int(mask.sum()):,} px", [target], mask.shape, image).save(out)
        print(f"{file.name}: {name}: {int(mask.sum()):,} px (score {score:.2f}) in {out}")
        shown.append((f"found, score {score:.2f}", image, mask))
    if args.sheet:
        with replace_whole(args.sheet) as path:
            side_by_side(shown).save(
                path, "PNG" if args.sheet.suffix.lower() == ".png" else "JPEG", quality=85
            )


def attend(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from assistant.attention.maps import attend, check_phrase
    from assistant.attention.prompt_attention import Ranking
    from assistant.export.drawing import draw_heat
    from assistant.files import replace_whole
    from assistant.images import open_image
    from assistant.presets import load_attention_probe

    check_phrase(args.phrase)
    probe, _ = load_attention_probe(model_options(args))
    image = open_image(args.image)
    if args.ranking:
        probe.ranking = Ranking.load(args.ranking)
    heat = attend(probe, probe.open(image), args.phrase)
    grey = Image.fromarray(np.rint(heat * 65535).astype(np.uint16))
    for name, picture in (("heat", grey), ("overlay", draw_heat(image, heat))):
        with replace_whole(args.out / f"{name}.png") as path:
            picture.save(path, "PNG")
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    print(
        f"{args.phrase}: at most {heat.max():.2f} at x {x}, y {y}; heat.png (16 bit), overlay.png in {args.out}"
    )


def rank_layers(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from assistant.attention.ranking import rank, read_names
    from assistant.errors import BadInput
    from assistant.images import pictures_in
    from assistant.presets import load_attention_probe

    names = read_names(args.names)
    if not args.images.is_dir():
        raise BadInput(f"no folder --images {args.images}")
    files = pictures_in(args.images)[:: args.every]
    probe, _ = load_attention_probe(model_options(args))
    probe.restore({})  # the model's own attention is ranked, not what was tuned for a ranking
    views = (probe.open(file, args.keep) for file in tqdm(files, desc="pictures", disable=None))
    ranking = rank(probe, views, names, args.layers, args.heads, args.deepest)
    ranking.about = {"model": args.mllm or args.preset, "pictures": args.images.name, "names": len(names)}
    ranking.save(args.out)
    print(f"{ranking.photos} pictures, {ranking.prompts} prompts; best first:")
    print("  layers " + ", ".join(f"{layer} ({score:.1f})" for layer, score in ranking.layers[:8]))
    print("  heads " + ", ".join(f"{layer}.{head} ({score:.1f})" for layer, head, score in ranking.heads[:8]))
    used = ", ".join(str(layer) if head is None else f"{layer}.{head}" for layer, head in ranking.use)
    print(f"attend uses {used}; written to {args.out}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m assistant", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("ask", help="find what a question means")
    one.add_argument("image", type=Path)
    one.add_argument("question")
    one.add_argument("--out", type=Path, help="folder for masks, overlay, COCO and LabelMe files")
    one.add_argument("--json", action="store_true", help="print the answer as JSON, masks as RLE")
    one.set_defaults(run=ask)
    every = commands.add_parser("everything", help="all the masks of a picture")
    every.add_argument("image", type=Path)
    every.add_argument("--out", type=Path, required=True)
    every.add_argument("--most", type=int, default=60, help="masks at most, largest first")
    every.set_defaults(run=everything)
    similar = commands.add_parser("like", help="what is like a reference: a picture with a mask")
    similar.add_argument("image", type=Path, nargs="+", help="one or several pictures")
    similar.add_argument("--reference", type=Path, nargs="+", required=True, help="one or several pictures")
    similar.add_argument(
        "--mask", type=Path, nargs="+", required=True, help="a mask for each: black outside, white inside"
    )
    similar.add_argument("--label", help="what it is called (default: go by the looks alone)")
    similar.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the mask, overlay, COCO and LabelMe "
        "files; of several pictures, a folder in it for each",
    )
    similar.add_argument(
        "--sheet", type=Path, help="also draw references and pictures side by side: .jpg or .png"
    )
    similar.add_argument(
        "--weights", type=Path, help="what finetune reference wrote (default: the preset's own)"
    )
    similar.set_defaults(run=like)
    look = commands.add_parser("attend", help="a heat map of where the model looks for a phrase")
    look.add_argument("image", type=Path)
    look.add_argument("phrase")
    look.add_argument("--out", type=Path, required=True, help="folder for heat.png and overlay.png")
    look.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    look.set_defaults(run=attend)
    layers = commands.add_parser(
        "rank-layers", help="which layers look where they read: InfoScore over unlabelled pictures"
    )
    layers.add_argument(
        "--images", type=Path, required=True, help="folder of pictures; none that will be evaluated"
    )
    layers.add_argument(
        "--names",
        type=Path,
        help="what may be in them: a text file, one name a line, or a json with COCO's categories",
    )
    layers.add_argument("--every", type=int, default=1, help="use every so-manieth picture")
    layers.add_argument("--layers", type=int, default=4, help="attend shall use the best so many layers")
    layers.add_argument("--heads", type=int, default=0, help="or the best so many heads")
    layers.add_argument(
        "--deepest", type=int, help="of those up to this layer, where looking then ends and costs no more"
    )
    layers.add_argument(
        "--keep", type=Path, help="folder for opened pictures (pocket): a second ranking need not open them"
    )
    layers.add_argument("--out", type=Path, required=True, help="the ranking, json")
    layers.set_defaults(run=rank_layers)
    for command in (one, every, similar, look, layers):
        add_model_arguments(command)
    args = parser.parse_args()
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
