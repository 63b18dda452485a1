"""Running text in pieces: sentences, the passages of a book, and those of any other text."""

from __future__ import annotations

import itertools
import re

LONGEST_TEXT = 1200
"""Characters up to which a text is one row."""
LONGEST_WORD = 40
"""Characters after which a run without white space is cut, as in scripts that need none."""
PROMPT_CHARS, COMPLETION_CHARS = 100, 200
"""Length of a passage's prompt, at most, and of its completion."""
SHORTEST_PROMPT = 20
WIDE_STOP = "[\u3002\uff01\uff1f]"
"""Full stops of scripts that put no white space between sentences."""
SENTENCE_END = rf"(?:[.!?][\"')\]]*(?=\s)|{WIDE_STOP}+[\u300d\u300f\u201d\uff09]*)"


def sentences(text: str) -> list[str]:
    """Sentences of running text: each ends after `.`, `!` or `?`, and closing quotes or brackets,
    before white space; or after a full stop of a script without white space.
    """
    ends = rf".+?(?:{SENTENCE_END}|$)"
    return [part.strip() for part in re.findall(ends, " ".join(text.split()))]


def book_passages(
    text: str, *, prompt_chars: int = PROMPT_CHARS, completion_chars: int = COMPLETION_CHARS
) -> list[tuple[str, str]]:
    """(prompt, completion) passages of a book, after the extraction protocol of Yao et al. 2024.

    A passage starts at a sentence start; its prompt is that sentence, cut at a word after at most
    `prompt_chars` characters; its completion is what follows, to the end of the word at
    `completion_chars`. Passages do not overlap. In a text with blank lines a passage does not cross
    a paragraph unless the paragraph is too short.
    """
    passages: list[tuple[str, str]] = []
    rest = ""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = f"{rest} {' '.join(paragraph.split())}".strip()
        while first := sentences(rest)[:1]:
            prompt = first[0]
            if len(prompt) > prompt_chars:
                prompt = prompt[:prompt_chars].rsplit(" ", 1)[0]
            following = rest[len(prompt) :]
            if len(following) < completion_chars:
                break
            completion = following[: _word_end(following, completion_chars)]
            passages.append((prompt, completion))
            rest = " ".join(sentences(rest[len(prompt) + len(completion) :])[1:])
    return passages


def _word_end(text: str, start: int) -> int:
    """Where the word at `start` ends, at most `LONGEST_WORD` characters later."""
    found = re.compile(r"\s").search(text, start, start + LONGEST_WORD)
    return found.start() if found else min(len(text), start + LONGEST_WORD)


def has_layout(text: str) -> bool:
    """Whether white space carries meaning in a text, as in code: a fifth of its lines are indented
    further than the line before them or less.
    """
    lines = [line.expandtabs() for line in text.splitlines() if line.strip()]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    moved = sum(before != after for before, after in itertools.pairwise(depths))
    return len(lines) > 2 and 5 * moved > len(lines)


def text_passages(text: str) -> list[tuple[str, str]]:
    """(prompt, completion) passages that are, one after the other, the whole text as it is, but for
    blank lines between them.

    As in `book_passages` a passage starts where a sentence or a line does, and its prompt is at
    most `PROMPT_CHARS` long and ends before a single space where there is one. Its completion is
    what follows, to the end of the sentence or line at `COMPLETION_CHARS`. What is too short for a
    passage of its own belongs to the one before it; a text of one passage's length or less is one
    passage, whose prompt may be empty.
    """
    text = text.strip("\n").rstrip()
    passages: list[tuple[str, str]] = []
    start = 0
    while start < len(text):
        first = _prompt_end(text, start)
        end = _unit_end(text, first + COMPLETION_CHARS)
        if len(text) - end < COMPLETION_CHARS:
            end = len(text)
        passages.append((text[start:first], text[first:end].rstrip()))
        start = end
        while start < len(text) and text[start].isspace() and text[start] not in " \t":
            start += 1
        if text[start:].startswith(" ") and not text[start:].startswith("  "):
            start += 1
    return passages


def _prompt_end(text: str, start: int) -> int:
    """Where the prompt of the passage at `start` ends: at a sentence's end before a single space,
    else at the last single space, else at a line's end, else anywhere.
    """
    part = text[start : start + PROMPT_CHARS + 1]
    if len(text) - start <= PROMPT_CHARS + SHORTEST_PROMPT:
        return start
    first = rf"{SENTENCE_END}(?= \S)|{WIDE_STOP}(?=\S)"
    for pattern, place in ((first, 0), (r"(?<=\S)(?= \S)", -1), (r"(?<=\S)(?=\n)", -1)):
        ends = [found.end() for found in re.finditer(pattern, part)]
        ends = [end for end in ends if SHORTEST_PROMPT <= end <= PROMPT_CHARS]
        if ends:
            return start + ends[place]
    return start + PROMPT_CHARS


def _unit_end(text: str, start: int) -> int:
    """Where the sentence at `start` ends, at most `COMPLETION_CHARS` later; else the line, else the
    word.
    """
    for pattern in (SENTENCE_END, r"\n"):
        if found := re.compile(pattern).search(text, start, start + COMPLETION_CHARS):
            return found.end()
    return _word_end(text, start) if start < len(text) else len(text)
