"""Training of any multimodal LLM with its selector: `python -m finetune` for every preset but pocket.

    train(settings, llm, origin, load_opener, Accelerator())

It runs in one process, or in several under `accelerate launch`. A run that was stopped continues as if it had
not been: the order of the data and dropout follow from the number of the step, and the weights and the
optimiser's state are stored.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.images import open_image
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import answer, check_concepts, check_sam, read_heads
from assistant.sam.mask_ops import Rle
from assistant.scene import PRESENCE_THRESHOLD
from finetune.log import TrainingLog, cosine_schedule
from finetune.mllm import deepspeed
from finetune.mllm.adapter import AdapterOrigin, save_adapter, write_card
from finetune.mllm.batches import Batch, BatchReader
from finetune.mllm.checkpoint import STATE_FILE, load_weights, restore_state, save_state
from finetune.mllm.data import TrainingData, part_loader, prepare_data
from finetune.mllm.lora import LoraSettings, enable_activation_checkpointing, start_model
from finetune.mllm.model import LLMWithSelector
from finetune.mllm.step import training_step
from finetune.mllm.validation import QUESTIONS_IN_REPORT
from finetune.settings import LOSS_NAMES, TuneSettings
from finetune.training_report import TrainingReport, present_masks

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_ANSWER_TOKENS = 96  # of an answer in the report
ADAM_BETAS = (0.9, 0.95)


def train(
    settings: TuneSettings,
    llm: MultimodalLLM,
    origin: AdapterOrigin,
    load_opener: Callable[[], Any],
    accelerator: "Accelerator",
) -> None:
    """Train a multimodal LLM and its selector, and write the adapter to `settings.out`.

    Args:
        settings: The settings of the run.
        llm: The multimodal LLM, which gets LoRA.
        origin: Names the models for the adapter's metadata, and the regions in the cache.
        load_opener: Loads what makes the regions of images, see `finetune.mllm.data.prepare_data`; called
            only if the cache lacks an image.
        accelerator: The accelerator of this run.

    Raises:
        BadInput: Settings that do not go together, or files that cannot be read.
    """
    if settings.batch % (settings.micro * accelerator.num_processes):
        raise BadInput(
            f"--batch {settings.batch} must be a multiple of --micro {settings.micro} times "
            f"{accelerator.num_processes} processes"
        )
    if settings.adapter:
        # Refuse an adapter that is broken or of another SAM before images are opened, which may take hours.
        about = read_heads(settings.adapter)[1]
        check_sam(about, settings.adapter, origin.sam)
        if origin.concepts or about.get("concepts"):
            check_concepts(about, settings.adapter, origin.concepts)
    data = prepare_data(settings, origin.regions, load_opener, accelerator, origin.concepts is not None)
    TrainingRun(settings, llm, origin, data, accelerator).run()
    accelerator.end_training()


class TrainingRun:
    """The state of a training run; arguments as `train`."""

    def __init__(
        self,
        settings: TuneSettings,
        llm: MultimodalLLM,
        origin: AdapterOrigin,
        data: TrainingData,
        accelerator: "Accelerator",
    ):
        self.settings = settings
        self.llm = llm
        self.origin = origin
        self.data = data
        self.accelerator = accelerator
        self.read_batch = BatchReader(llm, data.regions_of)
        model = build_model(settings, llm, data, accelerator)
        optimizer = build_optimizer(settings, model)
        if deepspeed.is_enabled():
            load_weights(self._state_file, model)
            deepspeed.shard_weights(accelerator, model)
        # As accelerate wraps them. `self.model` is the model within its wrapper.
        self.wrapped_model, self.optimizer = accelerator.prepare(model, optimizer)
        self.model: LLMWithSelector = accelerator.unwrap_model(self.wrapped_model)
        llm.model = self.model.llm
        self.loss_weights = torch.tensor(
            [settings.weights[name] for name in LOSS_NAMES], device=accelerator.device
        )
        self.report = TrainingReport(
            settings.out, data.validation.shown if data.validation else [], self._answer
        )
        self._open_image = lru_cache(maxsize=QUESTIONS_IN_REPORT)(open_image)
        self._best: float | None = None

    @property
    def _state_file(self) -> Path:
        return self.settings.out / STATE_FILE

    def run(self) -> None:
        """Train from where the run's folder stands to the last step, and write the report."""
        settings = self.settings
        start, self._best = restore_state(
            self._state_file, self.wrapped_model, self.optimizer, self.accelerator
        )
        if start:
            self.accelerator.print(f"resuming at step {start}", flush=True)
        else:
            self._validate(0)  # what the weights can do before training
        parts = iter(part_loader(settings, self.data, self.read_batch, start, self.accelerator))
        log = TrainingLog(settings.out / "log.jsonl", start) if self.accelerator.is_main_process else None
        self.wrapped_model.train()
        for step in range(start, settings.max_steps):
            figures = self._step(step, parts)
            if log:
                log.add(step, figures, every=settings.log_every)
            self.accelerator.log(figures, step=step + 1)
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.max_steps:
                self._checkpoint(step + 1)
        if self.accelerator.is_main_process:
            self._write_report()

    def _step(self, step: int, parts: Iterator[Batch]) -> dict[str, float]:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * cosine_schedule(step, settings.max_steps, settings.warm_up)
        count = settings.batch // settings.micro // self.accelerator.num_processes
        return training_step(
            step,
            settings.seed,
            [next(parts) for _ in range(count)],
            self.wrapped_model,
            self.optimizer,
            self.loss_weights,
            self.accelerator,
        )

    def _validate(self, step: int) -> tuple[dict[str, float] | None, torch.Tensor | None]:
        """Score the weights and answer the report's questions; (None, None) for a run without validation."""
        if self.data.validation is None:
            return None, None
        figures, calibration = self.data.validation.score(
            self.model, self.read_batch, self.data.regions_of, self.accelerator
        )
        self.report.add(step, figures, self.accelerator.is_main_process)
        return figures, calibration

    def _checkpoint(self, step: int) -> None:
        """Validate, store the state of the run and, if the weights are the best so far, the adapter."""
        figures, calibration = self._validate(step)
        score = None
        if figures is not None:
            score = figures["score"]
            self.accelerator.log({f"val {name}": value for name, value in figures.items()}, step=step)
        if score is None or self._best is None or score >= self._best:
            self._best = score
            metadata = {
                "mllm": self.origin.mllm,
                "sam": self.origin.sam.name,
                "sam_sha256": self.origin.sam.checksum,
                "dino": self.origin.dino,
                **self.origin.concepts_metadata(),
                "regions": self.origin.regions,
                "pixels": self.llm.image_fit.max_pixels,
                "step": step,
                "val": score,
            }
            save_adapter(
                self.settings.out, self.model, metadata, calibration, self.wrapped_model, self.accelerator
            )
        save_state(self._state_file, self.wrapped_model, self.optimizer, step, self._best, self.accelerator)
        self.wrapped_model.train()

    @torch.no_grad()
    def _answer(self, question: str, image: Path) -> tuple[str, list[Rle]]:
        """Answer a question with the weights as they are: the reply, and the masks of its present targets."""
        self.model.eval()
        regions = self.data.regions_of(image)
        turns = [Turn(question, images=[self._open_image(image)])]
        with self.model.autocast():
            reply, selections = answer(
                self.llm,
                self.model.selector,
                turns,
                regions.features,
                PRESENCE_THRESHOLD,
                max_new_tokens=MAX_ANSWER_TOKENS,
            )
        return reply.text, present_masks(reply.text, selections, regions.rles)

    def _write_report(self) -> None:
        settings: dict[str, Any] = self.settings.recorded()
        write_card(self.settings.out, self.origin, settings, self.report.rows())
        curves = {"log.jsonl": [*LOSS_NAMES, "loss", "word_right", "marker_right"]}
        self.report.write(f"Tuning {self.origin.mllm}", settings, curves)


def build_model(
    settings: TuneSettings, llm: MultimodalLLM, data: TrainingData, accelerator: "Accelerator"
) -> LLMWithSelector:
    """The LLM with LoRA and the selector as one module, new or from `--adapter`."""
    lora = LoraSettings(
        settings.rank,
        settings.alpha,
        settings.dropout,
        settings.targets,
        settings.tune_vision,
        settings.adapter,
    )
    selector, lora_model = start_model(llm, lora, data.sample_regions(), settings.seed)
    if settings.gradient_checkpointing:
        enable_activation_checkpointing(llm.model)
    return LLMWithSelector(
        lora_model, selector.to(accelerator.device), llm.seg, llm.abs, settings.hard_negatives
    )


def build_optimizer(settings: TuneSettings, model: LLMWithSelector) -> torch.optim.Optimizer:
    """AdamW with one learning rate for LoRA and the token rows, and another for the selector."""
    selector: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.trained_parameters().items():
        (selector if name.startswith("selector.") else rest).append(parameter)
    groups = [
        {"params": rest, "lr": settings.lr, "peak": settings.lr},
        {"params": selector, "lr": settings.selector_lr, "peak": settings.selector_lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0, betas=ADAM_BETAS)
