"""Peak resident memory of reading, tokenising and batching, at growing numbers of rows, each in a
process of its own.

    python benchmarks/many_rows.py [--short] [--json FILE]

Our side reads row by row into a token store and takes batches from it; the naive side keeps all
rows in lists. The ratio is ours / naive. Above 100,000 rows the naive side is left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

from unteach.data.sources import load_rows
from unteach.data.stream import Collator, TrainingStream
from unteach.data.token_store import write_rows
from unteach.data.tokenization import encode_rows
from unteach.seeding import row_generator
from unteach.trainer.costs import peak_memory_mb

COUNTS = (10_000, 100_000, 1_000_000)
NAIVE_UP_TO = 100_000
WORDS = [f"word{number}" for number in range(1000)]
BATCHES = 200


def tokenizer() -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<eos>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )


def write_file(path: Path, count: int) -> None:
    """JSON lines of about 40 words each."""
    draw = row_generator("many rows")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [WORDS[number] for number in draw.integers(0, len(WORDS), 40)]
            row = {"prompt": " ".join(words[:20]), "completion": " ".join(words[20:])}
            file.write(json.dumps(row) + "\n")


def peak(path: Path, folder: Path, side: str) -> float:
    """Peak memory of this process in MiB."""
    reads = tokenizer()
    rows: Any = (
        write_rows(path, reads, folder) if side == "ours" else encode_rows(load_rows(path), reads)
    )
    stream = TrainingStream(rows, rows, None, length=len(rows), retain_ratio=1.0, seed=0)
    collate = Collator(rows, 0)
    for number in range(BATCHES):
        collate([stream[position] for position in range(4 * number, 4 * number + 4)])
    return peak_memory_mb()


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--child"]:
        print(peak(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
        return
    options = record.options(__doc__)
    rows: list[dict[str, Any]] = []
    for count in (1_000, 10_000) if options.short else COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_file(path, count)
            found = {}
            store = str(Path(folder) / "store")
            for side in ("ours", "naive") if count <= NAIVE_UP_TO else ("ours",):
                found[side] = float(record.in_own_process(__file__, str(path), store, side))
        naive = found.get("naive", float("nan"))
        rows.append(record.compared(f"{count}-rows", found["ours"], naive, "MiB"))
        print(rows[-1], flush=True)
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
