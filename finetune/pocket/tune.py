"""Tuning of the pocket preset from its committed weights, or from `--adapter`, in the three phases of `finetune records`:

1. the region encoder learns the new names beside those it knows;
2. LoRA and the token rows go on from where they are;
3. the selector goes on, and its confidence is calibrated on --val.

What it knew is kept in three ways: regions that are not outlined keep the words they had, weights are drawn back to where
they began, and questions about pictures of its first training are rehearsed (`finetune.pocket.rehearsal`; Robins 1995), beside any
`--data FILE=RATE` of older records. The names that are new are the categories, or else the phrases, of the records' targets.
"""

import argparse
import functools
from collections import Counter
from pathlib import Path

import torch

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.images import open_image
from assistant.mllm.selector import Selector
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import load_pocket_opener
from assistant.pocket.pipeline import PocketPipeline, heads_of
from assistant.pocket.semantic import Semantic
from assistant.record import image_path, read_records
from assistant.scene import THRESHOLD
from assistant.weights import POCKET, adapter_file, pocket_file, read_weights, sha256_of
from finetune.image_record import ImageRecord
from finetune.mllm.adapter import write_settings
from finetune.mllm.validation import QUESTIONS_IN_REPORT, evenly_spaced
from finetune.pocket.encoder import learn_to_see
from finetune.pocket.examples import KEPT_ASIDE, RecordData
from finetune.pocket.language import build, train_llm
from finetune.pocket.outlined import all_regions, named_in_records
from finetune.pocket.rehearsal import PACK, rehearsed
from finetune.pocket.selection import examine, train_selector
from finetune.region_cache import RegionCache
from finetune.settings import TuneSettings
from finetune.training_report import TrainingReport, present_masks

MINUTES = 1.0  # between checkpoints of the LLM
EXAMINED = 80  # times that questions of pictures kept aside are drawn
ANCHOR = 0.003  # of the way back to where it began that a weight goes in a step


