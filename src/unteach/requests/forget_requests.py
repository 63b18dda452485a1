"""Forget requests over time: each goes on from the model of the last, and none may bring an earlier
one back.

In the folder: `requests.jsonl` (the ledger, without texts), `request-NNN/` for each request (its
rows in `work/`, readable by the owner alone; `round-R/`, the folder of a run), and `adapter/`, the
sum of the patches that hold now. A patch is trained with the earlier ones merged into frozen
weights, so it is a term of a sum and can be left out of it.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unteach import models
from unteach.config.run import RunOptions
from unteach.data.rows import Row, rows_hash
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.evaluation.generation import answer
from unteach.evaluation.scoring import ANSWER_TOKENS
from unteach.files.checkpoints import file_sha256, mark_complete, read_marker
from unteach.files.folder_lock import FolderLock
from unteach.files.folders import private_folder
from unteach.progress import Display
from unteach.requests import ledger as ledgers
from unteach.requests import patches
from unteach.requests.ledger import Entry, Ledger, folder_name
from unteach.requests.request_rows import Rates, rows_of, write_rows
from unteach.run.pipeline import Run
from unteach.scenarios.user_rows import place, user_scenario

Load = Callable[[], Any]
METHOD = "unlikelihood"
"""What a request forgets by where nobody says. What was measured are requests by
`unlikelihood_mismatch` (experiments/five_requests.py).
"""


def current_model(
    folder: Path, ledger: Ledger, base: str, *, trust_remote_code: bool = False
) -> tuple[str, Load]:
    """(name, function that loads it) of the model after all requests that hold; the name is a
    folder or hub id that can be trained on.

    Args:
        folder (`Path`): the ledger's.
        ledger (`Ledger`)
        base (`str`): the model before the first request.
        trust_remote_code (`bool`)
    """
    entries = ledger.active
    if ledgers.kind_of(ledger.requests) == "full":
        name = str(folder / str(ledger.requests[-1]["model"]))
        if not Path(name).is_dir():
            raise UserError(
                f"{name} is gone, the model that request {ledger.requests[-1]['id']} left; put it"
                " back to go on"
            )
        return name, lambda: models.placed(
            models.load_model(name, trust_remote_code=trust_remote_code)
        )
    paths = patch_paths(folder, entries)
    if not paths:
        return base, lambda: models.placed(
            models.load_model(base, trust_remote_code=trust_remote_code)
        )
    start = folder / "work" / "start"
    private_folder(folder / "work")
    tokenizer = models.load_tokenizer(base, trust_remote_code=trust_remote_code)
    patches.materialise(base, paths, tokenizer, start, trust_remote_code=trust_remote_code)
    return str(start), lambda: models.placed(
        models.load_model(str(start), trust_remote_code=trust_remote_code)
    )


def patch_paths(folder: Path, entries: Sequence[Entry]) -> list[Path]:
    """The adapter folders of these requests.

    Raises:
        UserError: for one that is not there, naming it.
    """
    paths = [folder / str(entry["patch"]) for entry in entries]
    for path, entry in zip(paths, entries, strict=True):
        if not (path / patches.WEIGHTS).is_file():
            raise UserError(
                f"the patch of request {entry['id']} is gone ({path / patches.WEIGHTS}); put it"
                " back to go on"
            )
    return paths


def refresh_adapter(folder: Path, ledger: Ledger, *, trust_remote_code: bool = False) -> None:
    """Makes `adapter/` the sum of the patches that hold; once for the same ones."""
    if ledgers.kind_of(ledger.requests) != "adapter":
        return
    target = folder / "adapter"
    paths = patch_paths(folder, ledger.active)
    state = {"patches": [file_sha256(path / patches.WEIGHTS) for path in paths]}
    if read_marker(target) == state:
        return
    if not paths:
        shutil.rmtree(target, ignore_errors=True)
        return
    patches.combine(
        str(ledger.requests[0]["base"]), paths, target, trust_remote_code=trust_remote_code
    )
    mark_complete(target, state)


def forget_request(
    folder: str | Path,
    forget: Any,
    retain: Any = None,
    *,
    model: str | None = None,
    full: bool = False,
    target: float = 0.03,
    rounds: int = 3,
    seed: int = 0,
    display: Display | None = None,
    **settings: Any,
) -> Entry:
    """Forgets the rows on top of what earlier requests have made the model forget; returns the
    request's line of the ledger.

    Args:
        folder (path): where the ledger is, or is begun.
        forget: rows to forget, anything that `load_rows` takes; all are trained on.
        retain (*optional*): rows to keep, beside the model's own answers to neutral prompts.
        model (`str`, *optional*): the model before the first request; needed there, and the same
            later if it is given.
        full (`bool`): train all weights instead of an adapter; one choice for all requests of a
            folder.
        target (`float`): rate, 0 to 1, above which the rows of an earlier request have come back;
            they are then trained on again.
        rounds (`int`): how many trainings a request may take.
        seed (`int`)
        display (`Display`, *optional*)
        settings: fields of `UnlearningConfig` (`method` defaults to `METHOD`), and of `RunOptions`
            other than those above.

    Raises:
        UserError: for options that do not go together or with the ledger, and if another process is
            writing into the folder.
    """
    if not 0 <= target < 1:
        raise UserError(f"option 'target' is {target}, it must be at least 0 and under 1")
    if rounds < 1:
        raise UserError(f"option 'rounds' is {rounds}, it must be at least 1")
    root, display = Path(folder), display or Display(quiet=True)
    settings.setdefault("method", METHOD)
    own = {
        name: settings.pop(name)
        for name in list(settings)
        if name in RunOptions.__dataclass_fields__
    }
    remote = bool(own.get("trust_remote_code", False))
    with FolderLock(root):
        ledger = ledgers.open_ledger(root, display.say)
        base, kind = _base(ledger, model, full)
        refresh_adapter(root, ledger, trust_remote_code=remote)
        rows = load_rows(forget, "forget", prompt_only=True)
        same = [entry for entry in ledger.active if entry["data"]["hash"] == rows_hash(rows)]
        if same:
            display.say(f"Request {same[-1]['id']} was about these very rows and is done.")
            return same[-1]
        number = len(ledger.requests) + 1
        where = root / folder_name(number)
        start, load = current_model(root, ledger, base, trust_remote_code=remote)
        tokenizer = models.load_tokenizer(start, trust_remote_code=remote)
        model_in = models.weights_hash(load())
        given, rows = rows_hash(rows), _completed(load, tokenizer, rows, display)
        write_rows(where / "work", rows)
        earlier = {entry["id"]: rows_of(root, entry) for entry in ledger.active}
        for lost in [key for key, kept in earlier.items() if not kept]:
            display.say(
                f"The rows of request {lost} are gone: whether it is still forgotten cannot be"
                " asked."
            )
        options = RunOptions(
            model=start, output_dir="", seed=seed, lora=kind == "adapter", settings=settings, **own
        )
        training = list(rows)
        for attempt in range(1, rounds + 1):
            out = where / f"round-{attempt}"
            run = Run(
                user_scenario(training, retain, whole=True),
                replace(options, output_dir=str(out)),
                display,
            )
            evaluation = run.finished() or run.execute().evaluation
            gc.collect()
            result = _Result(root, ledger, base, kind, out, remote)
            scorers = run.scorers()
            rates = Rates(tokenizer, scorers, where / "work")
            with display.stage("Asking for this request and the earlier ones", 1 + len(earlier)):
                before = rates.measure(load, model_in, rows)
                after = rates.measure(result.load, result.hash, rows)
                found = {
                    key: rates.measure(result.load, result.hash, kept)
                    for key, kept in earlier.items()
                    if kept
                }
            result.model = None
            back = [key for key, rate in found.items() if rate > target]
            if not back or attempt == rounds:
                break
            display.say(
                f"Request {', '.join(map(str, back))} came back: forgetting it again, together with"
                " the new rows."
            )
            known = {row.key for row in training}
            training += [row for key in back for row in earlier[key] if row.key not in known]
        similarity = (
            evaluation["models"]["unlearned"].get("normal", {}).get("similarity", {}).get("value")
        )
        facts = {
            "data": {
                "file": place(forget),
                "hash": given,
                "completed_hash": rows_hash(rows),
                "rows": len(rows),
            },
            "kind": kind,
            "base": base,
            "method": json.loads((out / "run.json").read_text(encoding="utf-8"))[
                "method"
            ],  # what `auto` picked, too
            "run": str(out.relative_to(root)),
            "patch" if kind == "adapter" else "model": str(
                (out / ("adapter" if kind == "adapter" else "model")).relative_to(root)
            ),
            "rounds": attempt,
            "metric": scorers.names.headline,
            "target": target,
            "before": before,
            "after": after,
            "earlier": {str(key): rate for key, rate in found.items()},
            "normal_similarity": similarity,
            "model_in": model_in,
            "model_out": result.hash,
        }
        ledger = ledgers.append(root, ledger, "request", number, facts)
        refresh_adapter(root, ledger, trust_remote_code=remote)
        return ledger.requests[-1]


class _Result:
    """The model that a round has left: loaded when it is asked for, its hash known from then on."""

    def __init__(
        self, root: Path, ledger: Ledger, base: str, kind: str, out: Path, trust_remote_code: bool
    ) -> None:
        if kind == "adapter":
            paths = [*patch_paths(root, ledger.active), out / "adapter"]
            self._read: Load = partial(
                patches.applied, base, paths, trust_remote_code=trust_remote_code
            )
        else:
            self._read = partial(
                models.load_model, str(out / "model"), trust_remote_code=trust_remote_code
            )
        self.model: Any = None
        self.hash = models.weights_hash(self.load())

    def load(self) -> Any:
        """The model."""
        if self.model is None:
            self.model = models.placed(self._read())
        return self.model


def _base(ledger: Ledger, model: str | None, full: bool) -> tuple[str, str]:
    """(the model before the first request, `adapter` or `full`), as the ledger or the first request
    says.
    """
    kind = "full" if full else "adapter"
    if not ledger.requests:
        if not model:
            raise UserError(
                "option --model is missing: the first request of a folder names the model"
            )
        return model, kind
    base, known = str(ledger.requests[0]["base"]), ledgers.kind_of(ledger.requests)
    if model and model != base:
        raise UserError(
            f"option --model is {model!r}, but the requests of this folder are about {base!r}"
        )
    if known != kind:
        words = "all weights (--full)" if known == "full" else "adapters (without --full)"
        raise UserError(
            f"the requests of this folder train {words}; go on so, or begin another folder"
        )
    return base, kind


def _completed(load: Load, tokenizer: Any, rows: Sequence[Row], display: Display) -> list[Row]:
    """The rows, those that are a prompt only with the model's own answer, which is what they ask to
    forget.
    """
    empty = [row for row in rows if not row.completion]
    if not empty:
        return list(rows)
    with display.stage(
        "Collecting what the model answers to the forget prompts", len(empty)
    ) as stage:
        outputs = answer(
            load(), tokenizer, empty, max_new_tokens=ANSWER_TOKENS, progress=stage.update
        )
    said = {row.key: output for row, output in zip(empty, outputs, strict=True)}
    filled = [row if row.completion else row.with_completion(said[row.key]) for row in rows]
    kept = [row for row in filled if row.completion.strip()]
    if not kept:
        raise UserError(
            "the model answers none of the forget prompts with anything: there is nothing to forget"
        )
    return kept


def change_patch(
    folder: str | Path,
    number: int,
    *,
    remove: bool,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> Entry:
    """Takes a request's patch out, or puts it back; returns the new line of the ledger.

    The model is made anew from the base and the patches that hold, so it is bit for bit the one
    that never had the patch. The rates of all requests are measured on it and recorded (`rates`):
    taking one out can change the others.

    Args:
        folder (path): the ledger's.
        number (`int`): the request's id.
        remove (`bool`): out, or back.
        trust_remote_code (`bool`)
        display (`Display`, *optional*)

    Raises:
        UserError: for a request that is not there, is so already, or has no patch.
    """
    root, display = Path(folder), display or Display(quiet=True)
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    with FolderLock(root):
        ledger = ledgers.open_ledger(root, display.say)
        entry = ledger.request(number)
        if entry["kind"] != "adapter":
            raise UserError(
                f"request {number} trained all weights, it has no patch that could be taken out or"
                " put back"
            )
        if (number in ledger.removed) == remove:
            raise UserError(f"the patch of request {number} is {'out' if remove else 'in'} already")
        active = {item["id"] for item in ledger.active} ^ {number}
        entries = [item for item in ledger.requests if item["id"] in active]
        base = str(entry["base"])
        with display.stage("Making the model anew from the base and the patches that hold"):
            model = models.placed(
                patches.applied(
                    base, patch_paths(root, entries), trust_remote_code=trust_remote_code
                )
            )
            digest = models.weights_hash(model)
        tokenizer = models.load_tokenizer(base, trust_remote_code=trust_remote_code)
        rates: dict[str, float] = {}
        with display.stage("Asking for all requests", len(ledger.requests)) as stage:
            for done, item in enumerate(ledger.requests, 1):
                rows = rows_of(root, item)
                if rows:
                    run = Run(
                        user_scenario(rows, None, whole=True),
                        RunOptions(model=base, output_dir=str(root)),
                        Display(quiet=True),
                    )
                    measure = Rates(
                        tokenizer, run.scorers(), root / folder_name(item["id"]) / "work"
                    ).measure
                    rates[str(item["id"])] = measure(lambda: model, digest, rows)
                stage.update(done)
        ledger = ledgers.append(
            root,
            ledger,
            "remove" if remove else "restore",
            number,
            {"model_out": digest, "rates": rates},
        )
        refresh_adapter(root, ledger, trust_remote_code=trust_remote_code)
        return ledger.entries[-1]


def merge_patches(
    folder: str | Path, target: str | Path, *, trust_remote_code: bool = False
) -> None:
    """Writes the whole model after all requests that hold.

    Args:
        folder: the ledger's.
        target: where the model goes: a folder that is not there, is empty, or holds what an earlier
            merge has written.
        trust_remote_code (`bool`): run code that comes with the model.

    Raises:
        UserError: for a folder without requests, for one whose requests trained all weights (the
            last one's model is the whole model), and for a target that holds something else.
    """
    root, place = Path(folder), Path(target).resolve()
    if place.exists() and (
        not place.is_dir() or (any(place.iterdir()) and not patches.is_materialised(place))
    ):
        raise UserError(
            f"{target} holds something that no merge has written; name a folder that is not"
            " there yet"
        )
    if not ledgers.read_ledger(root).requests:
        raise UserError(f"{root} has no requests ({ledgers.LEDGER} is missing or empty)")
    with FolderLock(root):
        _merge(root, place, trust_remote_code)


def _merge(root: Path, target: Path, trust_remote_code: bool) -> None:
    """What `merge_patches` does once the folder is its own."""
    ledger = ledgers.read_ledger(root)
    if ledgers.kind_of(ledger.requests) == "full":
        raise UserError(
            "the requests of this folder trained all weights: the model is"
            f" {root / str(ledger.requests[-1]['model'])}"
        )
    base = str(ledger.requests[0]["base"])
    paths = patch_paths(root, ledger.active)
    tokenizer = models.load_tokenizer(base, trust_remote_code=trust_remote_code)
    patches.materialise(base, paths, tokenizer, target, trust_remote_code=trust_remote_code)
