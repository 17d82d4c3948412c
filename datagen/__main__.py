"""Questions with masks from photos with masks.

    python -m datagen --images photos --annotations instances.json --out questions      # no model, no network
    python -m datagen --images photos --annotations labels --format labelme --bank clothing,coco \\
        --out questions
    python -m datagen --images photos --annotations lvis.json --format lvis --pick 10000 --out questions \\
        --writer openai --model qwen3-vl --base-url http://127.0.0.1:8000/v1 --describe-with qwen3-vl \\
        --concurrency 64
    python -m datagen --images photos --format none --describe-with models/Qwen3-VL-4B \\
        --out questions                                                                  # without annotations
    python -m datagen.browse questions                                    # look at them, and throw some out

Writes DIR/records.jsonl (the project's records, one question a line), DIR/llmseg40k.json (LLM-Seg40K's form),
DIR/statistics.json and .html. The same command gives the same files; killed at any point, it goes on where it
was. What is thrown out by hand stays out.

Five steps: pick (sources/pick.py; sources/outline.py and llm/naming.py where masks or names are missing),
describe and ask (composer/questions.py from the phrase bank, llm/writer.py by a language model), check
(checks.py), write (output.py). What each photo gave is stored in DIR/kept.sqlite, so that a second run does
only what is new.
"""

if __name__ == "__main__":  # Ctrl-C may come while the modules below are imported
    import signal

    from assistant.interruption import end_at_once

    signal.signal(signal.SIGINT, end_at_once)

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from assistant.errors import exit_code
from datagen.settings import ENGINES, FORMATS, SPLITS, WRITERS, Settings


def argument_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        "python -m datagen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_photo_options(parser)
    _add_question_options(parser)
    _add_model_options(parser)
    _add_engine_options(parser)
    _add_output_options(parser)
    return parser


def _add_photo_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photos")
    group.add_argument("--images", required=True, help="folder with the photos")
    group.add_argument("--annotations", help="their masks, or boxes, and names")
    group.add_argument(
        "--format",
        default="coco",
        choices=FORMATS,
        help="format of the annotations; none: without annotations, SAM outlines regions and the model of "
        "--describe-with names them (default: coco)",
    )
    group.add_argument(
        "--sam",
        default="pocket",
        help="makes masks from boxes: pocket, an official .pth, a transformers folder or hub id of SAM or "
        "SAM 2; none: leave out what has only a box (default: pocket)",
    )
    group.add_argument(
        "--parts", action="store_true", help="the names are of parts of one object, such as a car's"
    )
    group.add_argument(
        "--pick",
        type=int,
        metavar="N",
        help="ask only about N photos: simple ones, which show 2 to 5 categories, and complex ones, which "
        "show more (default: about all)",
    )
    group.add_argument(
        "--complex",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of complex photos among them (default: .4)",
    )
    group.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="folders of evaluation images, or lists of their names: no question is made about these "
        "images, whatever they are called and at whatever size",
    )


