"""Settings of `python -m finetune`, which `finetune.tune.read_settings` reads once from the command line.

settings.sources                     # [(Path("train.jsonl"), 1.0), (Path("coco.jsonl"), 0.3)]
settings.recorded()                  # what settings.json of the --out folder holds
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from assistant.errors import BadInput
from assistant.loading.names import check_pixels
from assistant.presets import ModelOptions

LOSS_NAMES = ("text", "align", "iop", "presence", "marker")

# Settings under which a stopped run may continue although they changed; settings.json does not hold them.
CHANGEABLE = {
    "out",
    "save_every",
    "cache",
    "cache_gb",
    "workers",
    "log_every",
    "log_with",
    "device",
}

# The smallest value of each setting that counts something.
SMALLEST_COUNTS = {
    "max_steps": 1,
    "save_every": 1,
    "batch": 1,
    "micro": 1,
    "turns": 1,
    "pictures": 1,
    "rank": 1,
    "log_every": 1,
    "val_limit": 1,
    "warm_up": 0,
    "hard_negatives": 0,
    "workers": 0,
}
POSITIVE_NUMBERS = ("lr", "selector_lr", "alpha", "cache_gb")


@dataclass(frozen=True)
class TuneSettings:
    """The settings of one run. Each attribute is the command-line option of its name, see `finetune.tune`.

    Attributes:
        data: The words of --data, each `FILE` or `FILE=RATE`.
        weights: The weight of each of `LOSS_NAMES` in the loss.
        cache: Folder of the region cache; None for the folder `regions` in `out`.
        pictures: Number of images in a conversation at most.
        pixels: px of an image that the LLM is shown, at most; None for what `adapter` was trained with, or
            what suits the LLM's family.
    """

    preset: str
    mllm: str | None
    sam: str | None
    concepts: str | None
    dino: str | None
    adapter: Path | None
    data: tuple[str, ...]
    rehearsal: float
    val: Path | None
    out: Path
    max_steps: int
    save_every: int
    batch: int
    micro: int
    turns: int
    pictures: int
    pixels: int | None
    lr: float
    selector_lr: float
    warm_up: int
    weights: dict[str, float]
    hard_negatives: int
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    tune_vision: bool
    four_bit: bool
    dtype: str | None
    gradient_checkpointing: bool
    no_grouping: bool
    cache: Path | None
    cache_gb: float
    workers: int
    val_limit: int
    log_every: int
    log_with: str | None
    device: str | None
    seed: int

    @property
    def models(self) -> ModelOptions:
        """The preset and the parts that replace its own."""
        return ModelOptions(preset=self.preset, mllm=self.mllm, sam=self.sam, concepts=self.concepts)

    @property
    def sources(self) -> list[tuple[Path, float]]:
        """(records file, rate) of each word of --data."""
        return [parse_source(text) for text in self.data]

    @property
    def record_files(self) -> list[Path]:
        """The records files of --data."""
        return [file for file, _ in self.sources]

    @property
    def cache_folder(self) -> Path:
        """Where the regions of the images are stored."""
        return self.cache or self.out / "regions"

    def check(self) -> None:
        """Raise BadInput for a number out of its range."""
        for name, smallest in SMALLEST_COUNTS.items():
            if getattr(self, name) < smallest:
                raise BadInput(f"{option_of(name)} must be at least {smallest}")
        for name in POSITIVE_NUMBERS:
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{option_of(name)} must be above 0")
        check_pixels(self.pixels)
        if not 0 <= self.rehearsal < math.inf:
            raise BadInput("--rehearsal must be 0 or above")
        if not 0 <= self.dropout < 1:
            raise BadInput("--dropout must be a share, from 0 to below 1")

    def recorded(self) -> dict[str, object]:
        """The settings that a run records in settings.json, and that must not change when it continues."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in CHANGEABLE}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def option_of(name: str) -> str:
    """The command-line option of a setting: "max_steps" -> "--max-steps"."""
    return f"--{name.replace('_', '-')}"


def parse_source(text: str) -> tuple[Path, float]:
    """Read a word of --data.

    Args:
        text: `FILE`, or `FILE=RATE`: how often records of this file are drawn, relative to the others' 1.

    Returns:
        The file and its rate.

    Raises:
        BadInput: The rate is not a positive number.
    """
    name, _, rate = text.rpartition("=")
    if not name or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(rate)
    except ValueError:
        return Path(text), 1.0
    if not 0 < value < math.inf:
        raise BadInput(f"--data {text}: the rate must be above 0; leave the file out instead")
    return Path(name), value


def loss_weights(words: list[str]) -> dict[str, float]:
    """The weight of every loss.

    Args:
        words: `LOSS=WEIGHT` for the losses whose weight is not 1.

    Raises:
        BadInput: There is no such loss, or the weight is not a number.
    """
    weights = dict.fromkeys(LOSS_NAMES, 1.0)
    for word in words:
        name, _, value = word.partition("=")
        try:
            weights[name]  # KeyError: there is no such loss
            weights[name] = float(value)
        except (KeyError, ValueError):
            raise BadInput(
                f"--weights {word}: write LOSS=WEIGHT with one of {', '.join(LOSS_NAMES)}"
            ) from None
    return weights
