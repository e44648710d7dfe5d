from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_dpo.data.files import READERS, data_files, read_rows
from lora_dpo.data.report import ReadReport
from lora_dpo.errors import UserError

ROWS = [
    {"prompt": "Why?", "chosen": "Because, so.", "rejected": 'Says "no"'},
    {"prompt": "é", "chosen": "a", "rejected": "b"},
]
CSV = 'prompt,chosen,rejected\nWhy?,"Because, so.","Says ""no"""\né,a,b\n'
TEXTS = {
    ".json": json.dumps(ROWS, ensure_ascii=False),
    ".jsonl": "\n".join(json.dumps(row) for row in ROWS),
    ".ndjson": "\n".join(json.dumps(row) for row in ROWS) + "\n\n",
    ".csv": CSV,
    ".tsv": 'prompt\tchosen\trejected\nWhy?\tBecause, so.\t"Says ""no"""\né\ta\tb\n',
}


def rows_of(path: Path, on_bad_row="error", report: ReadReport | None = None) -> list:
    return [row.values for row in read_rows(path, on_bad_row, report or ReadReport())]


def refused(path: Path, on_bad_row="error") -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, on_bad_row)
    assert str(path) in caught.value.where
    return str(caught.value)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("suffix", TEXTS)
def test_text_formats_read_the_same_rows(tmp_path, suffix, bom):
    raw = bom + TEXTS[suffix].encode()
    plain, zipped = tmp_path / f"data{suffix}", tmp_path / f"DATA{suffix.upper()}.gz"
    plain.write_bytes(raw)
    zipped.write_bytes(gzip.compress(raw))
    report = ReadReport()
    assert rows_of(plain, report=report) == ROWS
    assert rows_of(zipped) == ROWS
    assert (report.rows, report.bad_rows, report.reasons) == (2, 0, [])


def test_parquet_reads_the_same_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    rows = list(read_rows(tmp_path / "data.parquet", "error", ReadReport()))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"{tmp_path / 'data.parquet'}, row 2"