def _add_question_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--writer",
        default="phrasebank",
        choices=WRITERS,
        help="what words the questions: phrasebank: no model, offline; openai: a model behind any "
        "OpenAI-compatible server; hf: a model in this process, through transformers; vllm: with "
        "--engine ray, on a cluster's GPUs (default: phrasebank)",
    )
    group.add_argument("--per-image", type=int, default=24, help="questions per photo, at most (default: 24)")
    group.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: 0)")
    group.add_argument(
        "--bank",
        default="coco",
        help="phrase bank: a name in datagen/composer/phrases or a .toml file; several with commas between",
    )
    group.add_argument(
        "--split",
        default="train",
        choices=SPLITS,
        help="train: phrases to learn from; held: the two of each category that are kept out of training",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "with a language model",
        "the key is read from OPENAI_API_KEY and written nowhere; what was answered is never asked again",
    )
    group.add_argument(
        "--model",
        help="the writer: as the server calls it; hf and vllm: a folder in transformers' layout or a hub id",
    )
    group.add_argument(
        "--base-url", help="the server, such as http://127.0.0.1:8000/v1 (default: the client's own)"
    )
    group.add_argument(
        "--describe-with",
        metavar="MODEL",
        help="a multimodal model that describes each photo first, and verifies what is said to be absent; "
        "with --writer hf it runs in this process too",
    )
    group.add_argument(
        "--captions", metavar="FILE", help="COCO captions json to be used instead of a description"
    )
    group.add_argument(
        "--no-second-opinion", action="store_true", help="do not let the model answer its own questions"
    )
    group.add_argument(
        "--concurrency", type=int, default=16, help="requests at a time; hf: in a batch (default: 16)"
    )
    group.add_argument(
        "--answer-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer, at most (default: the server's own; hf and vllm: 2048)",
    )
    group.add_argument("--device", default="cpu", help="for hf and --sam (default: cpu)")
    group.add_argument(
        "--price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"), help="per million tokens"
    )
    group.add_argument("--budget", type=float, help="stop before more than this is spent")


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many machines")
    group.add_argument(
        "--engine",
        default="plain",
        choices=ENGINES,
        help="ray: the same rows by Ray Data, on this machine or, with RAY_ADDRESS, on a cluster (default: "
        "plain)",
    )
    group.add_argument("--workers", type=int, default=2, help="of --engine ray (default: 2)")
    group.add_argument(
        "--vllm",
        default="{}",
        metavar="JSON",
        help="engine arguments for --writer vllm, such as "
        '\'{"tensor_parallel_size": 2, "max_model_len": 16384}\'',
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, help="folder to write to")
    group.add_argument(
        "--val",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the photos whose questions go to val.jsonl, the others to train.jsonl (default: 0, "
        "neither)",
    )
    group.add_argument(
        "--parquet",
        action="store_true",
        help="also write DIR/dataset for the datasets package, with its card",
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """Turn the command's options into settings.

    Raises:
        BadInput: They are out of range or do not go together.
    """
    return Settings(
        images=Path(options.images),
        out=Path(options.out),
        annotations=Path(options.annotations) if options.annotations else None,
        format=options.format,
        sam=options.sam,
        parts=options.parts,
        pick=options.pick,
        complex_share=options.complex,
        exclude=tuple(map(Path, options.exclude)),
        writer=options.writer,
        per_image=options.per_image,
        seed=options.seed,
        bank=options.bank,
        split=options.split,
        model=options.model,
        base_url=options.base_url,
        describe_with=options.describe_with,
        captions=Path(options.captions) if options.captions else None,
        second_opinion=not options.no_second_opinion,
        concurrency=options.concurrency,
        answer_tokens=options.answer_tokens,
        device=options.device,
        price=(options.price[0], options.price[1]),
        budget=options.budget,
        engine=options.engine,
        workers=options.workers,
        vllm=_engine_arguments(options.vllm),
        val_share=options.val,
        parquet=options.parquet,
    )


def _engine_arguments(text: str) -> dict[str, Any]:
    """The JSON object of --vllm."""
    from assistant.errors import BadInput

    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise BadInput("--vllm is a JSON object of vLLM's engine arguments")
    return arguments


def summary(figures: dict[str, Any], out: Path) -> str:
    """What the command prints at the end. figures: of statistics.json."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["by_kind"].items())
    lines = [
        f"{figures['questions']} questions about {figures['photos']} photos in {out}: {kinds}",
        f"targets: {figures['targets_present']} present, {figures['targets_absent']} absent",
    ]
    for reason, count in figures["drops"].items():
        items = figures.get("dropped_items", {}).get(reason, [])
        rest = ", ..." if len(items) < count else ""
        lines.append(f"dropped {count} x {reason}" + (f" ({', '.join(items)}{rest})" if items else ""))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    return exit_code(lambda: run(arguments))


def run(arguments: list[str] | None = None) -> None:
    """Generate the questions that a command line asks for, and print how many there are."""
    options = argument_parser().parse_args(arguments)

    from assistant.files import lock_folder
    from datagen.generate import generate

    settings = settings_from(options)
    with lock_folder(settings.out):
        print(summary(generate(settings), settings.out))


if __name__ == "__main__":
    sys.exit(main())
