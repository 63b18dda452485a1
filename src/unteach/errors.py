"""The exceptions that mean "the user can mend this"."""


class UserError(ValueError):
    """A mistake in the data, the options or the environment that the user can mend.

    Its message is one sentence that names the row, field or option, what was found, and what would
    be right. The command line prints it without a traceback and exits with code 2.
    """


class TrainingFault(UserError):
    """Training cannot go on: the loss or the weights are no longer finite, or the model has
    collapsed. Its message is the reason.
    """


def is_panic(error: BaseException) -> bool:
    """Whether an error is the end of a library written in Rust, which is no `Exception` and has no
    public name.
    """
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: an accelerator's, known by the name of torch's class without
    importing torch, or the machine's.
    """
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return named or isinstance(error, MemoryError) or any(word in str(error) for word in words)


def did_you_mean(name: str, known: "list[str]", what: str) -> UserError:
    """Builds the error for an unknown `name` of kind `what`, with the nearest known name if there
    is one.
    """
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    parts = [f"did you mean {near[0]!r}?"] if near else []
    if len(known) <= 20 or not near:
        parts.append(f"known are {', '.join(sorted(known))}")
    return UserError(f"unknown {what} {name!r}: {' '.join(parts)}")
