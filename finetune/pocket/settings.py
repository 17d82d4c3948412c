"""Settings of the stages that train the pocket preset; the defaults are those of its first training.

train_llm(LanguageSettings(steps=900, lr=1e-3), out, llm, data)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RecordSources:
    """What a stage learns from.

    Attributes:
        data: Records files.
        annotations: COCO instances.json files. An image that one of them lists is taught all instances of it,
            any other image those of its records.
        sam: Weights of the pocket SAM that makes the proposals.
        regions: Folder of the region cache.
    """

    data: tuple[Path, ...]
    annotations: tuple[Path, ...]
    sam: Path
    regions: Path


@dataclass(frozen=True)
class EncoderSettings:
    """Phase 1: the region encoder.

    Attributes:
        steps: Number of steps.
        lr: Highest learning rate.
    """

    steps: int = 800
    lr: float = 1e-3


@dataclass(frozen=True)
class LanguageSettings:
    """Phase 2: LoRA and the token rows.

    Attributes:
        steps: Number of steps.
        batch: Images per step, each with up to five questions.
        lr: Highest learning rate.
        anchor: Share of the way back to its first value that each weight goes in a step.
        save_minutes: Minutes between checkpoints.
        log_every: Steps between lines of figures.
    """

    steps: int = 900
    batch: int = 4
    lr: float = 8e-4
    anchor: float = 0.0
    save_minutes: float = 4.0
    log_every: int = 20


@dataclass(frozen=True)
class SelectorSettings:
    """Phase 3: the selector.

    Attributes:
        llm_steps: Number of steps that the LLM has taken, which names the files of its states.
        examples: Number of training examples whose states the selector learns from.
        held_out_examples: Number of examples on which it is scored and calibrated.
        steps: Number of steps.
        lr: Highest learning rate.
        weight_decay: Of AdamW.
        anchor: As of `LanguageSettings`.
        loss_weights: Weight of each loss of `assistant.mllm.selector.selection_losses`.
        hard_negatives: See `selection_losses`.
        validate_every: Steps between validations; 0 for none. The best checkpoint by them is used.
        log_every: Steps between lines of figures.
        seed: Of the examples and the noise.
    """

    llm_steps: int = 900
    examples: int = 1500
    held_out_examples: int = 160
    steps: int = 300
    lr: float = 1e-3
    weight_decay: float = 0.05
    anchor: float = 0.0
    loss_weights: Mapping[str, float] = field(
        default_factory=lambda: {"align": 1.0, "iop": 2.0, "presence": 1.0}
    )
    hard_negatives: int = 0
    validate_every: int = 0
    log_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class SemanticSettings:
    """`python -m finetune semantic`: the semantic head, then the pixel head.

    Attributes:
        reasoner: What `python -m finetune records` wrote, for the pixel head; None for the published weights.
        init: A head.pt of another run to start from, with the same names.
        start: A published semantic.safetensors to start from, which may lack names.
        steps: Number of steps of the semantic head.
        lr: Its highest learning rate.
        batch: Augmented images per step.
        pixel_steps: Number of steps of the pixel head; 0 to keep that of `start`.
        photos: Number of images of one source, at most, from which the pixel head learns.
        save_minutes: Minutes between checkpoints.
        workers: Processes that prepare batches in advance.
        seed: Of everything random.
    """

    reasoner: Path | None = None
    init: Path | None = None
    start: Path | None = None
    steps: int = 1500
    lr: float = 1e-3
    batch: int = 8
    pixel_steps: int = 600
    photos: int = 40
    save_minutes: float = 4.0
    workers: int = 1
    seed: int = 0
