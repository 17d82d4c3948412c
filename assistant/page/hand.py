"""A mask made by hand, as with SAM: clicks, a box, a brush, on nothing or on a mask that is refined."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Hand:
    """What is being marked. target: number of the answer's target that it replaces, None for a new thing; base: (H, W)
    bool, the mask that it starts from, or None; found: (name, mask, score or None) of the candidates."""

    target: int | None = None
    base: np.ndarray | None = None
    found: list = field(default_factory=list)

    def mark(self, scene, points=(), labels=(), box=None, added=None, erased=None) -> None:
        """SAM on clicks (N, 2) xy px with labels (N,) in {1, 0}, a box xyxy px, what was painted and erased (H, W)
        bool, and the mask that it started from. Fills `found`: a single best reading where the prompt is not one
        lone click, three readings of it, and what was painted exactly as it is."""
        painted = self.base
        if added is not None or erased is not None:
            painted = np.zeros(scene.size, bool) if painted is None else painted.copy()
            painted |= added if added is not None else False
            painted &= ~erased if erased is not None else True
        prompt = {}
        if len(points):
            prompt |= {"points": points, "labels": labels}
        if box is not None:
            prompt["box"] = box
        if painted is not None and painted.any():
            prompt["mask"] = painted
        if not prompt:
            self.found = []
            return
        masks, scores = scene.segment(**prompt, multimask=True)
        found = [(m, float(s)) for m, s in sorted(zip(masks, scores), key=lambda one: -one[1])]
        if box is not None or len(points) != 1 or "mask" in prompt:
            single, sure = scene.segment(**prompt, multimask=False)
            found.insert(0, (single[0], float(sure[0])))
        found = [(m, min(max(s, 0.0), 1.0)) for m, s in found if m.any()]
        self.found = [(f"{chr(65 + k)} {s:.2f}", m, s) for k, (m, s) in enumerate(found)]
        if painted is not None and painted.any():
            self.found.append(("as drawn", painted, None))
