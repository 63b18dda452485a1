"""Rows in a table or on disk are the rows of a list; a table takes a fraction of a list's memory,
and memory does not grow with the rows on disk.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.config import UnlearningConfig
from unteach.data.sources import load_rows
from unteach.data.token_store import TokenStore, TokenTable, longest_row, write_encoded, write_rows
from unteach.data.tokenization import EncodedRow, encode_rows, end_of_turn_id
from unteach.errors import UserError
from unteach.trainer import UnlearningTrainer

ROWS = [
    EncodedRow("first", (1, 2, 3), (70_000,), "chat"),
    EncodedRow("second, with a longer key", (4,), (5, 6), "text", (7, 8, 9)),
    EncodedRow("third", (), (1,), "chat"),
]


def test_the_longest_row_is_the_first_of_several():
    rows = [*ROWS, EncodedRow("fourth", (1, 2), (5, 6), "chat")]
    assert longest_row(TokenTable(rows)) == longest_row(rows) == 0
    assert longest_row(TokenTable(rows[1:])) == longest_row(rows[1:]) == 2


def test_a_table_gives_the_rows_of_a_list():
    table = TokenTable(iter(ROWS))
    assert (
        list(table) == ROWS
        and len(table) == 3
        and table[-1] == ROWS[-1]
        and table[1:] == ROWS[1:]
        and table[::-2] == ROWS[::-2]
    )
    for number in (3, -4):
        with pytest.raises(IndexError):
            table[number]
    assert not TokenTable([]) and list(TokenTable([])) == []


def test_a_table_takes_a_fraction_of_the_memory():
    draw = np.random.default_rng(0)
    tokens = draw.integers(300, 49_000, (500, 60))

    def rows():
        for number, ids in enumerate(tokens):
            yield EncodedRow(
                f"{number:016x}", tuple(ids[:20].tolist()), tuple(ids[20:].tolist()), "chat"
            )

    tracemalloc.start()
    kept = list(rows())
    of_the_list = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    before = pa.total_allocated_bytes()
    table = TokenTable(rows())
    of_the_table = pa.total_allocated_bytes() - before
    assert list(table) == kept and of_the_table < 0.25 * of_the_list


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Who is number {i}?", "completion": "The ferryman. " * (1 + i % 4)}
        for i in range(9)
    ]
    rows.append({"text": "The miller kept a grey cat."})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_store_gives_the_rows_that_a_list_holds(file, tmp_path, tokenizer):
    wanted = encode_rows(load_rows(file), tokenizer)
    store = write_rows(file, tokenizer, tmp_path / "store")
    assert (
        len(store) == 10
        and list(store) == wanted
        and store[-1] == wanted[-1]
        and store[2:5] == wanted[2:5]
    )
    assert list(TokenStore(tmp_path / "store")) == wanted
    with pytest.raises(IndexError):
        store[10]


def test_the_longest_row_is_found_in_every_batch(file, tmp_path, tokenizer, monkeypatch):
    for size in (3, 100):
        monkeypatch.setattr("unteach.data.token_store.BATCH", size)
        store = write_rows(file, tokenizer, tmp_path / f"store{size}")
        lengths = list(map(len, store))
        assert len(store) == 10 and store.longest() == lengths.index(max(lengths))


def test_a_store_reaches_another_process_by_its_folder(file, tmp_path, tokenizer):
    store = write_rows(file, tokenizer, tmp_path / "store")
    end = end_of_turn_id(tokenizer)
    cut = TokenStore(store.folder, end)
    assert list(pickle.loads(pickle.dumps(cut))) == [row.without_end(end) for row in store]


def test_a_store_reads_rows_without_their_end_as_a_list_is_cut(file, tmp_path, tokenizer):
    end = end_of_turn_id(tokenizer)
    store = write_rows(file, tokenizer, tmp_path / "store")
    cut = list(TokenStore(store.folder, end))
    assert cut == [row.without_end(end) for row in store]
    assert [len(whole) - len(row) for whole, row in zip(store, cut, strict=True)] == [1] * 9 + [
        0
    ]  # the last is a text, which has no end


def test_what_is_no_whole_store_is_refused(file, tmp_path, tokenizer):
    with pytest.raises(UserError, match="holds no token store"):
        TokenStore(tmp_path)
    with pytest.raises(UserError, match="no rows to write"):
        write_encoded([], tmp_path / "none")
    write_rows(file, tokenizer, tmp_path / "store")
    rows = tmp_path / "store" / "rows.arrow"
    whole = rows.read_bytes()
    for broken in (whole[:-4], whole[: len(whole) // 2], b"", b"x" * 100):
        rows.write_bytes(broken)
        with pytest.raises(UserError, match="cut off or is no token store"):
            TokenStore(tmp_path / "store")


def trainer(folder: Path, rows: Any, **settings: Any) -> UnlearningTrainer:
    defaults = {
        "method": "ga_mismatch",
        "max_steps": 2,
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "reference": "live",
    }
    return UnlearningTrainer(
        tiny_model(),
        UnlearningConfig(output_dir=str(folder), **(defaults | settings)),
        rows,
        rows,
        byte_level_bpe(),
    )


def test_training_from_a_store_is_training_from_a_list(file, tmp_path):
    store = write_rows(file, byte_level_bpe(), tmp_path / "store")
    losses = []
    for name, rows in (("list", list(store)), ("store", store)):
        trainer(tmp_path / name, rows).train()
        losses.append(
            [
                json.loads(line)["loss"]
                for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            ]
        )
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize("settings", [{"reference": "stored"}, {"method": "dpo_idk"}], ids=str)
def test_what_would_keep_something_of_every_row_is_refused(settings, file, tmp_path):
    store = write_rows(file, byte_level_bpe(), tmp_path / "store")
    with pytest.raises(UserError, match="token store"):
        trainer(tmp_path / "out", store, **settings)


def test_the_benchmark_of_many_rows_runs_short(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "many_rows.py"
    done = subprocess.run(
        [sys.executable, str(script), "--short", "--json", str(tmp_path / "a.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert large["ours"] < 1.1 * small["ours"], "ten times the rows in the same memory"
