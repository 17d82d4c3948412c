"""Tunes the pocket preset from its committed weights or `--adapter`, in the phases of `finetune records`:

1. the region encoder learns the new names in addition to those that it knows;
2. the training of LoRA and the token rows continues;
3. the training of the selector continues, and its confidence is calibrated on --val.

What the preset knows is retained in three ways: regions without a name keep the embeddings that they had,
weights are drawn back to where they started, and questions about images of the first training are rehearsed
(`finetune.pocket.rehearsal`; Robins 1995), as are older records that `--data FILE=RATE` names. New names
are the categories, or else the phrases, of the records' targets.

    tune(settings)             # what `python -m finetune --preset pocket` calls
"""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.images import open_image
from assistant.mllm.selector import Selector
from assistant.pocket.heads import Heads
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import PocketImageOpener, PocketOpenedImage, load_pocket_opener, region_key
from assistant.pocket.pipeline import PocketPipeline
from assistant.pocket.semantic import SemanticSelector
from assistant.sam.mask_ops import Rle
from assistant.scene import PRESENCE_THRESHOLD
from assistant.weights import POCKET, adapter_file, pocket_file, sha256_of
from finetune.image_record import ImageRecord, read_image_records
from finetune.mllm.adapter import write_settings
from finetune.mllm.validation import QUESTIONS_IN_REPORT, evenly_spaced
from finetune.pocket.encoder import train_encoders
from finetune.pocket.examples import RecordData, every_tenth
from finetune.pocket.instances import instances_in_records
from finetune.pocket.language import load_trainable_llm, train_llm
from finetune.pocket.regions import load_regions
from finetune.pocket.rehearsal import PACK, read_pack
from finetune.pocket.selection import evaluate, train_selector
from finetune.pocket.settings import EncoderSettings, LanguageSettings, SelectorSettings
from finetune.region_cache import ImageRegions, RegionCache
from finetune.settings import TuneSettings
from finetune.training_report import TrainingReport, present_masks

SAVE_MINUTES = 1.0  # between checkpoints of the LLM
HELD_OUT_EXAMPLES = 80  # on which each checkpoint of the selector is scored
ANCHOR = 0.003  # share of the way back to its first value that each weight goes in a step
ENCODER_LR = 5e-4  # half of that of the first training
MIN_SELECTOR_STEPS = 30
MIN_VALIDATE_EVERY = 10
# Augmented copies do not help here: .852 of car parts in new images were named rightly without them, .819
# with four.
AUGMENTED_COPIES = 0
CURVES = {
    "llm.jsonl": ["text", "word_right", "marker_right"],
    "selector.jsonl": ["align", "iop", "presence", "top_iou"],
}


@dataclass
class TuningRecords:
    """The records of a run.

    Attributes:
        training: Records of --data, then the rehearsed ones.
        source_of: For each of them, the number of its --data file; the number of these files for a rehearsed
            one.
        validation: Records of --val, [] without.
        rates: How often records are drawn, by that number.
        rehearsed: {image: its regions} of the rehearsed records, whose images have no files.
    """

    training: list[ImageRecord]
    source_of: list[int]
    validation: list[ImageRecord]
    rates: list[float]
    rehearsed: dict[Path, ImageRegions]

    @classmethod
    def read(cls, settings: TuneSettings, sam_checksum: str) -> "TuningRecords":
        """Read them. Raises BadInput where a file cannot be read."""
        rehearsed_records, rehearsed = read_pack(PACK, sam_checksum) if settings.rehearsal else ([], {})
        by_source = [read_image_records(file) for file in settings.record_files] + [rehearsed_records]
        return cls(
            [record for records in by_source for record in records],
            [number for number, records in enumerate(by_source) for _ in records],
            read_image_records(settings.val) if settings.val else [],
            [rate for _, rate in settings.sources] + [settings.rehearsal],
            rehearsed,
        )

    @property
    def all(self) -> list[ImageRecord]:
        """The records of training, then those of validation."""
        return [*self.training, *self.validation]

    @functools.cached_property
    def held_out(self) -> set[Path]:
        """The images that the LLM and the selector do not learn from, and on which presence is calibrated.

        Those of --val, with every tenth image of the other sources but the first, which --val stands for;
        without --val, every tenth image.
        """
        validation = {record.image for record in self.validation}
        others = self._training_only
        if validation:
            first = {r.image for r, source in zip(self.training, self.source_of, strict=True) if source == 0}
            others = sorted(set(others) - first)
        return validation | set(every_tenth(others))

    @functools.cached_property
    def images(self) -> list[Path]:
        """All images; their order decides their folds."""
        training = self._training_only
        return [*training, *sorted(self.held_out - set(training))]

    @functools.cached_property
    def _training_only(self) -> list[Path]:
        validation = {record.image for record in self.validation}
        return sorted({record.image for record in self.training} - validation)

    def weights(self, images: Collection[Path]) -> dict[Path, float]:
        """What a record of each image counts, so that sources are drawn by their rates, not by their sizes.

        Records of --val count as those of the first source.
        """
        numbered = [
            *zip(self.training, self.source_of, strict=True),
            *((record, 0) for record in self.validation),
        ]
        numbered = [(record, source) for record, source in numbered if record.image in images]
        counts = Counter(source for _, source in numbered)
        return {record.image: self.rates[source] / counts[source] for record, source in numbered}

    def shown(self) -> list[ImageRecord]:
        """The questions that the report shows: of --val, else of held-out images; never of rehearsed ones."""
        asked = [r for r in self.validation if r.record.targets]
        if not asked:
            asked = [r for r in self.training if r.image in self.held_out and r.record.targets]
        return evenly_spaced([r for r in asked if r.image not in self.rehearsed], QUESTIONS_IN_REPORT)


