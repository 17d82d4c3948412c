"""Our HTML reports: one file without external parts, from the template `report.html` beside this module.

    report = Report("A run", headline=Table(["", "score"], [["gIoU", 0.51]]))
    report.plots.append(("Loss", curve_svg(Curve("Loss", "step", "loss", {"text": [(0, 3.1)]}, top=None))))
    write_report_file(path, report)

Sections come in the order of the attributes of `Report`; those without content are left out. Samples are
taken one at a time, so that a report may show more pictures than memory holds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.export.colours import page_colour_of, rgb_of
from assistant.files import replace_whole

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html")
THUMBNAIL_SIDE = 320  # px, the longer side
THUMBNAIL_QUALITY = 80  # of its JPEG
MASK_OPACITY = 0.4  # of a mask's colour; its outline is opaque
MAX_SHARE_SHOWN = 2  # a float up to this is taken for a share or a score, and shown with more digits
MIN_COVERED = 64  # of 255: a thumbnail's pixel is tinted where the mask covers more than a quarter of it

# A caption, an image (H, W, 3) uint8 RGB, and masks (H, W) bool, each drawn in its own colour.
Panel = tuple[str, np.ndarray, list[np.ndarray]]


@dataclass(frozen=True)
class Table:
    """Rows of values under the names of their columns.

    Attributes:
        columns: Names of the columns; [] for a table without a head.
        rows: The values of each row, see `shown`; the first is the row's name.
        title: Heading of the table; "" for none.
        note: A line of text under the heading.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Bound:
    """A score beside the best that was possible.

    Attributes:
        name: Of the score.
        value: In [0, 1].
        bound: In [0, 1].
        bound_name: What the bound is.
    """

    name: str
    value: float
    bound: float
    bound_name: str = "best choice of proposals"

    @property
    def share(self) -> float:
        """The score as a share of its bound, in [0, 1]."""
        return self.value / self.bound if self.bound else 0.0


@dataclass(frozen=True)
class Sample:
    """One sample for a person to look at.

    Attributes:
        group: The heading that it stands under.
        title: Its own heading.
        words: Lines of text under the title.
        panels: Images with masks, side by side.
        tags: What the samples of a report can be filtered by.
    """

    group: str
    title: str
    words: list[str]
    panels: list[Panel] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(caption, JPEG in base64) of each panel."""
        return [(caption, thumbnail(image, masks)) for caption, image, masks in self.panels]


@dataclass
class Report:
    """What a report shows.

    Attributes:
        title: Of the page.
        about: Lines under the title: what was measured, on what, by which models.
        headline: The scores that matter most.
        bounds: Scores as bars, beside the best that was possible.
        plots: (title, SVG) each.
        tables: Further figures.
        costs: What it took: calls, tokens, seconds, memory.
        samples: What a person should look at, group by group.
        failures: (name, reason) of what could not be used.
        details: Settings and checksums, folded away.
    """

    title: str
    about: list[str] = field(default_factory=list)
    headline: Table | None = None
    bounds: list[Bound] = field(default_factory=list)
    plots: list[tuple[str, Markup]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    costs: Table | None = None
    samples: Iterable[Sample] = ()
    failures: list[tuple[str, str]] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)


def write_report_file(path: Path, report: Report) -> Path:
    """Write a report, whole or not at all, and return its file."""
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as page:
        write_report_page(page, report)
    return path


def write_report_page(page: Any, report: Report) -> None:
    """Write a report into an opened text file, part by part."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shown"] = shown
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    for part in template.generate(report=report):
        page.write(part.encode(errors="backslashreplace").decode())


def shown(value: Any) -> str:
    """A value as a table shows it.

    Four digits of a share and two of other floats, separators in a large number, "yes" and "no", "-" for
    None, [low, high] of an interval, and names with values of a dictionary.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) <= MAX_SHARE_SHOWN else f"{value:,.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(part) for part in value)}]"
    return str(value)


def thumbnail(image: np.ndarray, masks: list[np.ndarray]) -> str:
    """A small JPEG of an image with its masks tinted and outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool each.

    Returns:
        The JPEG in base64.
    """
    from PIL import Image

    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    pixels = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    for k, mask in enumerate(masks):
        colour = np.array(rgb_of(page_colour_of(k)), dtype=np.float32)
        # Box filtering keeps objects of a few pixels visible where nearest neighbour would lose them.
        coverage = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        covered = np.asarray(coverage) > MIN_COVERED
        around = np.pad(covered, 1, mode="edge")
        inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        pixels[covered] = (1 - MASK_OPACITY) * pixels[covered] + MASK_OPACITY * colour
        pixels[covered & ~inner] = colour
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return base64.b64encode(file.getvalue()).decode()
