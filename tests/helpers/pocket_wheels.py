"""Skips tests that need the three wheels of the pocket preset, where they cannot be had."""

import pytest

from assistant.errors import BadInput
from assistant.pocket.wheels import backbone_state, minilm_folder, smollm2_folder


def require_pocket_wheels() -> None:
    """Skip the calling test where there is neither a package index nor a filled cache."""
    try:
        smollm2_folder()
        backbone_state()
        minilm_folder()
    except BadInput as error:
        if "package index" in str(error) or "pip" in str(error):
            pytest.skip(f"the pocket preset's wheels cannot be had: {error}")
        raise
