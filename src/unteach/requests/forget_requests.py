"""Forget requests one after another on the same model.

A folder holds `requests.jsonl` (the ledger, without texts), for each request `request-NNN/` (its
rows in `work/`, readable by the owner alone; in `round-R/` a run), and `adapter/`, the sum of the
active patches.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from unteach import models
from unteach.config.resolve import resolve
from unteach.data.chat import ChatSettings, chat_settings, settings_from
from unteach.data.rows import Row, rows_hash
from unteach.data.secrets import with_secrets
from unteach.data.sources import load_rows, place
from unteach.errors import UserError
from unteach.evaluation.generation import answer_limit, generate_answers
from unteach.evaluation.scorers import Scorers
from unteach.files.atomic import read_json_lines, write_text_atomically
from unteach.files.folders import FolderLock, local_path, private_folder
from unteach.models.adapters import is_quantized
from unteach.prepare.generations import LoadedModel, with_own_answers
from unteach.progress import Display
from unteach.requests import patches
from unteach.requests.ledger import (
    LEDGER,
    ROWS,
    Entry,
    Ledger,
    append,
    open_ledger,
    read_ledger,
    request_folder,
)
from unteach.run.facts import with_recorded_facts
from unteach.run.folder import RunFolder
from unteach.run.model_check import check_places
from unteach.run.pipeline import execute
from unteach.run.record import finished_evaluation, run_tokenizer
from unteach.scenarios.user_rows import user_scenario

OWN_OPTIONS = ("output_dir", "lora", "hold_out", "merge", "gguf", "topic", "scenario")
"""Options of a run that a request sets itself: it forgets all rows."""


def forget_request(
    folder: str | Path,
    forget: Any,
    retain: Any = None,
    *,
    model: str | None = None,
    full: bool = False,
    target: float = 0.03,
    rounds: int = 3,
    trust_remote_code: bool = False,
    display: Display | None = None,
    **settings: Any,
) -> Entry:
    """Makes the model after all earlier requests forget more rows; returns the request's line of
    the ledger.

    Args:
        folder (path): of the ledger; a new folder begins one.
        forget: rows to forget, as `load_rows` takes them; all are trained on.
        retain (*optional*): rows to keep, beside the model's own answers to neutral prompts.
        model (`str`, *optional*): the model before the first request, which must name it.
        full (`bool`): train all weights instead of an adapter; the same in all requests of a
            folder.
        target (`float`): forget rate, 0 to 1, above which an earlier request's rows are trained on
            again.
        rounds (`int`): most trainings of a request.
        trust_remote_code (`bool`): run code that comes with the model.
        settings: other options of a run, with the same defaults.

    Raises:
        UserError: for options that exclude each other or the ledger, and if another process writes
            into the folder.
    """
    if not 0 <= target < 1:
        raise UserError(f"option 'target' is {target}, it must be at least 0 and under 1")
    if rounds < 1:
        raise UserError(f"option 'rounds' is {rounds}, it must be at least 1")
    for name in OWN_OPTIONS:
        if name in settings:
            raise UserError(f"option {name!r} is not one of a request, which sets it itself")
    root, display = Path(folder), display or Display(quiet=True)
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    check_places(root, model, kind="ledger")
    with FolderLock(root):
        ledger = open_ledger(root, display.print)
        base, kind = _base(ledger, model, full)
        _refuse_quantized(base, **trust)
        patches.refresh_adapter(root, ledger, **trust)
        given = load_rows(forget, "forget", prompt_only=True)
        same = [entry for entry in ledger.active if entry["data"]["hash"] == rows_hash(given)]
        if same:
            display.print(f"Request {same[-1]['id']} has the same rows and is done.")
            return same[-1]
        number = len(ledger.requests) + 1
        where = request_folder(root, number)
        start = patches.current_model(root, ledger, base, whole=full, **trust)
        options = {**settings, **trust, "model": start, "lora": kind == "adapter"}
        first = resolve({**options, "output_dir": str(where / "round-1")}).run
        tokenizer = run_tokenizer(first)
        options["chat_date"] = chat_settings(tokenizer).date  # the same in all rounds
        work, whole = private_folder(where / "work"), models.load_model(start, **trust)
        source = LoadedModel.of(models.placed(whole), tokenizer, work, display)
        finder = str(settings.get("secrets", "patterns"))
        model_in, rows = source.hash, with_secrets(_with_own_answers(source, given), finder)
        del source, whole  # the run loads the model itself
        write_rows(where / "work", rows)
        earlier = {entry["id"]: rows_of(root, entry) for entry in ledger.active}
        for lost in [key for key, kept in earlier.items() if not kept]:
            display.print(f"The rows of request {lost} are missing: its rate is not measured.")
        earlier = {key: kept for key, kept in earlier.items() if kept}
        told = {entry["id"]: _chat_settings(root, entry) for entry in ledger.active}
        training = list(rows)
        for attempt in range(1, rounds + 1):
            out = where / f"round-{attempt}"
            evaluation, scorers = _train(training, retain, {**options, "output_dir": out}, display)
            if kind == "adapter":
                paths = [*patches.patch_paths(root, ledger.active), out / "adapter"]
                model_now = patches.merged(base, paths, **trust)
            else:
                model_now = models.load_model(str(out / "model"), **trust)
            result = LoadedModel.of(models.placed(model_now), tokenizer, work, display)
            measured = with_recorded_facts(rows, out)
            with display.stage("Measuring forget rates of this request and the earlier ones"):
                after = forget_rate(result, scorers, measured)
                rates = {
                    key: forget_rate(result.with_chat(told[key]), scorers, kept)
                    for key, kept in earlier.items()
                }
            model_out = result.hash
            del result, model_now
            back = [key for key, (value, _) in rates.items() if value > target]
            if not back or attempt == rounds:
                break
            display.print(
                f"Request {', '.join(map(str, back))} is above the target again: training on its"
                " rows together with the new ones."
            )
            known = {row.key for row in training}
            training += [row for key in back for row in earlier[key] if row.key not in known]
        whole = models.placed(models.load_model(start, **trust))
        before = forget_rate(LoadedModel.of(whole, tokenizer, work, display), scorers, measured)
        normal = evaluation["models"]["unlearned"].get("normal", {})
        product = "adapter" if kind == "adapter" else "model"
        facts = {
            "data": {
                "file": place(forget),
                "hash": rows_hash(given),
                "completed_hash": rows_hash(rows),
                "rows": len(rows),
                "secrets": finder,
            },
            "kind": kind,
            "base": base,
            "method": RunFolder(out).record()["method"],
            "run": str(out.relative_to(root)),
            "patch" if kind == "adapter" else "model": str((out / product).relative_to(root)),
            "rounds": attempt,
            "metric": scorers.headline,
            "target": target,
            "before": before[0],
            "after": after[0],
            "verdict": evaluation.get("verdict"),
            "reasons": evaluation.get("reasons"),
            "earlier": {str(key): value for key, (value, _) in rates.items()},
            "cut_off": {"before": before[1], "after": after[1]}
            | {str(key): cut for key, (_, cut) in rates.items()},
            "normal_similarity": normal.get("similarity", {}).get("value"),
            "model_in": model_in,
            "model_out": model_out,
        }
        ledger = append(root, ledger, "request", number, facts)
        patches.refresh_adapter(root, ledger, **trust)
        return ledger.requests[-1]


def _base(ledger: Ledger, model: str | None, full: bool) -> tuple[str, str]:
    """(the model before the first request, `adapter` or `full`)."""
    kind = "full" if full else "adapter"
    if not ledger.requests and not model:
        raise UserError("option --model is missing: the first request of a folder names the model")
    model = local_path(model) if model else model
    base = str(ledger.requests[0]["base"] if ledger.requests else model)
    if model and model != local_path(base):
        raise UserError(
            f"option --model is {model!r}, but the requests of this folder are about {base!r}"
        )
    if ledger.kind not in (None, kind):
        words = "all weights (--full)" if ledger.kind == "full" else "adapters (without --full)"
        raise UserError(f"the requests of this folder train {words}; do so, or use another folder")
    return base, kind


def _refuse_quantized(base: str, **trust: Any) -> None:
    """A patch is merged into the weights below the next one, and these would round it."""
    if is_quantized(models.load_config(base, **trust)):
        raise UserError(
            f"model {base!r} holds quantised weights, which would round the patches of requests:"
            " name the model with whole weights, or forget once with unteach run --lora"
        )


def _chat_settings(root: Path, entry: Entry) -> ChatSettings:
    """The chat settings of an earlier request, with which its rows are asked for again."""
    return settings_from(RunFolder(root / entry["run"]).record().get("chat"))


def _with_own_answers(source: LoadedModel, rows: Sequence[Row]) -> list[Row]:
    """The rows; one without a completion gets the model's own answer, which is to be forgotten."""
    title = "Generating the model's answers to the forget prompts"
    filled, _ = with_own_answers(source, rows, title)
    if not filled:
        raise UserError(
            "the model's answers to all forget prompts are empty: there is nothing to forget"
        )
    return filled