def tune(args: TuneSettings) -> None:
    if args.sam or args.dino or args.four_bit or args.tune_vision:
        raise BadInput(
            "the pocket preset keeps its own SAM and eyes; leave out --sam, --dino, --four-bit and --tune-vision"
        )
    start, folder = committed(args.adapter), (args.adapter or POCKET) / "lora"
    write_settings(args.out, args.recorded())
    torch.manual_seed(args.seed)
    sam = pocket_file("sam.safetensors")
    rates = [rate for _, rate in args.sources] + [args.rehearsal]
    known, seen_before = rehearsed(PACK, sha256_of(sam)) if rates[-1] else ([], {})
    sources = [
        (r, image_path(r, f).resolve(), k) for k, (f, _) in enumerate(args.sources) for r in read_records(f)
    ]
    sources += [(r, image, len(args.sources)) for r, image in known]
    held = [(r, image_path(r, args.val).resolve()) for r in read_records(args.val)] if args.val else []
    records = [(r, image) for r, image, _ in sources]
    aside = {image for _, image in held}
    first = {image for _, image, k in sources if k == 0 or not held}
    # Calibration also looks at what is only learned along: every tenth of those pictures.
    others = sorted({image for _, image in records} - aside)
    aside |= {
        i
        for n, i in enumerate(sorted(set(others) - first if held else others))
        if n % KEPT_ASIDE == KEPT_ASIDE - 1
    }
    images = [*others, *sorted(aside - set(others))]
    sources += [(r, image, 0) for r, image in held]
    named = named_in_records([(r, image) for r, image in records if image not in seen_before])
    kept = RegionCache(args.cache or args.out / "regions", args.cache_gb)
    # No other views: .852 of car parts in new photos were named rightly without them, .819 with four.
    regions = (
        all_regions(
            functools.partial(load_pocket_opener, sam),
            f"pocket {sha256_of(sam)}",
            [i for i in images if i not in seen_before],
            named,
            kept,
            views=0,
        )
        | seen_before
    )
    regions = {image: regions[image] for image in images}
    llm = build(args.rank, folder)
    llm.forms = dict(start.forms)
    settings = argparse.Namespace(
        out=args.out,
        seed=args.seed,
        lr=args.lr,
        steps=args.max_steps,
        batch=args.batch,
        save_every=MINUTES,
        encoder_steps=4 * args.max_steps,
        encoder_lr=5e-4,
        states=2 * args.max_steps,
        selector_steps=max(30, args.max_steps * 3 // 5),
        selector_lr=args.selector_lr,
        weights=args.weights,
        hard=args.hard_negatives,
        anchor=ANCHOR,
        examined=EXAMINED,
        check_every=max(10, args.save_every // 2),
        log_every=args.log_every,
    )
    asked = [(r, i) for r, i in held if r.targets] or [(r, i) for r, i in records if i in aside and r.targets]
    asked = [(r, i) for r, i in asked if i not in seen_before]  # of the rehearsed ones no picture is kept
    progress = TrainingReport(
        args.out, [ImageRecord(r, i) for r, i in evenly_spaced(asked, QUESTIONS_IN_REPORT)], None
    )
    # The few pictures that are shown are opened as an answer needs them: what is stored for training holds no embedding.
    opener = functools.cache(lambda: load_pocket_opener(sam))
    opened = functools.cache(lambda image: opener().open(open_image(image)))
    semantic = Semantic.load(pocket_file("semantic.safetensors"))

    def look(step: int, selector: Selector, figures: dict) -> None:
        parts = PocketPipeline(
            opener(),
            PocketLLM(llm.model.get_base_model(), llm.tokenizer, llm.encoder, llm.forms),
            selector,
            semantic,
        )
        training, selector.training = selector.training, False

        def ask(question: str, image: Path):
            view = opened(image)
            reply, found = parts.ask([Turn(question)], view, THRESHOLD)
            return reply.text, present_masks(reply.text, found, view.rles)

        progress.ask = ask
        with torch.autocast("cpu", dtype=torch.bfloat16):
            progress.add(step, figures)
        selector.training = training

    if not (args.out / "llm.pt").exists():
        llm.encoder = start.encoder
        llm.model.eval()
        with torch.no_grad():
            seen = {image: start.encoder(regions[image].features) for image in aside}
        now = RecordData(
            records + held,
            {i: regions[i] for i in sorted(aside)},
            seen,
            args.seed,
            True,
            aside,
            shares(sources, rates, aside),
        )
        look(
            0,
            start.selector.eval(),
            examine(settings, llm, start.selector, now, 0)[0] if now.records else {},
        )
    seen = learn_to_see(settings, llm, records, regions, start.encoder)
    data = lambda held_out: RecordData(
        records + held,
        regions,
        seen,
        args.seed,
        held_out,
        aside,
        shares(sources, rates, aside if held_out else set(images) - aside),
    )
    train_llm(settings, llm, data(False))
    train_selector(settings, llm, data(False), data(True), start.selector, look)
    progress.write(
        f"Tuning the pocket preset: {args.out.name}",
        args.recorded(),
        {
            "llm.jsonl": ["text", "word_right", "marker_right"],
            "selector.jsonl": ["align", "iop", "presence", "top_iou"],
        },
    )
    print(
        f"wrote {args.out}: give it as --adapter {args.out}, look at {args.out / 'report.html'}", flush=True
    )


def shares(sources: list[tuple], rates: list[float], images: set[Path]) -> dict[Path, float]:
    """What a record of each of these pictures counts: the files' shares are as their rates, whatever they hold.

    sources: (record, its picture, number of its file)."""
    counts = Counter(k for _, image, k in sources if image in images)
    return {image: rates[k] / counts[k] for _, image, k in sources if image in images}


def committed(adapter: Path | None) -> argparse.Namespace:
    """The encoder, selector and forms that tuning begins with."""
    file = adapter_file(adapter) if adapter else pocket_file("heads.safetensors")
    heads, about = read_weights(file)
    if "forms" not in about:
        raise BadInput(f"{file} is not of the pocket preset; leave out --preset pocket and give --mllm")
    encoder, selector, forms = heads_of(heads, about)
    return argparse.Namespace(selector=selector, encoder=encoder.eval().requires_grad_(False), forms=forms)
