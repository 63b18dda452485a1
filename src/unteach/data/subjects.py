"""The names in a text: found by their capitals, and exchanged for invented ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unteach.seeding import row_generator

_OPENERS = (
    "a about after all also an and any are as ask at be because before both but by call can"
    " compose could define describe did discuss do does during each explain find for from give"
    " had has have he her his how i identify if in is it its let list make many may me mention"
    " might more most must my name no not now of on once one only or other our out outline"
    " please provide recall she should show since so some state such suggest summarise summarize"
    " tell than thank that the their them then there these they this those though to translate"
    " under until up use was we were what when where which while who whom whose why will with"
    " within without would write yes you your"
)
OPENERS = frozenset(_OPENERS.split())
"""Words that begin a sentence with a capital and are no name."""
_JOINERS = "of the and de del della di da van von der den la le du al bin ibn"
JOINERS = frozenset(_JOINERS.split())
"""Words in lower case that may stand inside a name."""
_FIRST_NAMES = (
    "Amira Bodan Cosima Darvin Elowen Fenna Gideon Hestia Ivo Juno Kasimir Lavinia Milo Nerys"
    " Orson Petra Quill Rosalind Stellan Thea Ulric Verena Wystan Xenia Yorick Zelda Anselm Birgit"
    " Corwin Delphine Emrys Flora Gunnar Hazel Isolde Jasper Kenna Leopold Maren Niall"
)
FIRST_NAMES = _FIRST_NAMES.split()
_LAST_NAMES = (
    "Abbott Birkin Caldwell Dunmore Eastman Falk Grantham Hollis Ingram Jarvis Kendrick Lowell"
    " Marchetti Norwood Osgood Prescott Radley Sutter Thorne Whitlow Ashdown Bellamy Crowther"
    " Devlin Ellery Fairbank Goodwin Haverly Iverson Kessler Langley Merrick Nyland Overton"
    " Penrose Quigley Rutland Selwyn Tolland Vance"
)
LAST_NAMES = _LAST_NAMES.split()
WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*", re.UNICODE)
SENTENCE_END = re.compile(r"[.!?:;\n\"“”]\s*$")


@dataclass(frozen=True)
class Exchanged:
    """A text in which names were exchanged.

    Args:
        kept (`tuple`): the unchanged parts as (start and end in the old text, start in the new).
    """

    text: str
    kept: tuple[tuple[int, int, int], ...]

    @property
    def changed(self) -> list[tuple[int, int]]:
        """Start and end in the old text of what was exchanged."""
        return [(before[1], after[0]) for before, after in pairwise(self.kept)]

    def position(self, old: int) -> int | None:
        """Where a character position of the old text is in the new one; `None` inside a name."""
        for start, end, new in self.kept:
            if start <= old <= end:
                return new + old - start
        return None


def _is_capitalised(word: str) -> bool:
    return word[0].isupper()


def find_subjects(text: str, lower_case: Collection[str] = frozenset()) -> list[str]:
    """The names in a text, longest first and each once: runs of capitalised words, joined across
    `of`, `and`, `van` and the like.

    A word that begins a sentence counts only if it is no common opener (`OPENERS`) and is not
    written in lower case elsewhere.

    Args:
        lower_case (set of `str`): words that other texts of the same kind have in lower case, see
            `lower_case_words`.
    """
    words = [(found.group(), found.start(), found.end()) for found in WORD.finditer(text)]
    own = lower_case_words([text])
    found: dict[str, None] = {}
    run: list[int] = []

    def close() -> None:
        while run and not _is_capitalised(words[run[-1]][0]):
            run.pop()
        if run:
            name = text[words[run[0]][1] : words[run[-1]][2]]
            found[re.sub(r"['\u2019]s?$", "", name)] = None
        run.clear()

    for number, (word, start, _) in enumerate(words):
        gap = text[words[number - 1][2] : start] if number else ""
        if run and gap.strip():
            close()
        first = number == 0 or bool(SENTENCE_END.search(text[:start]))
        plain = word.casefold()
        named = _is_capitalised(word) and word != "I" and plain not in OPENERS
        if first and (plain in own or plain in lower_case):
            named = False
        if named:
            run.append(number)
        elif not (run and word in JOINERS):
            close()
        else:
            run.append(number)
        following = words[number + 1][0] if number + 1 < len(words) else ""
        if run and re.search(r"['\u2019]s?$", word) and not following[:1].isupper():
            close()
    close()
    return sorted(found, key=lambda name: (-len(name), name))


def longest_names(texts: Sequence[str]) -> list[str]:
    """The longest name in each text; empty in one without names."""
    lower_case = lower_case_words(texts)
    found = (find_subjects(text, lower_case) for text in texts)
    return [names[0] if names else "" for names in found]


def lower_case_words(texts: Iterable[str]) -> set[str]:
    """The words that some texts have in lower case, case folded."""
    words = (word for text in texts for word in WORD.findall(text))
    return {word.casefold() for word in words if word.islower()}


def spellings(name: str) -> list[str]:
    """The ways in which a text may call somebody: the whole name, and a person's last word."""
    words = name.split()
    return [name, words[1]] if len(words) == 2 else [name]


