"""What one run of `python -m datagen` is to do: checked once, and passed on unchanged to every step.

settings = Settings(images=Path("photos"), annotations=Path("instances.json"), out=Path("questions"))
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.errors import BadInput

FORMATS = ("coco", "lvis", "egoobjects", "labelme", "labels", "none")
WRITERS = ("phrasebank", "openai", "hf", "vllm")
ENGINES = ("plain", "ray")
SPLITS = ("train", "held")


@dataclass(frozen=True)
class Settings:
    """The options of the command; ``python -m datagen --help`` explains each.

    Raises:
        BadInput: Options that are out of range or do not go together.
    """

    images: Path
    out: Path
    # Where images, masks and names come from.
    annotations: Path | None = None
    format: str = "coco"
    sam: str = "pocket"
    parts: bool = False
    pick: int | None = None
    complex_share: float = 0.4
    exclude: tuple[Path, ...] = ()
    # What is asked.
    writer: str = "phrasebank"
    per_image: int = 24
    seed: int = 0
    bank: str = "coco"
    split: str = "train"
    # With a language model.
    model: str | None = None
    base_url: str | None = None
    describe_with: str | None = None
    captions: Path | None = None
    second_opinion: bool = True
    concurrency: int = 16
    answer_tokens: int | None = None
    device: str = "cpu"
    price: tuple[float, float] = (0.0, 0.0)
    budget: float | None = None
    # On many machines.
    engine: str = "plain"
    workers: int = 2
    vllm: dict[str, Any] = field(default_factory=dict)
    # What is written.
    val_share: float = 0.0
    parquet: bool = False

    def __post_init__(self) -> None:
        counts = {
            "--per-image": self.per_image,
            "--concurrency": self.concurrency,
            "--pick": self.pick,
            "--answer-tokens": self.answer_tokens,
            "--workers": self.workers,
        }
        for option, count in counts.items():
            if count is not None and count < 1:
                raise BadInput(f"{option} must be at least 1")
        if self.writer == "vllm" and not (self.engine == "ray" and self.model):
            raise BadInput("--writer vllm needs --engine ray and --model")
        if self.writer == "vllm" and self.describe_with:
            raise BadInput(
                "--writer vllm sends no images: leave out --describe-with; --captions gives descriptions"
            )
        if (self.annotations is None) != (self.format == "none"):
            raise BadInput("--annotations names the annotations; only with --format none it must be left out")
        if self.format == "none" and not (self.describe_with and self.sam != "none"):
            raise BadInput(
                "--format none needs --sam and --describe-with, the multimodal model that names regions"
            )
        if not 0 <= self.val_share < 1:
            raise BadInput("--val is a share of the photos, from 0 to below 1")
        if not 0 <= self.complex_share <= 1:
            raise BadInput("--complex is a share of the photos, from 0 to 1")

    @property
    def is_offline(self) -> bool:
        """Whether the questions come from the phrase bank, without a language model."""
        return self.writer == "phrasebank"

    @property
    def images_at_once(self) -> int:
        """How many images are worked on at a time."""
        # Twice as many as requests: while one image's answers are checked, another has a request to send.
        return 1 if self.is_offline else 2 * self.concurrency
