"""Questions with masks from photos with masks.

    python -m datagen --images photos --annotations instances.json --format coco --writer phrasebank \\
        --split train --per-image 24 --seed 0 --out questions

Writes DIR/records.jsonl (the project's records), DIR/llmseg40k.json (LLM-Seg40K's form) and DIR/statistics.json.
The same command gives the same files. `python -m datagen.browse DIR` shows them row by row; what is thrown out there
stays out.
"""

import argparse
import json
import os
import sys
import zlib
from collections import Counter
from pathlib import Path


FORMATS = ("coco", "lvis", "egoobjects", "labelme", "labels")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m datagen", description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", required=True, help="folder with the photos")
    parser.add_argument("--annotations", required=True, help="their masks and names")
    parser.add_argument("--format", default="coco", choices=FORMATS, help="what the annotations are (default: coco)")
    parser.add_argument("--writer", default="phrasebank", choices=["phrasebank", "openai"],
                        help="who words the questions; openai: a model behind any OpenAI-compatible server")
    server = parser.add_argument_group("with --writer openai", "the key is read from OPENAI_API_KEY; answers are kept in "
                                       "DIR/answers.sqlite, and what was answered is never asked again")
    server.add_argument("--model", help="the writer, as the server calls it")
    server.add_argument("--base-url", help="the server, such as http://127.0.0.1:8000/v1 (default: the client's own)")
    server.add_argument("--describe-with", metavar="MODEL", help="a multimodal model that describes each photo first")
    server.add_argument("--captions", metavar="FILE", help="COCO captions json to be used instead of a description")
    server.add_argument("--no-second-opinion", action="store_true", help="do not let the model answer its own questions")
    server.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: 16)")
    server.add_argument("--price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"), help="per million tokens")
    server.add_argument("--budget", type=float, help="stop before more than this is spent")
    parser.add_argument("--bank", default="coco", help="phrase bank: a name in datagen/phrases, or a .toml file")
    parser.add_argument("--split", default="train", choices=["train", "held"],
                        help="train: phrases to learn from; held: the two of each category that are kept aside")
    parser.add_argument("--per-image", type=int, default=24, help="questions per photo, at most (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: 0)")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="PLACE",
                        help="folders of evaluation pictures, or lists of their names: no question is made about these "
                             "pictures, whatever they are called, at whatever size")
    parser.add_argument("--val", type=float, default=0.0, metavar="SHARE",
                        help="share of the photos whose questions go to val.jsonl, the others to train.jsonl (default: 0, neither)")
    parser.add_argument("--parquet", action="store_true", help="also write DIR/dataset for the datasets package, with its card")
    parser.add_argument("--out", required=True, help="folder to write to")
    options = parser.parse_args(arguments)

    from assistant.errors import exit_code

    return exit_code(lambda: print(run(options)))


def run(options: argparse.Namespace) -> str:
    """Compose and write; returns the summary."""
    from tqdm import tqdm

    from assistant.convert import to_llmseg40k
    from assistant.errors import BadInput
    from assistant.files import replace_whole
    from assistant.record import write_records
    from datagen.dataset import write_dataset
    from datagen.leaks import fingerprints, leak
    from datagen.phrasebank import load, load_groups
    from datagen.photos import read_coco
    from datagen.rejected import read_rejected, row_id

    if options.per_image < 1:
        raise BadInput("--per-image must be at least 1")
    if options.concurrency < 1:
        raise BadInput("--concurrency must be at least 1")
    if not 0 <= options.val < 1:
        raise BadInput("--val is a share of the photos, from 0 to below 1")
    bank, groups, drops = load(options.bank), load_groups(options.bank), Counter()
    photos = read_coco(options.annotations, options.images, bank if options.writer == "phrasebank" else None, drops, options.format)
    if options.exclude:
        known = fingerprints(options.exclude)
        why = {photo.id: leak(photo.file, known) for photo in tqdm(photos, unit="photo", desc="exclude")}
        drops.update(f"photo: {reason}" for reason in why.values() if reason)
        photos = [photo for photo in photos if not why[photo.id]]
    out = Path(options.out)
    records, rejected = [], read_rejected(out)
    for record in composed(options, photos, bank, groups, drops):
        # Relative, so that the photos and the questions may be moved together.
        record.image = Path(os.path.relpath(Path(record.image).resolve(), out.resolve())).as_posix()
        if row_id(record) in rejected:
            drops["thrown out by hand"] += 1
        else:
            records.append(record)
    if not records:
        raise BadInput("no question could be made of these photos")
    write_records(out / "records.jsonl", records)
    figures = statistics(records) | {"photos": len(photos), "drops": dict(drops.most_common())}
    for name, content, indent in (("llmseg40k.json", to_llmseg40k(records), None), ("statistics.json", figures, 1)):
        with replace_whole(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    splits = {"train": records}
    if options.val:
        splits = {"train": [r for r in records if not in_val(r, options.val)], "val": [r for r in records if in_val(r, options.val)]}
        for name, part in splits.items():
            write_records(out / f"{name}.jsonl", part)
    if options.parquet:
        write_dataset(out / "dataset", splits, out / "records.jsonl", out.resolve().name)
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["by_kind"].items())
    lines = [f"{len(records)} questions about {len(photos)} photos in {out}: {kinds}",
             f"targets: {figures['targets_present']} present, {figures['targets_absent']} absent"]
    return "\n".join(lines + [f"given up {count} times: {reason}" for reason, count in drops.most_common()])


