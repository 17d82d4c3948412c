"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, and gRefCOCO with several and with no targets.

    python -m eval refcoco --root refer_seg --split testA --out runs/eval/refcoco-testA
    python -m eval grefcoco --root refer_seg --split val --out runs/eval/grefcoco

--root holds DATASET/refs(unc).p (refcocog: refs(umd).p; gRefCOCO: grefs(unc).json; any of them also as
.json) and DATASET/instances.json; the pictures are looked for where LISA keeps them, or in `--images`.
A pickle that holds more than plain data is refused. gRefCOCO is scored by ReLA's rules (Liu et al. 2023):
an empty target counts 1 where nothing is said to be there, else 0 and its pixels join the union.
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import from_refer
from eval import question_run as masks

VERSION = 1
PICTURES = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    masks.add_arguments(parser, default_split="val")
    parser.add_argument(
        "--by", choices=["unc", "umd", "google"], help="who split it (default: unc, refcocog: umd)"
    )
    parser.add_argument("--images", type=Path, help="folder of the COCO train2014 pictures")


def main(args: argparse.Namespace) -> None:
    name = args.benchmark
    folder = next(
        (args.root / n for n in (name, name.replace("grefcoco", "gRefCOCO")) if (args.root / n).is_dir()),
        args.root,
    )
    by = args.by or ("umd" if name == "refcocog" else "unc")
    stem = f"{'g' if name == 'grefcoco' else ''}refs({by})"
    refs = next(
        (folder / f"{stem}{kind}" for kind in (".p", ".json") if (folder / f"{stem}{kind}").is_file()), None
    )
    if refs is None:
        raise BadInput(f"no {stem}.p or {stem}.json in {folder}")
    images = args.images or next((args.root / p for p in PICTURES if (args.root / p).is_dir()), None)
    if images is None:
        raise BadInput(f"no pictures under {args.root}; give their folder with --images")
    bad: list = []
    questions = []
    for record in from_refer(refs, folder / "instances.json", args.split, bad=bad):
        questions.append(
            masks.Question(
                f"{record.source['ref_id']}_{record.source['sent_id']}",
                record,
                images / record.image,
                [masks.words_group(record.question)],
            )
        )
    masks.run_questions(args, name, VERSION, questions, bad)
