"""What result.json holds."""

import json

from eval.result import Result, bad_inputs, write_result


def test_results_are_whole_json(tmp_path):
    write_result(tmp_path, Result("x", 1, 3, by={"a": {"gIoU": 0.5}}))
    read = json.loads((tmp_path / "result.json").read_text())
    assert read["gIoU"] is None and read["by"]["a"]["gIoU"] == 0.5 and read["peak_memory_mb"] > 1


def test_bad_inputs_are_the_lines_with_an_error():
    lines = [{"key": "a"}, {"key": "b", "name": "row 2", "error": "gone"}]
    assert bad_inputs(lines) == [{"name": "b", "error": "gone"}]
    assert bad_inputs(lines, "name") == [{"name": "row 2", "error": "gone"}]
