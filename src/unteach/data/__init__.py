"""Rows, their sources, their tokens, and the batches made of them."""

from unteach.data.rows import Row, split_of, split_rows, without_prompts_of
from unteach.data.sources import load_rows
from unteach.data.tokenization import EncodedRow, encode_rows

__all__ = [
    "EncodedRow",
    "Row",
    "encode_rows",
    "load_rows",
    "split_of",
    "split_rows",
    "without_prompts_of",
]
