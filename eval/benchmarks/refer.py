"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, and gRefCOCO with several and with no targets.

    python -m eval refcoco --root refer_seg --split testA --out runs/eval/refcoco-testA
    python -m eval grefcoco --root refer_seg --split val --out runs/eval/grefcoco

--root holds DATASET/refs(unc).p (refcocog: refs(umd).p; gRefCOCO: grefs(unc).json; any of them also as .json)
and DATASET/instances.json; the images are looked for where LISA stores them, or in `--images`. A pickle that
holds more than plain data is refused. gRefCOCO is scored by ReLA's rules (Liu et al. 2023): an empty target
counts 1 where the answer calls everything absent, else 0 and the answer's pixels join the union.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import from_refer
from eval.questions import run as question_run
from eval.questions.question import Question
from eval.questions.run import QuestionOptions, question_options, run_questions
from eval.questions.summary import words_group
from eval.settings import EvalSettings, eval_settings

VERSION = 1
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")


@dataclass(frozen=True)
class ReferOptions:
    """What these benchmarks ask beside `EvalSettings` and `QuestionOptions`.

    Attributes:
        dataset: "refcoco", "refcoco+", "refcocog" or "grefcoco".
        split_by: Who split it, "unc", "umd" or "google"; None for "umd" of refcocog and "unc" of the others.
        images: Folder of the COCO train2014 images; None for one of `IMAGE_FOLDERS` under the root.
    """

    dataset: str
    split_by: str | None = None
    images: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks' own options."""
    question_run.add_arguments(parser, default_split="val")
    parser.add_argument(
        "--by", choices=["unc", "umd", "google"], help="who split it (default: unc, refcocog: umd)"
    )
    parser.add_argument("--images", type=Path, help="folder of the COCO train2014 images")


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    refer_options = ReferOptions(dataset=args.benchmark, split_by=args.by, images=args.images)
    run(eval_settings(args), question_options(args), refer_options)


def run(settings: EvalSettings, options: QuestionOptions, refer_options: ReferOptions) -> None:
    """Ask every sentence of the split."""
    dataset = refer_options.dataset
    folder = _dataset_folder(settings.root, dataset)
    refs = _refs_file(folder, dataset, refer_options.split_by)
    images = refer_options.images or next(
        (settings.root / name for name in IMAGE_FOLDERS if (settings.root / name).is_dir()), None
    )
    if images is None:
        raise BadInput(f"no images under {settings.root}; give their folder with --images")
    bad: list[tuple[str, str]] = []
    questions = []
    for record in from_refer(refs, folder / "instances.json", options.split, bad=bad):
        key = f"{record.source['ref_id']}_{record.source['sent_id']}"
        questions.append(Question(key, record, images / record.image, [words_group(record.question)]))
    run_questions(settings, options, dataset, VERSION, questions, bad)


def _dataset_folder(root: Path, dataset: str) -> Path:
    """The folder of a data set; the root itself where it has no folder of that name."""
    names = (dataset, dataset.replace("grefcoco", "gRefCOCO"))
    return next((root / name for name in names if (root / name).is_dir()), root)


def _refs_file(folder: Path, dataset: str, split_by: str | None) -> Path:
    """The file of the refs. Raises BadInput where there is none."""
    split_by = split_by or ("umd" if dataset == "refcocog" else "unc")
    stem = f"{'g' if dataset == 'grefcoco' else ''}refs({split_by})"
    for suffix in (".p", ".json"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise BadInput(f"no {stem}.p or {stem}.json in {folder}")