def composed(options: argparse.Namespace, photos: list, bank: dict, groups, drops: Counter):
    """The records of all photos by the writer that was chosen."""
    from tqdm import tqdm

    if options.writer == "phrasebank":
        from datagen.questions import compose

        for photo in tqdm(photos, unit="photo", desc=options.split):
            yield from compose(photo, bank, options.split, options.per_image, options.seed, drops, groups)
        return
    import asyncio

    with tqdm(total=len(photos), unit="photo", desc=options.model) as bar:
        yield from asyncio.run(ask_server(options, photos, bank, drops, bar.update))


async def ask_server(options: argparse.Namespace, photos: list, bank: dict, drops: Counter, done) -> list:
    """The language model's records; prints what they cost."""
    import contextlib

    from assistant.errors import BadInput
    from datagen.llm_writer import write
    from datagen.server import Server

    if not options.model:
        raise BadInput("--writer openai needs --model, the name by which the server knows it")
    try:
        captions = json.loads(Path(options.captions).read_text(encoding="utf-8")) if options.captions else {}
        names = {row["id"]: row["file_name"] for row in captions["images"]} if captions else {}
        told = {names[row["image_id"]]: row["caption"] for row in captions["annotations"]} if captions else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{options.captions} is not COCO's captions json ({error})") from None

    def server(model):
        return Server(model, options.base_url, Path(options.out) / "answers.sqlite", options.concurrency, tuple(options.price),
                      options.budget)

    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(server(options.model))
        eyes = None
        if options.describe_with:
            eyes = await stack.enter_async_context(server(options.describe_with))
            eyes.ledger, eyes.slots = writer.ledger, writer.slots  # one budget, one limit
        try:
            return await write(photos, bank, writer, drops, options.per_image, eyes, told, not options.no_second_opinion,
                               options.concurrency, done)
        finally:
            print(f"{writer.ledger}", file=sys.stderr)


def in_val(record, share: float) -> bool:
    """Whether a record's photo is one of the validation photos: by its name alone, so that no photo is on both sides,
    and more photos move none."""
    return zlib.crc32(Path(record.image).name.encode()) / 2**32 < share


def statistics(records: list) -> dict:
    """Counts by kind, category and size, and how long the questions are."""
    targets = [pair for record in records for pair in zip(record.targets, record.source["area_share"])]
    shares = [share for target, share in targets if target.rle]
    return {
        "questions": len(records),
        "by_kind": dict(Counter(record.source["kind"] for record in records).most_common()),
        "targets_present": len(shares),
        "targets_absent": len(targets) - len(shares),
        "targets_by_area_share": {"below 0.001": sum(share < 0.001 for share in shares),
                                  "0.001 to 0.01": sum(0.001 <= share < 0.01 for share in shares),
                                  "0.01 to 0.1": sum(0.01 <= share < 0.1 for share in shares),
                                  "0.1 and more": sum(share >= 0.1 for share in shares)},
        "by_category": dict(Counter(key for record in records for key in record.source["categories"]).most_common()),
        "phrases_used": len({phrase for record in records for phrase in record.source["phrase_ids"] if phrase}),
        "words_per_question": round(sum(len(record.question.split()) for record in records) / len(records), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
