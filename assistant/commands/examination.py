"""Checks a preset on this machine: loads it, asks about a drawn photo whose answer is known, and measures.

report = examine(ModelOptions(preset="base"))
report.problems                     # one line each; [] where all is well
print(report.text())                # or json.dumps(report.to_json()), to paste into an issue
"""

from __future__ import annotations

import math
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from assistant.errors import error_line
from assistant.presets import ModelOptions
from assistant.sam.mask_ops import Rle, encode_rle, rle_iou
from assistant.scene import Assistant

if TYPE_CHECKING:
    from torch import nn

    from assistant.answer import Answer

# The drawn photo: a stop sign under the sky, which every preset has a word for, and no elephant.
QUESTION = "Where is the stop sign, and where is the elephant?"
PRESENT_WORD = "sign"
ABSENT_WORD = "elephant"
WIDTH, HEIGHT = 640, 480  # px
HORIZON = 330  # px from the top
SIGN_CENTRE = (240, 180)  # px, x and y
SIGN_RADIUS = 70  # px, to its corners
SIGN_BORDER = 6  # px, white
TEXT_HEIGHT = 42  # px
SIGN_CLICK = (205, 148)  # px, in the red beside the text

# The least IoU with the drawn sign that is no problem. The pocket SAM reaches .96 by a click and .88 by its
# best proposal, which leaves out the border.
MIN_CLICK_IOU = 0.8
MIN_PROPOSAL_IOU = 0.7
MIN_ANSWER_IOU = 0.7

