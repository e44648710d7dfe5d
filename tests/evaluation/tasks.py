"""Tasks of lm-evaluation-harness with data of their own, since there is no Hub."""

from __future__ import annotations

import json
from pathlib import Path

_COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
metadata: {{version: 3.0}}
"""
_TASKS = {
    "facts": """
task: facts
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
    "words": """
task: words
output_type: generate_until
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
    "unsafe": """
task: unsafe
output_type: multiple_choice
unsafe_code: true
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
}
_LONELY = _TASKS["facts"].replace("task: facts", "task: lonely")
_LOST = """
task: lost
dataset_path: no-such-org/no-such-data
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: [a, b]
doc_to_target: 0
"""
COUNT = 20


def write_tasks(folder: Path) -> Path:
    """Writes tasks, and the group `both`; `lonely` has one document, the data of `lost` is nowhere."""
    folder.mkdir()
    data = folder / "questions.jsonl"
    write_questions(data)
    for name, text in _TASKS.items():
        (folder / f"{name}.yaml").write_text((text + _COMMON).format(data=data))
    write_questions(folder / "one.jsonl", count=1)
    (folder / "lonely.yaml").write_text((_LONELY + _COMMON).format(data=folder / "one.jsonl"))
    (folder / "lost.yaml").write_text(_LOST)
    (folder / "both.yaml").write_text("group: both\ntask: [facts, words]\n")
    return folder


def write_questions(file: Path, shift: int = 0, count: int = COUNT) -> None:
    """Writes questions with three answers each; `shift` makes others of them."""
    rows = [
        {"question": f"What is {n} and {n}?", "choices": [f"{2 * n}", f"{n}", "none of it"], "label": n % 3}
        for n in range(shift, shift + count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
