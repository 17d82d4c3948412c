"""What training prints and keeps of its figures (the report is drawn from it), and its learning rate."""

import json
import math
import time
from pathlib import Path

from assistant.files import replace_whole


class Log:
    """Means of figures, printed now and then, and kept as JSON lines in `file`. start: of a run that goes on; what was
    written after that step is taken back."""

    def __init__(self, file: Path, start: int | None = None):
        self.file, self.began, self.sums = file, time.time(), {}
        if start is not None and file.exists():
            lines = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= start]
            with replace_whole(file) as path:
                path.write_text("".join(line + "\n" for line in lines))

    def add(self, step: int, figures: dict, every: int) -> None:
        for k, v in figures.items():
            if math.isfinite(v):
                self.sums.setdefault(k, []).append(v)
        if (step + 1) % every == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in self.sums.items()}
            line = json.dumps({"step": step + 1, "seconds": round(time.time() - self.began), **means})
            print(line, flush=True)
            with self.file.open("a") as f:
                f.write(line + "\n")
            self.sums = {}


def rate(step: int, steps: int, warm: int) -> float:
    """Share of the learning rate at a step: warm-up, then a cosine to 3 %."""
    return min(1, (step + 1) / max(1, warm)) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / steps)) / 2)
