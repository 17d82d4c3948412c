"""Everything mode beside its peers, in one run: seconds, ratios, equal masks, what `fast` loses.

    python -m eval speed                                  # random weights of SAM ViT-B's size, 1,024 clicks
    python -m eval speed --points-per-side 8              # a shorter one
    python -m eval speed --sam sam_vit_b_01ec64.pth       # real weights
    python -m eval speed --model tiny --points-per-side 4 # seconds, for tests

Every program gets the same weights, clicks and thresholds, and the image's embedding ready-made: what is
timed is everything outside of the encoder. What random weights need in order to draw masks is in
`eval.random_sam`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.sam.mask_ops import Rle, rle_iou

VERSION = 1
SAME_MASK_IOU = 0.99  # from which a mask of one program is that of another

Value = TypeVar("Value")


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured.

    Attributes:
        out: Folder of result.json.
        model: Size of the random weights, see `eval.random_sam.random_sam`.
        sam: An official checkpoint instead of random weights.
        image: An image file; None for scikit-image's coffee.
        points_per_side: The number of clicks is its square.
        threads: Threads of the processor; None for torch's own choice.
        teaching_steps: Steps by which random weights learn to draw.
        with_transformers: Whether the pipeline of transformers is measured too.
        with_question: Whether a question on the pocket preset is measured too.
        device: As torch names it.
        seed: Of the random weights.
    """

    out: Path
    model: str = "vit_b"
    sam: Path | None = None
    image: Path | None = None
    points_per_side: int = 32
    threads: int | None = None
    teaching_steps: int = 80
    with_transformers: bool = True
    with_question: bool = True
    device: str = "cpu"
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--model", choices=("vit_b", "tiny"), default="vit_b", help="size of the random weights"
    )
    parser.add_argument(
        "--sam", type=Path, help="an official SAM checkpoint (.pth) instead of random weights"
    )
    parser.add_argument("--image", type=Path, help="an image (default: scikit-image's coffee)")
    parser.add_argument("--points-per-side", type=int, default=32, help="clicks are its square (default 32)")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's own choice)")
    parser.add_argument("--teach", type=int, default=80, help="steps by which random weights learn discs")
    parser.add_argument("--no-transformers", action="store_true", help="leave the transformers pipeline out")
    parser.add_argument(
        "--no-question", action="store_true", help="leave out what a question costs on the pocket preset"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/eval/speed"), help="folder of result.json")


def main(args: argparse.Namespace) -> None:
    """Read the options and measure."""
    settings = SpeedSettings(
        out=args.out,
        model=args.model,
        sam=args.sam,
        image=args.image,
        points_per_side=args.points_per_side,
        threads=args.threads,
        teaching_steps=args.teach,
        with_transformers=not args.no_transformers,
        with_question=not args.no_question,
        device=args.device,
        seed=args.seed,
    )
    measure(settings)


def measure(settings: SpeedSettings) -> dict[str, Any]:
    """Measure, print the table and write result.json.

    Args:
        settings: What is measured.

    Returns:
        What was written.

    Raises:
        BadInput: The grid has no points, or the image or the checkpoint cannot be read.
    """
    import torch

    from eval.costs import metric_costs, metric_sentence, question_costs, question_sentence

    if settings.points_per_side < 1:
        raise BadInput("--points-per-side must be at least 1")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    image = open_test_image(settings.image)
    result = {
        "benchmark": "speed",
        "version": VERSION,
        "n": 1,
        "model": str(settings.sam or settings.model),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "picture": list(image.shape[:2]),
        **measure_everything_mode(settings, image),
        "metric": metric_costs(),
        "question": None,
    }
    print(table(result))
    print(metric_sentence(result["metric"]))
    if settings.with_question:
        from assistant import Assistant

        cost = question_costs(Assistant.from_preset("pocket", device=settings.device), image)
        result["question"] = cost
        print(question_sentence(cost))
    with replace_whole(settings.out / "result.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def open_test_image(path: Path | None) -> np.ndarray:
    """The image to measure on, (H, W, 3) uint8 RGB."""
    if path is None:
        from skimage import data

        return data.coffee()
    from assistant.images import open_image

    return open_image(path)


# ---------------------------------------------------------------------------------- everything mode


def measure_everything_mode(settings: SpeedSettings, image: np.ndarray) -> dict[str, Any]:
    """Run every program on an image (H, W, 3) uint8 RGB, and compare their seconds and masks."""
    import torch

    from assistant.sam.backends import OfficialSegmenter
    from eval.random_sam import thresholds

    sam = load_sam(settings)
    exact = OfficialSegmenter(sam, settings.device, torch.float32)
    half = OfficialSegmenter(sam, settings.device, torch.bfloat16)
    embedding, encoder_seconds = timed(lambda: exact.encode(image))
    features = embedding.features
    sam.image_encoder.forward = lambda pixels: features  # ready-made from here on
    everything_settings: dict[str, Any] = {"points_per_side": settings.points_per_side}
    if not settings.sam:
        everything_settings |= thresholds(exact, embedding, settings.points_per_side)
    programs = programs_to_time(sam, exact, half, image, everything_settings, settings.with_transformers)
    rows: list[dict[str, Any]] = []
    rles: dict[str, list[Rle]] = {}
    for name, program in programs.items():
        rles[name], seconds = timed(program)
        rows.append({"program": name, "seconds": round(seconds, 3), "masks": len(rles[name])})
    for row in rows:
        row["times_as_fast"] = round(rows[0]["seconds"] / row["seconds"], 2)
        row |= compare_masks(rles["segment-anything"], rles[row["program"]])
    return {
        "encoder_seconds": round(encoder_seconds, 3),
        "settings": everything_settings,
        "programs": rows,
    }


def load_sam(settings: SpeedSettings) -> Any:
    """The `segment_anything.modeling.Sam` that all programs run."""
    if settings.sam:
        from assistant.sam.checkpoints import load_official_sam

        return load_official_sam(settings.sam).to(settings.device)
    from eval.random_sam import random_sam, teach

    sam = random_sam(settings.model).to(settings.device)
    teach(sam, settings.teaching_steps, settings.seed)
    return sam


def programs_to_time(
    sam: Any, exact: Any, half: Any, image: np.ndarray, settings: dict[str, Any], with_transformers: bool
) -> dict[str, Callable[[], list[Rle]]]:
    """The programs by name, segment-anything's first; each returns its masks.

    Args:
        sam: A `segment_anything.modeling.Sam` whose image encoder is ready-made.
        exact: The segmenter of these weights in float32.
        half: The same in bfloat16.
        image: (H, W, 3) uint8 RGB.
        settings: Of `assistant.sam.proposals.everything`.
        with_transformers: Whether the pipeline of transformers is among them.
    """
    from assistant.sam.proposals import everything
    from eval.peers import segment_anything_masks, transformers_masks

    features = exact.encode(image).features
    programs: dict[str, Callable[[], list[Rle]]] = {
        "segment-anything": lambda: segment_anything_masks(sam, image, settings)
    }
    if with_transformers:
        programs["transformers"] = lambda: transformers_masks(sam, image, features, settings)
    programs["ours"] = lambda: everything(exact, exact.encode(image), **settings).rles
    programs["ours, fast"] = lambda: everything(half, half.encode(image), fast=True, **settings).rles
    return programs


def compare_masks(reference: list[Rle], rles: list[Rle]) -> dict[str, float | None]:
    """Compare a program's masks with segment-anything's; the keys are explained by `table`."""
    ious = rle_iou(reference, rles)
    best_of_reference = ious.max(1) if ious.size else np.zeros(len(reference))
    best_of_program = ious.max(0) if ious.size else np.zeros(len(rles))
    return {
        "found": _mean(best_of_reference >= SAME_MASK_IOU),
        "confirmed": _mean(best_of_program >= SAME_MASK_IOU),
        "oracle": _mean(best_of_reference),
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def table(result: dict[str, Any]) -> str:
    """The rows of result.json as text."""
    height, width = result["picture"]
    lines = [
        f"{result['model']}, {result['device']}, {result['threads']} threads, image of {width} x {height} "
        f"px, {result['settings']['points_per_side'] ** 2} clicks; the encoder takes "
        f"{result['encoder_seconds']:.2f} s, the rest:",
        "",
        f"{'program':18}{'seconds':>9}{'x':>7}{'masks':>7}{'found':>8}{'confirmed':>11}{'oracle':>8}",
    ]
    for row in result["programs"]:
        lines.append(
            f"{row['program']:18}{row['seconds']:9.2f}{row['times_as_fast']:7.2f}{row['masks']:7d}"
            f"{_three_digits(row['found']):>8}{_three_digits(row['confirmed']):>11}"
            f"{_three_digits(row['oracle']):>8}"
        )
    return "\n".join(
        [
            *lines,
            "",
            "x: times as fast as segment-anything's SamAutomaticMaskGenerator. found: its masks "
            "that the program has too, at IoU >= .99;",
            "confirmed: the program's masks that it has. "
            "oracle: mean over its masks of the best IoU among the program's.",
        ]
    )


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------------------------- timing


def wait() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Value]) -> tuple[Value, float]:
    """What `work` returns, and its seconds."""
    wait()
    start = time.perf_counter()
    value = work()
    wait()
    return value, time.perf_counter() - start