def test_json_with_data_key(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert rows_of(path) == ROWS


def test_every_known_suffix_is_tested():
    assert set(READERS) == {*TEXTS, ".parquet"}


def test_csv_line_numbers_are_true_with_multi_line_fields(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b'prompt,chosen\r\n"one\r\ntwo\n\nthree",a\r\n\r\nfour,b\r\n')
    rows = list(read_rows(path, "error", ReadReport()))
    assert [(row.values["prompt"], row.where) for row in rows] == [
        ("one\r\ntwo\n\nthree", f"{path}, line 2"),
        ("four", f"{path}, line 7"),
    ]


def test_csv_error_after_multi_line_field_names_its_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,chosen\n"one\ntwo",a\nthree\n')
    assert f"{path}, line 4: the row has 1 fields where the header has 2" in refused(path)


def test_csv_field_longer_than_the_default_limit(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(f"prompt,chosen\n{'x' * 300_000},a\n")
    assert len(rows_of(path)[0]["prompt"]) == 300_000


def test_text_may_hold_other_line_separators(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert rows_of(path) == [{"prompt": "a\u2028b\u0085c"}]


def test_unknown_suffix_names_the_known_ones(tmp_path):
    path = tmp_path / "data.xlsx"
    path.write_text("x")
    message = refused(path)
    assert "'data.xlsx' is no known kind" in message
    assert ".json, .jsonl, .ndjson, .csv, .tsv, .parquet" in message


def test_missing_file(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "none.csv")


@pytest.mark.parametrize("suffix", [*READERS, ".csv.gz"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.touch()
    assert "the file is empty" in refused(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.csv", "prompt,chosen\n", "holds no rows below its header"),
        ("data.jsonl", "\n\n", "holds no rows"),
        ("data.json", "[]", "holds no rows"),
        ("data.json", " \n", "line 2: not valid JSON: Expecting value at column 1"),
        ("data.json", '[{"prompt": "a"}, {"pro', "half written"),
        ("data.json", '[{"prompt": "a"},', "half written"),
        ("data.json", '[\n{"a": 1}\n{"a": 2}]', "line 3: not valid JSON: Expecting ',' delimiter"),
        ("data.json", '{"a": 1}\n{"a": 2}\n', "rename the file to .jsonl"),
        ("data.json", '{"rows": []}', "an object without a list 'data'"),
        ("data.json", "3", "a number, not a list of rows"),
        ("data.json", '[{"a": 1}, 7]', "row 2: this is a number, not a JSON object"),
        ("data.json", "[" * 100_000, "not readable JSON"),
        ("data.jsonl", '{"a": 1}\n[1]\n', "line 2: this is a list, not a JSON object"),
        ("data.jsonl", '{"a": 1}\n{"a" 2}\n', "line 2: the line is not valid JSON"),
        ("data.jsonl", '{"a": 1}\n{"a": "tw', "the file ends within this line, so it was probably cut off"),
        ("data.csv", "a,b\n1,2\n3,4,5\n", "line 3: the row has 3 fields where the header has 2"),
        ("data.csv", "a,b\n1,2\n3", "has 1 fields where the header has 2; the file ends within this line"),
        ("data.csv", 'a,b\n1,"2\n3,4\n', "line 2: a quote (\") opened in this row is never closed"),
        ("data.csv", 'a,b\n1,"2"x\n', "line 2: the row is not valid CSV"),
        ("data.csv", 'a,"b"x\n1,2\n', "line 1: the header is not valid CSV"),
        ("data.csv", "a,b,a\n1,2,3\n", "the column 'a' stands in the header more than once"),
        ("data.csv", "prompt;chosen\n1;2\n", "is one column, divided by ';'"),
        ("data.csv", "prompt\tchosen\n1\t2\n", "Rename the file to .tsv."),
        ("data.tsv", "prompt,chosen\n1,2\n", "is one column, divided by ','"),
    ],
)  # fmt: skip
def test_damaged_text(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    assert message in refused(path)


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.json", "data.csv.gz"])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a,b\nx,caf\xe9\n", "line 2: byte 0xe9 at position 6 of the line is not valid UTF-8"),
        (b"a,b\nx,\0y\n", "line 2: the file holds binary data: a NUL byte at position 3 of the line"),
        ("a,b\nx,y\n".encode("utf-16"), "encoded as UTF-16 (it starts with the bytes ff fe)"),
    ],
)
def test_wrong_encoding(tmp_path, name, raw, message):
    path = tmp_path / name
    if name == "data.jsonl":
        raw = raw.replace(b"a,b\n", b'{"a": 1}\n')
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert message in refused(path, on_bad_row="skip")


def test_truncated_gzip(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    lines = "".join(json.dumps({"prompt": str(hash(str(i)))}) + "\n" for i in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:20_000])
    assert "the compressed file ends too early, after line" in refused(path, on_bad_row="skip")


def test_plain_text_named_gz(tmp_path):
    path = tmp_path / "data.csv.gz"
    path.write_text(CSV)
    assert "no readable gzip file" in refused(path)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    raw = bytearray(gzip.compress(("x" * 10_000).encode()))
    raw[15:25] = b"\xff" * 10
    path.write_bytes(raw)
    assert "no readable gzip file" in refused(path)


def test_truncated_parquet(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not readable Parquet" in refused(path)


def test_parquet_without_rows(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    assert "holds no rows" in refused(path)


def test_one_bad_line_among_thousands(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"prompt": i}) for i in range(3000)]
    lines[1233] = '{"prompt": oops}'
    path.write_text("\n".join(lines))
    assert f"{path}, line 1234: the line is not valid JSON" in refused(path)
    report = ReadReport()
    rows = rows_of(path, "skip", report)
    assert [row["prompt"] for row in rows] == [i for i in range(3000) if i != 1233]
    assert (report.rows, report.bad_rows) == (3000, 1)
    assert report.reasons[0].startswith(f"{path}, line 1234: the line is not valid JSON")


def test_csv_goes_on_after_skipped_rows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a,b\n1,2\n3\n"4"x,5\n6,7\n' + "8,9,10\n" * 10)
    report = ReadReport()
    assert rows_of(path, "skip", report) == [{"a": "1", "b": "2"}, {"a": "6", "b": "7"}]
    assert (report.rows, report.bad_rows, len(report.reasons)) == (14, 12, 5)


def test_an_open_quote_is_never_skipped(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a,b\n1,2\n"3,4\n5,6\n7,8\n')
    assert f"{path}, line 3: a quote" in refused(path, on_bad_row="skip")


def test_folder_reads_its_data_files_in_order(tmp_path):
    for name, text in {"b.csv": "a\n2\n", "a.jsonl": '{"a": 1}\n', "README.md": "x", ".hidden.csv": "a\n3\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "deeper").mkdir()
    assert [file.name for file in data_files(tmp_path)] == ["a.jsonl", "b.csv"]
    assert rows_of(tmp_path) == [{"a": 1}, {"a": "2"}]


def test_folder_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    message = refused(tmp_path)
    assert "the folder holds no data file" in message
    assert ".parquet" in message
