"""Tune a model's attention on one labelled image per category ("The Power of One", arXiv 2503.10779).

    python -m assistant rank-layers --images DATA/coco/train/images --names DATA/coco/train/instances.json \\
        --out ranking.json
    python -m finetune attention --data DATA/coco/train --ranking ranking.json --out runs/attention
    python -m eval oneshot --root DATA/coco/dev --ranking ranking.json --tuned runs/attention \\
        --out runs/eval/oneshot

It trains the attention of the layers that the ranking uses and, with `--word-passes`, the embeddings of the
words of the prompts. Everything else is frozen, and dropout is off.

`--runs` runs draw different images and another order. Each writes weights of its own: run-0.safetensors and
so on. The same command again resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from assistant.attention.labelled_images import LabelledImage, read_labelled
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.presets import ModelOptions
from finetune.attention_tuning import TuneAttentionSettings, draw_supports, support_map, tune
from finetune.log import TrainingLog


@dataclass(frozen=True)
class AttentionSettings:
    """What `python -m finetune attention` is asked for.

    Attributes:
        data: Folder of labelled images.
        split: Part of the data set.
        ranking: File that `rank-layers` wrote; None for the model's own ranking.
        models: The model to tune.
        cache_folder: Folder of opened images.
        out: Folder of the results.
        runs: Number of runs.
        seed: Of the first run; the next runs count up.
        tuning: How each run is tuned.
    """

    data: Path
    split: str
    ranking: Path | None
    models: ModelOptions
    cache_folder: Path
    out: Path
    runs: int
    seed: int
    tuning: TuneAttentionSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options."""
    from assistant.cli import add_model_arguments

    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="labelled images that one per category is drawn from (COCO-format, COCO, VOC)",
    )
    parser.add_argument("--split", default="train", help="part of the data set, in VOC's and COCO's layouts")
    parser.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    add_model_arguments(parser)
    parser.add_argument("--views", type=Path, help="folder of opened images (pocket; default: OUT/views)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--runs", type=int, default=5, help="number of runs (default: 5)")
    parser.add_argument(
        "--passes",
        type=int,
        default=5,
        help="passes over the labelled images that train the attention alone (default: 5)",
    )
    parser.add_argument(
        "--word-passes",
        type=int,
        default=0,
        help="passes after those that train the words' embeddings as well (default: 0, which leaves them as "
        "they are)",
    )
    parser.add_argument("--batch", type=int, default=2, help="images per step (default: 2)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at its peak (default: 1e-3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first run; the next runs count up (default: 0)"
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and tune."""
    from assistant.cli import model_options

    settings = AttentionSettings(
        data=args.data,
        split=args.split,
        ranking=args.ranking,
        models=model_options(args),
        cache_folder=args.views or args.out / "views",
        out=args.out,
        runs=args.runs,
        seed=args.seed,
        tuning=TuneAttentionSettings(args.passes, args.word_passes, args.batch, args.lr),
    )
    tune_runs(settings)


def tune_runs(settings: AttentionSettings) -> None:
    """Tune every run and write OUT/run-K.safetensors, whose metadata tells which image stood for which
    category.

    Raises:
        BadInput: The data, the model or the settings cannot be used.
    """
    from assistant.presets import load_attention_probe

    names, labelled = read_labelled(settings.data, settings.split)
    tuning = settings.tuning
    if settings.runs < 1 or tuning.passes < 0 or tuning.word_passes < 0 or tuning.batch < 1:
        raise BadInput("--runs and --batch must be at least 1, --passes and --word-passes not negative")
    probe, _ = load_attention_probe(settings.models)
    if settings.ranking:
        probe.ranking = Ranking.load(settings.ranking)
    ranking = probe.ranking
    if ranking is None:
        raise BadInput("give --ranking, what python -m assistant rank-layers wrote for this model")
    label_maps = [image.read() for image in labelled]
    _check_settings(settings, ranking)
    opened: dict[int, Any] = {}
    supports: list[tuple[int, int]] = []
    for run in range(settings.seed, settings.seed + settings.runs):
        supports = draw_supports(names, label_maps, np.random.default_rng(run))
        if (settings.out / f"run-{run}.safetensors").exists():
            continue
        for _, image in supports:
            if image not in opened:
                opened[image] = probe.open(labelled[image].path, settings.cache_folder)
        examples = [(opened[image], support_map(label_maps[image], category)) for category, image in supports]
        _write_settings(settings, ranking)
        state_file = settings.out / f"run-{run}.pt"
        log = TrainingLog(settings.out / f"loss-{run}.jsonl")
        tuned = tune(probe, examples, names, tuning, run, state_file, log)
        _write_run(settings.out / f"run-{run}.safetensors", tuned, ranking, names, labelled, supports)
        state_file.unlink(missing_ok=True)
    print(f"{settings.runs} runs over {len(supports)} images each: {settings.out}")


def _described(settings: AttentionSettings, ranking: Ranking) -> dict[str, Any]:
    """What the runs of one folder have in common, as JSON values."""
    described = {
        "data": str(settings.data.resolve()),
        "use": ranking.use,
        "passes": settings.tuning.passes,
        "word_passes": settings.tuning.word_passes,
        "batch": settings.tuning.batch,
        "lr": settings.tuning.lr,
        "model": settings.models.mllm or settings.models.preset,
    }
    return json.loads(json.dumps(described))


def _check_settings(settings: AttentionSettings, ranking: Ranking) -> None:
    """Raise BadInput where the folder of the results holds runs with other settings."""
    file = settings.out / "attention.json"
    if file.exists() and json.loads(file.read_text())["settings"] != _described(settings, ranking):
        raise BadInput(f"--out {settings.out} holds runs with other settings: choose another folder")


def _write_settings(settings: AttentionSettings, ranking: Ranking) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    with replace_whole(settings.out / "attention.json") as path:
        path.write_text(json.dumps({"settings": _described(settings, ranking)}, indent=1) + "\n")


def _write_run(
    file: Path,
    tuned: dict[str, Tensor],
    ranking: Ranking,
    names: list[str],
    labelled: Sequence[LabelledImage],
    supports: Sequence[tuple[int, int]],
) -> None:
    """Write the tuned parameters of one run."""
    from safetensors.torch import save_file

    images = {names[category - 1]: labelled[image].path.name for category, image in supports}
    metadata = {"use": json.dumps(ranking.use), "photos": json.dumps(images)}
    with replace_whole(file) as path:
        save_file({name: value.contiguous() for name, value in tuned.items()}, path, metadata)
