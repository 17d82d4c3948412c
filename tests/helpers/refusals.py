"""What is refused is refused in one clear line."""

import pytest

from assistant.errors import BadInput


def refusal(act) -> str:
    """The line with which act() refuses bad input."""
    with pytest.raises(BadInput) as caught:
        act()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)
