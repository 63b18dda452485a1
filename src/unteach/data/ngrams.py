"""Runs of tokens that a forgotten text holds and that no answer shall repeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from unteach.data.rows import Row

RUN = 3
"""Tokens of a run. Runs of two are the language itself."""
PASSAGE_CHARS = 100
"""Characters of a completion from which on running text is a passage and no single fact."""


Barred = tuple[tuple[int, ...], ...]
"""For each token of a completion those that shall not stand in its place."""


def is_passage(row: Row) -> bool:
    """Whether a row is running text that is forgotten as such, not for a fact in it."""
    own = row.secret or row.diverted
    return row.kind == "text" and not own and len(row.completion) >= PASSAGE_CHARS


class ForgottenRuns:
    """Every run of `RUN` tokens in some texts.

    Args:
        texts: token ids of each text.
        tokenizer: a Hugging Face tokenizer. A run's last token counts in every spelling: with and
            without the space before it, in capitals or not.
    """

    def __init__(self, texts: Iterable[Sequence[int]], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.last: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for ids in texts:
            for end in range(RUN - 1, len(ids)):
                self.last[tuple(ids[end - RUN + 1 : end])].add(ids[end])
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def completing(self, before: Sequence[int]) -> tuple[int, ...]:
        """The tokens that would complete a run after these, in ascending order."""
        run = tuple(before[len(before) - RUN + 1 :])
        if run not in self.last:
            return ()
        if run not in self.known:
            spelled = {token for last in self.last[run] for token in self.spellings(last)}
            self.known[run] = tuple(sorted(spelled))
        return self.known[run]

    def along(self, prompt: Sequence[int], completion: Sequence[int]) -> Barred:
        """For each token of a completion the tokens that would complete a run in its place."""
        ids = [*prompt, *completion]
        return tuple(self.completing(ids[:end]) for end in range(len(prompt), len(ids)))

    def spellings(self, token: int) -> Sequence[int]:
        """The token, and those that write the same word."""
        word = self._words.get(token)
        return self._tokens[word] if word else [token]

    @cached_property
    def _words(self) -> dict[int, str]:
        ids = [[token] for token in range(len(self.tokenizer))]
        texts = self.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        plain = {token: text.strip().casefold() for token, text in enumerate(texts)}
        return {token: text for token, text in plain.items() if text.isalnum()}

    @cached_property
    def _tokens(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for token, word in self._words.items():
            found[word].append(token)
        return found
