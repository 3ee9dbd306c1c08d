import json

import pytest

from trainer.json_files import last_row, read_json


@pytest.mark.parametrize(("content", "row"), [("", {}), ('{"step": 1}', {}), ("[1]\n", {}), ("{\n", {}), ('{"step": 1}\n', {"step": 1})])
def test_last_rows(tmp_path, content, row):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert last_row(tmp_path / "metrics.jsonl") == row
    assert last_row(tmp_path / "none") == {}


@pytest.mark.parametrize("num_tags", [1, 10_000])
def test_the_last_row_of_a_long_file(tmp_path, num_tags):
    rows = [{"step": i} | {f"grad_norm/{k}": 0.5 for k in range(num_tags)} for i in range(40)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "grad')
    assert last_row(tmp_path / "metrics.jsonl") == rows[-1]


@pytest.mark.parametrize(("content", "found"), [('{"state": "done"}', {"state": "done"}), ("[1]", None), ("{", None), ("[" * 10**5, None)])
def test_objects(tmp_path, content, found):
    (tmp_path / "status.json").write_text(content)
    assert read_json(tmp_path / "status.json") == found
    assert read_json(tmp_path / "none.json") is None
