"""What is refused must be refused in one clear line."""

from collections.abc import Callable
from typing import Any

import pytest

from assistant.errors import BadInput

MAX_MESSAGE_LENGTH = 500  # characters, about five lines of a terminal


def refusal(act: Callable[[], Any]) -> str:
    """The line with which `act` refuses bad input."""
    with pytest.raises(BadInput) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and len(message) < MAX_MESSAGE_LENGTH
    return message
