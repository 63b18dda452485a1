"""Errors that the user can fix, and what other libraries' errors mean."""

from __future__ import annotations

from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the data, the options or the environment that the user can fix.

    Its message is one sentence that names the row, field or option, what was found, and what would
    be right. The command line prints it without a traceback and exits with code 2.
    """


class TrainingFault(UserError):
    """Training cannot go on: the loss or the weights are not finite, or the model has collapsed.
    The message is the reason.
    """


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked; that is no `Exception` and has no public name."""
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: an accelerator's, known by the name of torch's class without
    importing torch, or the machine's.
    """
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return named or isinstance(error, MemoryError) or any(word in str(error) for word in words)


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, in one line of at most `most` characters; the name of its
    type where it says nothing.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def did_you_mean(name: str, known: list[str], what: str) -> UserError:
    """The error for an unknown `name` of kind `what`, with the nearest known name."""
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    parts = [f"did you mean {near[0]!r}?"] if near else []
    if len(known) <= 20 or not near:
        parts.append(f"known are {', '.join(sorted(known))}")
    return UserError(f"unknown {what} {name!r}: {' '.join(parts)}")
