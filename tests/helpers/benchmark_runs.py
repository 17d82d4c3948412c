"""Running a benchmark in a test."""

import json

from eval import models
from eval.__main__ import main
from tests.helpers.colour_finder import FakeAssistant


def run_benchmark(monkeypatch, out, *words, assistant=None):
    """`python -m eval WORDS --out OUT` on a double of the assistant: (exit code, result.json or None)."""
    opened = assistant or FakeAssistant()
    monkeypatch.setattr(models, "open_assistant", lambda settings: opened)
    code = main([*map(str, words), "--out", str(out)])
    file = out / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else None