def compute_regions(settings: TuneSettings, records: TuningRecords, sam: Path) -> dict[Path, ImageRegions]:
    """The regions of all images of a run, in the order of `records.images`."""
    with_files = [image for image in records.images if image not in records.rehearsed]
    learned = [record for record in records.training if record.image not in records.rehearsed]
    computed = load_regions(
        functools.partial(load_pocket_opener, sam),
        region_key(sam),
        with_files,
        instances_in_records(learned),
        RegionCache(settings.cache_folder, settings.cache_gb),
        copies=AUGMENTED_COPIES,
    )
    return {
        image: records.rehearsed[image] if image in records.rehearsed else computed[image]
        for image in records.images
    }


class AnsweredQuestions:
    """Answers the questions of the report with the weights in training.

    The few images that the report shows are opened as an answer needs them; the regions that are stored for
    training hold no embedding.

    Args:
        out: Folder of the run, where the report is stored.
        llm: The LLM in training, with its region encoder.
        sam: Weights of the pocket SAM.
        questions: The questions.

    Attributes:
        report: Stores the answers.
        opened: {image: it opened}, of those that were asked about.
    """

    def __init__(self, out: Path, llm: PocketLLM, sam: Path, questions: Sequence[ImageRecord]):
        self.llm = llm
        self.sam = sam
        self.semantic = SemanticSelector.load(pocket_file("semantic.safetensors"))
        self.report = TrainingReport(out, questions, self.answer)
        self.opened: dict[Path, PocketOpenedImage] = {}
        self._pipeline: PocketPipeline | None = None

    @functools.cached_property
    def opener(self) -> PocketImageOpener:
        """Opens the images of the questions."""
        return load_pocket_opener(self.sam)

    def add(self, step: int, selector: Selector, figures: Mapping[str, float]) -> None:
        """Answer the questions after `step` steps of the selector, and add the answers to the report."""
        model = self.llm.model.get_base_model()
        llm = PocketLLM(model, self.llm.tokenizer, self.llm.encoder, self.llm.phrase_rows, self.llm.unspoken)
        self._pipeline = PocketPipeline(self.opener, llm, selector, self.semantic)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.report.add(step, figures)

    def answer(self, question: str, image: Path) -> tuple[str, list[Rle]]:
        """Answer a question; see `finetune.training_report.Ask`."""
        assert self._pipeline is not None, "there are no weights to answer with before `add`"
        if image not in self.opened:
            self.opened[image] = self.opener.open(open_image(image))
        opened = self.opened[image]
        reply, selections = self._pipeline.ask([Turn(question)], opened, PRESENCE_THRESHOLD)
        return reply.text, present_masks(reply.text, selections, opened.rles)


