"""maskpick: ask about an image in everyday words, and get masks, names, and what is absent.

from assistant import Assistant

scene = Assistant.from_preset("pocket").open("photo.jpg")
print(scene.ask("what keeps the rain off?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant.scene import Assistant, Scene

__all__ = ["Assistant", "Scene"]


def __getattr__(name: str) -> Any:
    """Import the classes, and torch with them, only when they are used: --help must be instant."""
    if name in __all__:
        from assistant import scene

        return getattr(scene, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
