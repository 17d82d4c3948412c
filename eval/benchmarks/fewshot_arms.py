"""Segments an episode of the few-shot benchmark with every arm.

opened = OpenedImages(matcher)
line = segment_episode(matcher, opened, queries, sources, episode)      # of samples.jsonl
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

from assistant.errors import BadInput
from assistant.few_shot.episode import ImageFeatures
from assistant.few_shot.matcher import Matcher, check_mask
from assistant.images import open_image
from assistant.sam.mask_ops import encode_rle
from eval.benchmarks.fewshot_data import EpisodeImages, EpisodePlan
from eval.benchmarks.fewshot_scores import ARMS, Line
from eval.metrics import counts

MAX_OPENED_IMAGES = 440  # held in memory; each takes 4 MB


class OpenedImages:
    """The features of images by path: the `MAX_OPENED_IMAGES` that were used last stay in memory.

    Attributes:
        last_seconds: How long it took to open the last image that was not in memory.
    """

    def __init__(self, matcher: Matcher):
        self.matcher = matcher
        self.last_seconds = 0.0
        self._features: OrderedDict[Path, ImageFeatures] = OrderedDict()

    def open(self, path: Path) -> ImageFeatures:
        """The features of an image. Raises BadInput where it cannot be read."""
        if path not in self._features:
            while len(self._features) >= MAX_OPENED_IMAGES:
                self._features.popitem(last=False)
            image = open_image(path)
            began = time.perf_counter()
            features = self.matcher.open(image)
            self.last_seconds = time.perf_counter() - began
            features.embedding.maps = ()  # the finest of them are large, and were read already
            features.patches = features.patches.half()
            features.joint = features.joint.half()
            self._features[path] = features
        self._features.move_to_end(path)
        return self._features[path]


def segment_episode(
    matcher: Matcher,
    opened: OpenedImages,
    queries: EpisodeImages,
    sources: EpisodeImages,
    episode: EpisodePlan,
) -> Line:
    """Segment an episode with every arm; its line of samples.jsonl.

    Raises:
        BadInput: An image or a mask cannot be used.
    """
    label = queries.names[episode.category]
    query = opened.open(queries.paths[episode.query])
    truth, ignored = queries.read(episode.query, episode.category)
    if truth.shape != query.embedding.size:
        raise BadInput(f"{queries.paths[episode.query].name} and its mask differ in size")
    references = []
    for number in episode.references:
        features = opened.open(sources.paths[number])
        mask = check_mask(sources.read(number, episode.category)[0], features.embedding.size)
        references.append(matcher.reference_of(features, mask))
    line: Line = {
        "open_seconds": opened.last_seconds,
        "fold": episode.fold,
        "category": label,
        "query": queries.paths[episode.query].name,
        "references": [sources.paths[number].name for number in episode.references],
        "arms": {},
    }
    began = time.perf_counter()
    inputs = matcher.inputs(query, references, label)
    input_seconds = time.perf_counter() - began
    for arm in ARMS:
        began = time.perf_counter()
        if arm == "prototype":
            mask, score = matcher.match_prototypes(query, inputs)
        else:
            mask, score = matcher.predict(query, inputs if arm == "text" else inputs.without_labels())
        line["arms"][arm] = {
            "pair": counts(mask, truth, ignored),
            "background": counts(~mask, ~truth, ignored),
            "score": score,
            "seconds": input_seconds + time.perf_counter() - began,
            "rle": encode_rle(mask),
        }
    return line
