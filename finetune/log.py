"""The figures that training prints and stores, from which its report is drawn, and its learning rate.

log = TrainingLog(out / "log.jsonl")
log.add(step, {"loss": loss.item()}, every=50)                     # prints and stores the means of 50 steps
group["lr"] = peak * cosine_schedule(step, steps, warm_up_steps=100)
"""

import json
import math
import time
from pathlib import Path

from assistant.files import replace_whole

FINAL_SHARE = 0.03  # of the peak learning rate, where the cosine ends


class TrainingLog:
    """Means of figures, printed and stored as JSON lines.

    Args:
        file: Where the lines are stored.
        start: The step that a resumed run continues from; lines of later steps are removed. None to keep all
            lines.
    """

    def __init__(self, file: Path, start: int | None = None):
        self.file = file
        self._began = time.time()
        self._values: dict[str, list[float]] = {}  # since the last line
        if start is not None and file.exists():
            lines = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= start]
            with replace_whole(file) as path:
                path.write_text("".join(line + "\n" for line in lines))

    def add(self, step: int, figures: dict[str, float], every: int) -> None:
        """Record the figures of a step.

        Args:
            step: From 0.
            figures: By name; values that are not finite are left out.
            every: Number of steps whose means make a line.
        """
        for name, value in figures.items():
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)
        if (step + 1) % every == 0:
            means = {name: round(sum(values) / len(values), 4) for name, values in self._values.items()}
            line = json.dumps({"step": step + 1, "seconds": round(time.time() - self._began), **means})
            print(line, flush=True)
            with self.file.open("a") as file:
                file.write(line + "\n")
            self._values = {}


def cosine_schedule(step: int, steps: int, warm_up_steps: int, final_share: float = FINAL_SHARE) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, and a cosine.

    Args:
        step: From 0.
        steps: Number of all steps.
        warm_up_steps: Over which the share rises to 1.
        final_share: Where the cosine ends.

    Returns:
        The share, in (0, 1].
    """
    warm_up = min(1, (step + 1) / max(1, warm_up_steps))
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return warm_up * (final_share + (1 - final_share) * cosine)
