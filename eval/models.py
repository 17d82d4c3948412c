"""The models that a benchmark scores. Benchmarks call these as `models.open_...`, so that tests can replace
them.

    assistant = models.open_assistant(settings)
    segmenter, weights = models.open_segmenter(settings)
    propose, weights = models.open_everything_mode(settings, {"pred_iou_thresh": 0.7})

Each raises BadInput where its weights cannot be had.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assistant.errors import BadInput
from eval.settings import EvalSettings

if TYPE_CHECKING:  # torch is loaded when a model is, so that every --help is instant
    import numpy as np

    from assistant.sam.proposals import Proposals
    from assistant.sam.segmenter import Segmenter
    from assistant.scene import Assistant


def open_assistant(settings: EvalSettings) -> Assistant:
    """The whole assistant; `weights` is its {part: sha256}."""
    from assistant import cli

    return cli.open_assistant(settings.models)


def open_segmenter(settings: EvalSettings) -> tuple[Segmenter, dict[str, str]]:
    """SAM alone, and {part: sha256}; no language model is loaded, as prompts by hand need none."""
    from assistant.loading.sams import load_segmenter

    segmenter, checksum = load_segmenter(settings.models.sam_or_preset, settings.models.device)
    return segmenter, {"sam": checksum}


def open_everything_mode(
    settings: EvalSettings, everything_settings: dict[str, Any]
) -> tuple[Callable[[np.ndarray], Proposals], dict[str, str]]:
    """Everything mode, and {part: sha256}; see `assistant.presets.load_everything_mode`.

    Args:
        settings: Names the models.
        everything_settings: Keyword arguments of `assistant.sam.proposals.everything`; {} for the preset's
            own everything mode.

    Returns:
        A function from an image, (H, W, 3) uint8 RGB, to its proposals; and the checksums of the weights.
    """
    from assistant.presets import load_everything_mode

    return load_everything_mode(settings.models, everything_settings)


def parse_everything_settings(texts: list[str]) -> dict[str, Any]:
    """Read --setting options of everything mode.

    Args:
        texts: Such as ["pred_iou_thresh=.7", "fast=true"].

    Returns:
        Keyword arguments of `assistant.sam.proposals.everything`.

    Raises:
        BadInput: A text has another form, or everything mode has no such setting.
    """
    if not texts:
        return {}
    from assistant.sam.proposals import everything

    parameters = inspect.signature(everything).parameters.items()
    known = {name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} - {"image"}
    settings = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            settings[name] = json.loads("0" + value if value.startswith(".") else value)
        except ValueError:
            raise BadInput(f"--setting {text}: write NAME=VALUE with a number, true or false") from None
        if name not in known:
            raise BadInput(
                f"--setting {text}: everything mode has no such setting; it has {', '.join(sorted(known))}"
            )
    return settings
