"""Questions with masks from photos with masks.

    python -m datagen --images photos --annotations instances.json --out questions          # no model, no network
    python -m datagen --images photos --annotations labels --format labelme --bank clothing,coco --out questions
    python -m datagen --images photos --annotations lvis.json --format lvis --pick 10000 --out questions \\
        --writer openai --model qwen3-vl --base-url http://127.0.0.1:8000/v1 --describe-with qwen3-vl --concurrency 64
    python -m datagen --images photos --format none --describe-with models/Qwen3-VL-4B --out questions   # no labels
    python -m datagen.browse questions                                                       # look, and throw out

Writes DIR/records.jsonl (the project's records, one question a line), DIR/llmseg40k.json (LLM-Seg40K's form),
DIR/statistics.json and .html. The same command gives the same files; killed at any point, it goes on where it was. What is
thrown out by hand stays out.

Five steps: pick (pick.py; outline.py where masks or names are missing), describe (describe.py), ask (questions.py from
the phrase bank, llm_writer.py by a language model), check (checks.py), write (output.py). What each photo gave is kept in
DIR/kept.sqlite, so that a second run does only what is new.
"""

import argparse
import json
import sys
from pathlib import Path

FORMATS = ("coco", "lvis", "egoobjects", "labelme", "labels", "none")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m datagen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("photos")
    data.add_argument("--images", required=True, help="folder with the photos")
    data.add_argument("--annotations", help="their masks, or boxes, and names")
    data.add_argument(
        "--format",
        default="coco",
        choices=FORMATS,
        help="what the annotations are; none: there are none, the things are outlined by SAM and named by "
        "--describe-with (default: coco)",
    )
    data.add_argument(
        "--sam",
        default="pocket",
        help="makes masks of boxes: pocket, an official .pth, a transformers folder or hub id of SAM or SAM 2; "
        "none: leave out what has only a box (default: pocket)",
    )
    data.add_argument(
        "--parts", action="store_true", help="the names are of parts of one thing, such as a car's"
    )
    data.add_argument(
        "--pick",
        type=int,
        metavar="N",
        help="ask only about N photos: simple ones, which show 2 to 5 categories, and complex ones, which show "
        "more (default: about all)",
    )
    data.add_argument(
        "--complex",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the complex among them (default: .4)",
    )
    data.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="folders of evaluation pictures, or lists of their names: no question is made about these "
        "pictures, whatever they are called, at whatever size",
    )
    asking = parser.add_argument_group("questions")
    asking.add_argument(
        "--writer",
        default="phrasebank",
        choices=["phrasebank", "openai", "hf", "vllm"],
        help="who words the questions: phrasebank: no model, offline; openai: a model behind any "
        "OpenAI-compatible server; hf: a model in this process, through transformers; vllm: with "
        "--engine ray, on a cluster's GPUs (default: phrasebank)",
    )
    asking.add_argument(
        "--per-image", type=int, default=24, help="questions per photo, at most (default: 24)"
    )
    asking.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: 0)")
    asking.add_argument(
        "--bank",
        default="coco",
        help="phrase bank: a name in datagen/composer/phrases or a .toml file; several with commas between",
    )
    asking.add_argument(
        "--split",
        default="train",
        choices=["train", "held"],
        help="train: phrases to learn from; held: the two of each category that are kept aside",
    )
    server = parser.add_argument_group(
        "with a language model",
        "the key is read from OPENAI_API_KEY and written nowhere; what was answered is never asked again",
    )
    server.add_argument(
        "--model",
        help="the writer: as the server calls it; hf and vllm: a folder in transformers' layout or a hub id",
    )
    server.add_argument(
        "--base-url", help="the server, such as http://127.0.0.1:8000/v1 (default: the client's own)"
    )
    server.add_argument(
        "--describe-with",
        metavar="MODEL",
        help="a multimodal model that describes each photo first, and looks for what is said to be absent; with "
        "--writer hf it runs in this process too",
    )
    server.add_argument(
        "--captions", metavar="FILE", help="COCO captions json to be used instead of a description"
    )
    server.add_argument(
        "--no-second-opinion", action="store_true", help="do not let the model answer its own questions"
    )
    server.add_argument(
        "--concurrency", type=int, default=16, help="requests at a time; hf: in a batch (default: 16)"
    )
    server.add_argument(
        "--answer-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer, at most (default: the server's own; hf and vllm: 2048)",
    )
    server.add_argument("--device", default="cpu", help="for hf and --sam (default: cpu)")
    server.add_argument(
        "--price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"), help="per million tokens"
    )
    server.add_argument("--budget", type=float, help="stop before more than this is spent")
    scale = parser.add_argument_group("many machines")
    scale.add_argument(
        "--engine",
        default="plain",
        choices=["plain", "ray"],
        help="ray: the same rows by Ray Data, on this machine or, with RAY_ADDRESS, on a cluster (default: "
        "plain)",
    )
    scale.add_argument("--workers", type=int, default=2, help="of --engine ray (default: 2)")
    scale.add_argument(
        "--vllm",
        default="{}",
        metavar="JSON",
        help="engine arguments for --writer vllm, such as "
        '\'{"tensor_parallel_size": 2, "max_model_len": 16384}\'',
    )
    written = parser.add_argument_group("output")
    written.add_argument("--out", required=True, help="folder to write to")
    written.add_argument(
        "--val",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the photos whose questions go to val.jsonl, the others to train.jsonl (default: 0, "
        "neither)",
    )
    written.add_argument(
        "--parquet",
        action="store_true",
        help="also write DIR/dataset for the datasets package, with its card",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    options = parser().parse_args(arguments)

    import errno

    from assistant.errors import BadInput, exit_code

    def command() -> None:
        try:
            print(run(options))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
                raise
            raise BadInput(
                f"cannot write to {options.out} ({error.strerror}); make room, and the same command goes on"
            ) from None

    return exit_code(command)


def run(options: argparse.Namespace) -> str:
    """All steps; returns the summary."""
    from collections import Counter

    from tqdm import tqdm

    from assistant.files import make_folder
    from datagen.dataset import write_dataset
    from datagen.engines.plain import plain
    from datagen.output import output
    from datagen.result_cache import Kept
    from datagen.sources.leaks import fingerprints
    from datagen.sources.pick import pick

    check(options)
    out, drops = Path(options.out), Counter()
    make_folder(out)
    photos = open_photos(options)
    known = fingerprints(options.exclude) if options.exclude else None
    if options.pick:
        photos.only = pick(photos, options.pick, options.complex, options.seed, drops)
    kept = Kept(out / "kept.sqlite")
    from_dataset = "ego_objects" if options.format == "egoobjects" else "coco"
    with output(out, options.val, from_dataset) as written:
        if options.engine == "ray":
            from datagen.engines.ray import on_ray
            from datagen.engines.vllm import on_vllm

            engine = on_vllm if options.writer == "vllm" else on_ray
            made = engine(photos, drops, options, known, kept)
        else:
            made = plain(photos.read(drops), options, known, kept)
        for _, one in tqdm(made, total=len(photos), unit="photo", desc=options.model or options.split):
            written.add(one)
        written.statistics.drops.update(drops)
    kept.close()
    if options.parquet:
        splits = {"train": out / "records.jsonl"}
        if options.val:
            splits = {name: out / f"{name}.jsonl" for name in ("train", "val")}
        write_dataset(out / "dataset", splits, out.resolve().name)
    return summary(written.statistics.figures(), out)


def open_photos(options: argparse.Namespace):
    """The data set's photos, through the index in the output folder."""
    from datagen.composer.phrasebank import load
    from datagen.sources.index import open_index
    from datagen.sources.photos import Photos

    annotations = Path(options.annotations) if options.annotations else None
    index = open_index(options.format, annotations, Path(options.images), Path(options.out) / "photos.sqlite")
    bank = load(options.bank) if options.writer == "phrasebank" else None
    return Photos(
        index, Path(options.images), bank, options.sam != "none", options.format == "none", options.parts
    )


def check(options: argparse.Namespace) -> None:
    """BadInput for options that cannot be."""
    from assistant.errors import BadInput

    for name in ("per_image", "concurrency", "pick", "answer_tokens", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1")
    if options.writer == "vllm" and not (options.engine == "ray" and options.model):
        raise BadInput("--writer vllm needs --engine ray and --model")
    try:
        usable = isinstance(json.loads(options.vllm), dict)
    except ValueError:
        usable = False
    if not usable:
        raise BadInput("--vllm is a JSON object of vLLM's engine arguments")
    if (options.annotations is None) != (options.format == "none"):
        raise BadInput("--annotations names the annotations; with --format none there are none")
    if options.format == "none" and not (options.describe_with and options.sam != "none"):
        raise BadInput("--format none needs --describe-with, the multimodal model that names what SAM finds")
    if not 0 <= options.val < 1:
        raise BadInput("--val is a share of the photos, from 0 to below 1")
    if not 0 <= options.complex <= 1:
        raise BadInput("--complex is a share of the photos, from 0 to 1")


def summary(figures: dict, out: Path) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["by_kind"].items())
    lines = [
        f"{figures['questions']} questions about {figures['photos']} photos in {out}: {kinds}",
        f"targets: {figures['targets_present']} present, {figures['targets_absent']} absent",
    ]
    return "\n".join(
        lines + [f"given up {count} times: {reason}" for reason, count in figures["drops"].items()]
    )


if __name__ == "__main__":
    sys.exit(main())
