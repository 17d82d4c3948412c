"""Conversations as transformers' processors take them."""

from assistant.grammar import ABS, SEG, SYSTEM_PROMPT, Turn
from assistant.mllm.chat_messages import chat_messages


def test_chat_messages():
    turns = [Turn("the cup [SEG]?", "The cup [SEG].", ["picture", "picture"]), Turn("and <image>?")]
    messages = chat_messages(turns, ["<image>"])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": SYSTEM_PROMPT}]
    assert messages[1]["content"] == [{"type": "image"}] * 2 + [{"type": "text", "text": "the cup (SEG)?"}]
    assert messages[2]["content"] == [{"type": "text", "text": "The cup [SEG]."}]
    assert messages[3]["content"] == [{"type": "text", "text": "and ‹image›?"}]
    assert SEG in SYSTEM_PROMPT and ABS in SYSTEM_PROMPT