def tune(settings: TuneSettings) -> None:
    """Tune the pocket preset; a run that was stopped continues.

    Raises:
        BadInput: The settings are not for this preset, or files cannot be read.
    """
    if settings.sam or settings.dino or settings.four_bit or settings.tune_vision or settings.pixels:
        raise BadInput(
            "the pocket preset keeps its own SAM and backbone; "
            "leave out --sam, --dino, --four-bit, --tune-vision and --pixels"
        )
    start = load_start(settings.adapter)
    write_settings(settings.out, settings.recorded())
    torch.manual_seed(settings.seed)
    sam = pocket_file("sam.safetensors")
    records = TuningRecords.read(settings, sha256_of(sam))
    regions = compute_regions(settings, records, sam)
    llm = load_trainable_llm(settings.rank, (settings.adapter or POCKET) / "lora")
    llm.phrase_rows = dict(start.phrase_rows)
    llm.unspoken = start.unspoken
    answered = AnsweredQuestions(settings.out, llm, sam, records.shown())
    if not (settings.out / "llm.pt").exists():
        _evaluate_start(settings, llm, start, records, regions, answered)
    _train(settings, llm, start, records, regions, answered)
    report = answered.report.write(
        f"Tuning the pocket preset: {settings.out.name}", settings.recorded(), CURVES
    )
    print(f"wrote {settings.out}: give it as --adapter {settings.out}, see {report}", flush=True)


def load_start(adapter: Path | None) -> Heads:
    """The heads that tuning starts from, the encoder frozen. Raises BadInput where the adapter has none."""
    heads = Heads.load(adapter_file(adapter) if adapter else pocket_file("heads.safetensors"))
    heads.encoder.requires_grad_(False)
    return heads


def _evaluate_start(
    settings: TuneSettings,
    llm: PocketLLM,
    start: Heads,
    records: TuningRecords,
    regions: Mapping[Path, ImageRegions],
    answered: AnsweredQuestions,
) -> None:
    """Score the weights that tuning starts from, as step 0 of the report."""
    llm.encoder = start.encoder
    llm.model.eval()
    held_out = records.held_out
    held_out_regions = {image: regions[image] for image in sorted(held_out)}
    with torch.no_grad():
        encoded = {image: start.encoder(regions[image].features) for image in held_out}
    data = RecordData(
        records.all, held_out_regions, encoded, settings.seed, held_out, records.weights(held_out)
    )
    figures: dict[str, float] = {}
    if data.records:
        selection = selector_settings(settings)
        figures, _ = evaluate(selection, settings.out, llm, start.selector, data, llm_steps=0)
    answered.add(0, start.selector, figures)


def _train(
    settings: TuneSettings,
    llm: PocketLLM,
    start: Heads,
    records: TuningRecords,
    regions: Mapping[Path, ImageRegions],
    answered: AnsweredQuestions,
) -> None:
    """The three phases."""
    encoding = EncoderSettings(steps=4 * settings.max_steps, lr=ENCODER_LR)
    encoded = train_encoders(encoding, settings.out, llm, records.training, regions, start.encoder)

    def data_of(images: set[Path]) -> RecordData:
        return RecordData(records.all, regions, encoded, settings.seed, images, records.weights(images))

    training = data_of(set(records.images) - records.held_out)
    held_out = data_of(records.held_out)
    language = LanguageSettings(
        steps=settings.max_steps,
        batch=settings.batch,
        lr=settings.lr,
        anchor=ANCHOR,
        save_minutes=SAVE_MINUTES,
        log_every=settings.log_every,
    )
    train_llm(language, settings.out, llm, training)
    selection = selector_settings(settings)
    train_selector(selection, settings.out, llm, training, held_out, start.selector, answered.add)


def selector_settings(settings: TuneSettings) -> SelectorSettings:
    """The settings of the selector in a tuning run."""
    return SelectorSettings(
        llm_steps=settings.max_steps,
        examples=2 * settings.max_steps,
        held_out_examples=HELD_OUT_EXAMPLES,
        steps=max(MIN_SELECTOR_STEPS, settings.max_steps * 3 // 5),
        lr=settings.selector_lr,
        weight_decay=0.0,
        anchor=ANCHOR,
        loss_weights=settings.weights,
        hard_negatives=settings.hard_negatives,
        validate_every=max(MIN_VALIDATE_EVERY, settings.save_every // 2),
        log_every=settings.log_every,
        seed=settings.seed,
    )