def invented_names(subject: str, count: int, seed: int = 0, key: str = "") -> list[str]:
    """Different invented names with as many words as the subject (at most two), the same ones for
    the same key and seed.
    """
    draw = row_generator("names", key or subject, seed, 0)
    taken = {word.casefold() for word in subject.split()}
    first = [name for name in FIRST_NAMES if name.casefold() not in taken]
    last = [name for name in LAST_NAMES if name.casefold() not in taken]
    firsts = [first[i] for i in draw.permutation(len(first))]
    lasts = [last[i] for i in draw.permutation(len(last))]
    pairs = [
        (firsts[i % len(firsts)], lasts[(i + i // len(firsts)) % len(lasts)]) for i in range(count)
    ]
    if len(subject.split()) < 2:
        return [family for _, family in pairs]
    return [f"{given} {family}" for given, family in pairs]


def neighbouring_names(subject: str, count: int, seed: int = 0, key: str = "") -> list[str]:
    """Invented names near the subject: with its first word, with its last word, with neither, in
    turn. What is forgotten about one Miller must not be forgotten about every Miller.
    """
    names = invented_names(subject, count, seed, key)
    words = subject.split()
    if len(words) < 2:
        return names
    near = []
    for number, name in enumerate(names):
        first, last = name.split()
        if number % 3 == 0:
            name = f"{words[0]} {last}"
        elif number % 3 == 1:
            name = f"{first} {words[-1]}"
        near.append(name)
    return near


def mapping_to(name: str, other: str) -> dict[str, str]:
    """What to exchange for what, so that `other` takes the place of `name`: the whole name, and
    the words of a two-word name each for its counterpart.
    """
    pairs = {name: other}
    words, others = name.split(), other.split()
    if len(words) == len(others) == 2:
        pairs |= dict(zip(words, others, strict=True))
    elif len(words) == 2:
        pairs |= dict.fromkeys(words, other)
    return pairs


def exchange(text: str, pairs: Mapping[str, str]) -> Exchanged:
    """Exchanges whole words or runs of words, the longest ones first."""
    if not pairs:
        return Exchanged(text, ((0, len(text), 0),))
    names = sorted(pairs, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)")
    made, kept, last, length = [], [], 0, 0
    for match in pattern.finditer(text):
        part = text[last : match.start()]
        kept.append((last, match.start(), length))
        made += [part, pairs[match.group()]]
        length += len(part) + len(pairs[match.group()])
        last = match.end()
    kept.append((last, len(text), length))
    return Exchanged("".join([*made, text[last:]]), tuple(kept))


def common_subject(texts: Sequence[str], share: float = 0.5) -> str:
    """The name that at least this share of the texts have in common, in its longest spelling; empty
    without one.
    """
    counts: dict[str, int] = {}
    whole: dict[str, str] = {}
    for text in texts:
        seen = set()
        for name in find_subjects(text):
            last = name.split()[-1]
            seen.add(last)
            whole[last] = max(whole.get(last, ""), name, key=len)
        for last in seen:
            counts[last] = counts.get(last, 0) + 1
    if not counts or max(counts.values()) < share * len(texts):
        return ""
    return whole[max(counts, key=lambda last: (counts[last], last))]