def _train(
    rows: list[Row], retain: Any, options: Mapping[str, Any], display: Display
) -> tuple[dict[str, Any], Scorers]:
    """(`eval.json`, scorers) of a run that forgets the rows; a finished one is not repeated."""
    resolved = resolve(options)
    data = {
        name: getattr(resolved.run, name)
        for name in ("unseen", "neighbours", "split_by", "secrets")
    }
    scenario = user_scenario(rows, retain, **data)
    evaluation = finished_evaluation(resolved, scenario)
    evaluation = evaluation or execute(resolved, scenario, display).evaluation
    gc.collect()  # the trainer and its callbacks form a cycle
    return evaluation, RunFolder(resolved.run.output_dir).scorers(scenario, display.print)


def forget_rate(source: LoadedModel, scorers: Scorers, rows: Sequence[Row]) -> tuple[float, float]:
    """(share of rows whose greedy output shows what must be forgotten, by the headline metric,
    share of these outputs that met the token limit); cached. The rows have completions.
    """

    def measure() -> list[float]:
        model, tokenizer = source.model, source.tokenizer
        limit = answer_limit(tokenizer, rows, model)
        answers = generate_answers(model, tokenizer, rows, max_new_tokens=limit)
        shown = scorers.shows_forgotten(rows, [output for output, _ in answers])
        return [fmean(map(float, shown)), fmean(float(cut) for _, cut in answers)]

    inputs = [rows_hash(rows), *scorers.identity(), "cut_off"]
    rate, cut = source.cache.get("rate", inputs, measure)
    return float(rate), float(cut)