PACKAGES = ("maskpick", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
KIBIBYTE = 1024  # the unit of the peak memory that Linux tells; macOS tells bytes


@dataclass
class Part:
    """A network that is loaded.

    Attributes:
        parameters: Number of its parameters; one in 4 bits counts as one.
        megabytes: Memory of its parameters.
        dtypes: Their precisions.
        devices: Where they are.
    """

    parameters: int
    megabytes: float
    dtypes: list[str]
    devices: list[str]

    @classmethod
    def of(cls, module: nn.Module) -> Part:
        """Look at a network."""
        parameters = list(module.parameters())
        in_bytes = sum(p.numel() * p.element_size() for p in parameters)
        # bitsandbytes packs two weights of 4 bits into a byte.
        count = sum(p.numel() * (2 if str(p.dtype) == "torch.uint8" else 1) for p in parameters)
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
        return cls(count, round(in_bytes / 1e6, 1), dtypes, sorted({str(p.device) for p in parameters}))


@dataclass
class Report:
    """What was found.

    Attributes:
        models: What was asked for.
        versions: Of Python and of the packages that matter; None for one that is not installed.
        gpus: Name and memory of each GPU.
        parts: The networks on this machine, by what they do.
        seconds: Of each step.
        peak_megabytes: The most memory that was in use, of this process ("cpu") and of each GPU.
        proposals: Number of the proposals of the drawn photo.
        iou: IoU with the drawn sign, in [0, 1]: of a click on it, of the best proposal, and of the answer.
        answer: The answer to `QUESTION`.
        calls: Number of times that the LLM was asked for it.
        tokens: Number of tokens that were generated for it.
        read_tokens: Number of tokens that the LLM read for it, those of images included.
        problems: What is wrong, one line each.
    """

    models: str
    versions: dict[str, str | None] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_megabytes: dict[str, int] = field(default_factory=dict)
    proposals: int | None = None
    iou: dict[str, float] = field(default_factory=dict)
    answer: str = ""
    calls: int | None = None
    tokens: int | None = None
    read_tokens: int | None = None
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As what json can write."""
        return asdict(self)

    def text(self) -> str:
        """As lines to read."""
        lines = [f"models: {self.models}"]
        lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items() if v))
        lines.append("GPUs: " + (", ".join(self.gpus) or "none"))
        for name, part in self.parts.items():
            lines.append(
                f"{name}: {part.parameters / 1e6:,.1f} million parameters, {part.megabytes:,.0f} MB, "
                f"{' and '.join(part.dtypes)} on {' and '.join(part.devices)}"
            )
        if self.seconds:
            lines.append("seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in self.seconds.items()))
        lines.append("peak memory: " + ", ".join(f"{k} {v:,} MB" for k, v in self.peak_megabytes.items()))
        if self.iou:
            lines.append("IoU with the sign: " + ", ".join(f"{k} {v:.2f}" for k, v in self.iou.items()))
        if self.proposals is not None:
            lines.append(f"proposals: {self.proposals}")
        if self.answer:
            lines.append(f"question: {QUESTION}")
            lines.append(f"answer: {self.answer}")
            costs = {"calls": self.calls, "tokens written": self.tokens, "tokens read": self.read_tokens}
            lines.append(
                "it took: " + ", ".join(f"{k} {'unknown' if v is None else v}" for k, v in costs.items())
            )
        lines += [f"problem: {problem}" for problem in self.problems] or ["all is well"]
        return "\n".join(lines)


def examine(options: ModelOptions) -> Report:
    """Load models, open the drawn photo, click on it and ask about it.

    Args:
        options: The models.

    Returns:
        What was found. A step that fails is a problem in it, and ends the examination.
    """
    report = Report(options.describe(), _versions(), _gpus())
    try:
        with _timed(report, "load"):
            assistant = Assistant(*options.load())
        for name, module in assistant.pipeline.networks().items():
            report.parts[name] = Part.of(module)
        _check_parts(report)
        _examine_answers(assistant, report)
    except Exception as error:  # whatever it is, what was found so far helps
        line = error_line(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        report.problems.append(line)
    report.peak_megabytes = _peak_megabytes()
    return report


def _examine_answers(assistant: Assistant, report: Report) -> None:
    """Open the drawn photo, click on the sign, and ask."""
    image, sign = drawn_photo()
    with _timed(report, "open"):
        scene = assistant.open(image)
    report.proposals = len(scene.proposals)
    with _timed(report, "click"):
        masks, _ = scene.segment(points=[SIGN_CLICK])
    report.iou["click"] = _best_iou([encode_rle(mask) for mask in masks], sign)
    report.iou["best proposal"] = _best_iou(scene.proposals.rles, sign)
    with _timed(report, "ask"):
        answer = scene.ask(QUESTION)
    report.answer = answer.text
    report.tokens = answer.tokens
    if answer.cost is not None:
        report.calls, report.read_tokens = answer.cost.calls, answer.cost.read_tokens
    signs = [target.mask for target in answer.present if PRESENT_WORD in target.phrase.lower()]
    report.iou["answer"] = _best_iou([encode_rle(mask) for mask in signs if mask is not None], sign)
    report.problems += _problems(report, answer)


def _problems(report: Report, answer: Answer) -> Iterator[str]:
    """What is wrong with the masks and the answer."""
    iou = report.iou
    if iou["click"] < MIN_CLICK_IOU:
        yield f"SAM outlines the sign with IoU {iou['click']:.2f} only, clicked on: are its weights right?"
    if iou["best proposal"] < MIN_PROPOSAL_IOU:
        yield f"no proposal shows the sign: the best has IoU {iou['best proposal']:.2f}"
    if not all(math.isfinite(target.confidence) for target in answer.targets):
        yield "a confidence is no number: the LLM's precision does not suffice, try --device cpu"
    if iou["answer"] < MIN_ANSWER_IOU:
        yield f"the answer does not outline the sign (IoU {iou['answer']:.2f})"
    if any(ABSENT_WORD in target.phrase.lower() for target in answer.present):
        yield "the answer finds an elephant where there is none"
    elif not any(ABSENT_WORD in target.phrase.lower() for target in answer.targets):
        yield "the answer does not say that there is no elephant"


def _check_parts(report: Report) -> None:
    """Add what is wrong with where the networks are."""
    for name, part in report.parts.items():
        if "meta" in part.devices or {"cpu"} < set(part.devices):
            report.problems.append(
                f"a part of {name} does not fit into the GPU and runs on the CPU, slowly: use --four-bit, or "
                "a smaller --preset"
            )


def drawn_photo() -> tuple[np.ndarray, np.ndarray]:
    """Draw a stop sign on a pole, under the sky.

    Returns:
        The photo, (480, 640, 3) uint8 RGB, and the mask of the sign, (480, 640) bool.
    """
    shares = np.linspace(0, 1, HEIGHT)[:, None, None]
    pixels = np.broadcast_to((1 - shares) * (150, 190, 230) + shares * (225, 235, 240), (HEIGHT, WIDTH, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = SIGN_CENTRE
    draw.rectangle((0, HORIZON, WIDTH, HEIGHT), fill=(120, 150, 90))
    draw.rectangle((x - 8, y, x + 8, HEIGHT - 10), fill=(130, 130, 135))
    draw.polygon(_octagon(SIGN_RADIUS), fill=(240, 240, 240))
    draw.polygon(_octagon(SIGN_RADIUS - SIGN_BORDER), fill=(190, 25, 35))
    draw.text(SIGN_CENTRE, "STOP", (245, 245, 245), ImageFont.load_default(TEXT_HEIGHT), anchor="mm")
    sign = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(sign).polygon(_octagon(SIGN_RADIUS), fill=1)
    return np.array(image), np.array(sign)


def _octagon(radius: float) -> list[tuple[float, float]]:
    """The corners of an octagon around `SIGN_CENTRE` that stands on a side."""
    x, y = SIGN_CENTRE
    angles = [math.pi / 8 + k * math.pi / 4 for k in range(8)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _best_iou(rles: list[Rle], sign: np.ndarray) -> float:
    """IoU of the best of some masks with the sign (H, W) bool, in [0, 1]; 0 where there is none."""
    return round(float(rle_iou(rles, [encode_rle(sign)]).max()), 3) if rles else 0.0


@contextmanager
def _timed(report: Report, step: str) -> Iterator[None]:
    """While active, a step is under way whose seconds go into the report."""
    started = time.perf_counter()
    yield
    report.seconds[step] = round(time.perf_counter() - started, 3)


def _versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that matter."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _gpus() -> list[str]:
    """Name and memory of each GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return [f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards]


def _peak_megabytes() -> dict[str, int]:
    """The most memory that this process and each GPU had in use."""
    import torch

    unit = 1 if sys.platform == "darwin" else KIBIBYTE
    peak = {"cpu": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)}
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            peak[f"cuda:{k}"] = round(torch.cuda.max_memory_allocated(k) / 1e6)
    return peak