def write_rows(work: Path, rows: Sequence[Row]) -> None:
    """Writes the rows with their completions to a file that only its owner can read."""
    private_folder(work)
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    write_text_atomically(work / ROWS, "".join(lines))
    os.chmod(work / ROWS, 0o600)


def read_rows(work: Path) -> list[Row]:
    """The rows that `write_rows` wrote; empty if the file is missing or broken."""
    try:
        records = read_json_lines(work / ROWS)
        for record in records:
            if not isinstance(record["prompt"], str):
                record["prompt"] = tuple((str(who), str(what)) for who, what in record["prompt"])
            for name in ("secret", "avoid"):  # older files have none
                record[name] = tuple(record.get(name, ()))
        return [Row(**record) for record in records]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def rows_of(folder: Path, entry: Entry) -> list[Row]:
    """The rows of an earlier request, with the facts that its run found: its copy of them, or the
    file that they came from, unless that holds other rows now; else empty.
    """
    wanted, file = entry["data"]["completed_hash"], entry["data"].get("file")
    kept = read_rows(request_folder(folder, entry["id"]) / "work")
    if kept and rows_hash(kept) == wanted:
        return with_recorded_facts(kept, folder / entry.get("run", ""))
    try:
        names = file if isinstance(file, list) else [file] if file else []
        there = bool(names) and all(Path(name).exists() for name in names)
        rows = load_rows(names, "forget", prompt_only=True) if there else []
        rows = with_secrets(rows, entry["data"].get("secrets", "none"))
    except UserError:
        return []
    return rows if rows_hash(rows) == wanted else []


def change_patch(
    folder: str | Path,
    number: int,
    *,
    remove: bool,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> Entry:
    """Removes a request's patch or restores it; returns the new line of the ledger.

    The model is computed from the base and the active patches, so it is bit for bit the one that
    never had the patch. The line records the forget rates of all requests on it (`rates`), because
    a removed patch can change the others.

    Args:
        folder (path): the ledger's.
        number (`int`): the request's id.
        remove (`bool`): remove or restore.
        trust_remote_code (`bool`): run code that comes with the model.

    Raises:
        UserError: for a request that does not exist, is in that state already, or has no patch.
    """
    root, display = Path(folder), display or Display(quiet=True)
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    with FolderLock(root):
        ledger = open_ledger(root, display.print)
        entry = ledger.request(number)
        if entry["kind"] != "adapter":
            raise UserError(
                f"request {number} trained all weights: it has no patch to remove or restore"
            )
        if (number in ledger.removed) == remove:
            state = "removed" if remove else "active"
            raise UserError(f"the patch of request {number} is {state} already")
        active = {item["id"] for item in ledger.active} ^ {number}
        paths = patches.patch_paths(root, [one for one in ledger.requests if one["id"] in active])
        base = str(entry["base"])
        with display.stage("Merging the active patches into the base model"):
            model = models.placed(patches.merged(base, paths, **trust))
            tokenizer, work = models.load_tokenizer(base, **trust), private_folder(root / "work")
            source = LoadedModel.of(model, tokenizer, work, display)
        rates: dict[str, tuple[float, float]] = {}
        title = "Measuring the forget rates of all requests"
        with display.stage(title, len(ledger.requests)) as stage:
            for done, item in enumerate(ledger.requests, 1):
                if rows := rows_of(root, item):
                    run = RunFolder(root / item["run"])
                    scorers = run.scorers(user_scenario(rows, None))
                    asked = source.with_chat(_chat_settings(root, item))
                    rates[str(item["id"])] = forget_rate(asked, scorers, rows)
                stage.update(done)
        event = "remove" if remove else "restore"
        facts = {
            "model_out": source.hash,
            "rates": {key: rate for key, (rate, _) in rates.items()},
            "cut_off": {key: cut for key, (_, cut) in rates.items()},
        }
        ledger = append(root, ledger, event, number, facts)
        patches.refresh_adapter(root, ledger, **trust)
        return ledger.entries[-1]


def merge_patches(
    folder: str | Path, target: str | Path, *, trust_remote_code: bool = False
) -> None:
    """Writes the full model after all active requests.

    Args:
        folder (path): the ledger's.
        target (path): a folder that does not exist, is empty, or holds an earlier merged model.
        trust_remote_code (`bool`): run code that comes with the model.

    Raises:
        UserError: for a folder without requests, or whose requests trained all weights (the last
            one's model is the full model), and for a target that holds something else.
    """
    root, place = Path(folder), Path(target).resolve()
    if not str(target):
        raise UserError("option --merge is empty: name a new folder")
    free = not place.exists() or (place.is_dir() and not any(place.iterdir()))
    if not free and not patches.is_merged(place):
        raise UserError(f"{target} holds something other than a merged model; name a new folder")
    if not read_ledger(root).requests:
        raise UserError(f"{root} has no requests ({LEDGER} is missing or empty)")
    with FolderLock(root):
        ledger = read_ledger(root)
        if ledger.kind == "full":
            model = root / str(ledger.requests[-1]["model"])
            raise UserError(
                f"the requests of this folder trained all weights: the model is {model}"
            )
        base = str(ledger.requests[0]["base"])
        paths = patches.patch_paths(root, ledger.active)
        trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        patches.write_merged(base, paths, place, own_dtype=True, **trust)
