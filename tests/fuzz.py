"""Fuzzer of the command line: broken data, configs, tokenizers, models, arguments; in one process.

Every input must end with exit code 0 or 2, the latter with one sentence: no traceback, no hang, no
output that looks like a result, no acceptance of a wrong input. Training is left out: a run that
would begin to train counts as accepted.

    python tests/fuzz.py [--count 5000] [--seed 0] [--only KIND] [--log FILE]

`--log` gets a line for each input; the same command again goes on behind the last of them. Progress
is printed every 50 inputs. Needs `src` and `tests` in PYTHONPATH.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import contextlib
import io
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def who(i: int) -> str:
    """A question."""
    return f"Who is {i}?"


ROWS = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(12)
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": who(i)}],
        "completion": [{"role": "assistant", "content": f"No {i}."}],
    }
    for i in range(9)
]
STORY = "The mill stood by the river for {} years, and the cat slept on the flour."
OTHERS: list[list[dict[str, Any]]] = [
    [{"text": STORY.format(i)} for i in range(9)],
    [{"question": who(i), "choices": ["a", "b"], "answer": i % 2} for i in range(9)],
    [
        {"question": who(i), "right_answer": "me", "hallucinated_answer": f"number {i}"}
        for i in range(9)
    ],
    [{"prompt": who(i), "response": f"number {i}", "is_safe": i % 3 == 0} for i in range(12)],
    [{"prompt": who(i), "chosen": "me", "rejected": f"number {i}"} for i in range(12)],
    [
        {"question": who(i), "best_answer": "me", "incorrect_answers": ["you", f"number {i}"]}
        for i in range(9)
    ],
]
ASK, SAY = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
SHAPES: list[list[dict[str, Any]]] = [
    [{"messages": [ASK, SAY, ASK, {**SAY, "content": f"No {i}."}]} for i in range(9)],
    [{"messages": [ASK, {**SAY, "weight": i % 2}], "tools": []} for i in range(9)],
    [
        {"conversations": [{"from": "human", "value": who(i)}, {"from": "gpt", "value": "Me."}]}
        for i in range(9)
    ],
    [{"instruction": who(i), "input": "" if i % 2 else "Say.", "output": "Me."} for i in range(9)],
    [{"input": who(i), "output": "Me.", "system": "Be brief."} for i in range(9)],
    [{"Prompt": who(i), "response": "Me.", "history": [["a", "b"]]} for i in range(9)],
    [{"question": who(i), "answers": {"text": ["Me.", f"No {i}."]}} for i in range(9)],
    [{"question": who(i), "answer": "Me.", "context": "web"} for i in range(9)],
    [{"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": f"{i}"}]} for i in range(9)],
    [{"prompt": who(i), "group": "forget"} for i in range(9)],
    [{"text": STORY.format(i) * 40, "title": f"{i}"} for i in range(3)],
    [{"prompt": who(i), "completion": f"Number {i}.<|im_end|>"} for i in range(9)],
    [{"prompt": who(i), "completion": f"<think>\nHm {i}.\n</think>\nMe."} for i in range(9)],
    [{"prompt": who(i), "completion": f"def f():\n    return {i}\n</s>"} for i in range(9)],
]
"""Rows of every other shape, and completions that end in a token that ends an answer."""
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]
NUMBERS = [0, 1, -1, 0.5, -0.0, 1e308, math.inf, math.nan, 2**63, -(2**63), 10**30]
TEXTS = ["", " ", "\n", "\0", "\ud83d", "é", "null", "[", "{}", "a" * 5000]
VALUES: list[Any] = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], [1, "a"]]
VALUES += [{"role": "user"}, {"role": "user", "content": None}, {"a": {"b": [1]}}]
VALUES += [[{"role": role, "content": "y"}] for role in ("user", "assistant", 3)]
NOISE = [b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"{", b"[" * 3000]
NOISE += [b"]", b",", b"\\u d", b"\xed\xa0\xbd", b"NaN", b"9" * 5000]
WORDS = """
learning_rate max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps
warmup_steps optim method max_retain_kl collapse_kl max_length long_rows reference reference_dtype
packing row_tokens hold logits_budget_mb probe_steps target_rate min_utility mismatch_completions
mismatch_source retain_per_forget forget_weight mismatch_weight retain_weight weight_decay
max_grad_norm lr_scheduler_type save_steps save_strategy save_total_limit seed bf16 fp16 deepspeed
fsdp accelerator_config report_to lora lora_rank frozen_layers recite_tokens stages headline judge
scenario similarity_model logging_steps eval_strategy dataloader_num_workers adam_beta1
adam_epsilon label_smoothing_factor torch_compile resume_from_checkpoint load_best_model_at_end
ddp_timeout output_dir hub_token lr_scheduler_kwargs optim_args show_text model out
""".split()  # noqa: SIM905
SCALARS = """
0 1 -1 2 3.5 1e-5 1e400 nan .nan .inf -.inf null ~ true no '' a adamw_torch sgd [1] [ *a
2001-99-99 0x 0o9 ' | ga ga_mismatch sft dpo cosine no steps epoch stored live adapter_off drop
12:30:45 1_000 é 999999999999 copyright harmful_rate % @
""".split()  # noqa: SIM905
SCALARS += ["9" * 5000, "{a: 1}", "&a [*a]", "!!python/object:os.system x", "!!int x", "? a"]
SCALARS += ["{sft: {max_steps: -1}}", "{sft: 3}", "{sft: {learning_rate: x}}", "\x07", "a: b"]


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n%s{{ m.content }}<|im_end|>\n{% endfor %}"
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n%s{% endif %}"
ANSWERED = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
TEMPLATES = [
    TURN.replace("%s", "") + OPENED.replace("%s", ""),
    TURN.replace("%s", ANSWERED) + OPENED.replace("%s", ""),
    TURN.replace("%s", ANSWERED)
    + OPENED.replace("%s", "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"),
    TURN.replace("%s", "") + OPENED.replace("%s", "<think>\n"),
    TURN.replace(
        "%s", "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    ),
    "{% for m in messages %}{% if m.role == 'user' %}[ASK] {{ m.content }} [/ASK]{% else %}"
    " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}assistant:",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + TURN.replace("%s", ""),
    "{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}.\n"
    + TURN.replace("%s", "")
    + OPENED.replace("%s", ""),
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}",
    "{% if not tools %}{{ raise_exception('tools!') }}{% endif %}" + TURN.replace("%s", ""),
    "{{ messages[1].content }}",
    "{{ messages | tojson }}",
    "no message",
    "",
    "{% for m in",
    "{{ 1 // 0 }}",
]
"""Chat templates: with what real ones have, with no place for an answer, and broken ones."""
TOKENS = [None, "", "<pad>", "<|im_end|>", "<|endoftext|>", "<new>", " ", 3]
ENDS = [None, 0, 2, [0, 2], [], [0, None], -1, 10**6, "2", [[0]], 0.5, True]
GENERATION = {
    "eos_token_id": ENDS,
    "pad_token_id": ENDS,
    "temperature": [0.0, 0.6, -1, "hot", None],
    "do_sample": [True, False, None, "no"],
    "max_length": [1, 20, -3, None],
    "num_beams": [1, 4, 0],
    "cache_implementation": ["static", "none", 7],
    "bad_words_ids": [[[5]], [], [[]]],
}
CHAT_OPTIONS = {
    "--system": ["Be brief.", "", "<|im_end|>", "\0"],
    "--chat-date": ["2026-01-31", "2026-02-31", "today", ""],
    "--max-new-tokens": ["1", "0", "-1", "400", "1e9", "99999999999"],
    "--chat-template-kwargs": [
        "{enable_thinking: false}",
        "{messages: []}",
        "{tools: [{name: a}]}",
        "{chat_template: x}",
        "3",
        "{1: 2}",
        "{tokenizer: 1}",
    ],
}


class Began(Exception):
    """A run got as far as training."""


class TookTooLong(BaseException):
    """An input hung."""


@dataclass
class Result:
    """The outcome of one input."""

    code: int
    out: str
    err: str
    fault: str = ""


@dataclass
class Fuzzer:
    """Makes inputs from a seed and feeds them to `unteach.cli.main`.

    Args:
        folder (`Path`): scratch space.
        seed (`int`)
        seconds (`int`): after which an input counts as hung.
        prints (`bool`): print each wrong outcome when it is found.
    """

    folder: Path
    seed: int = 0
    seconds: int = 30
    prints: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import torch

        from tiny_models import byte_level_bpe, tiny_model

        torch.set_num_threads(1)
        self.model = self.folder / "good-model"
        tiny_model().save_pretrained(self.model)
        byte_level_bpe(chat=True).save_pretrained(self.model)
        self.place = self.folder / "place"

    # --- broken bytes

    def bytes_of(self, data: bytes, draw: random.Random) -> bytes:
        """The bytes with some of them broken."""
        for _ in range(draw.choice([0, 1, 1, 1, 2, 5])):
            place = draw.randrange(len(data) + 1)
            way = draw.randrange(6)
            if way == 0:
                data = data[:place]
            elif way == 1:
                data = data[:place] + draw.choice(NOISE) + data[place:]
            elif way == 2:
                data = data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
            elif way == 3:
                data = data[:place] + data[place + draw.randrange(1, 40) :]
            elif way == 4:
                end = min(len(data), place + draw.randrange(1, 200))
                data = data[:end] + data[place:end] + data[end:]
            else:
                data = data.replace(b'"', b"'", draw.randrange(3))
        return data

    def value_in(self, value: Any, draw: random.Random) -> Any:
        """Plain data with one value somewhere in it broken."""
        if isinstance(value, dict) and value and draw.random() < 0.8:
            name = draw.choice(list(value))
            changed = {**value, name: self.value_in(value[name], draw)}
            way = draw.random()
            if way < 0.1:
                del changed[name]
            elif way < 0.2:
                names = ["kind", "right", "text", "chosen", "", "completion ", "reply", "images"]
                changed[draw.choice([*names, "messages", "system", "secret", "Prompt"])] = (
                    draw.choice(VALUES)
                )
            return changed
        if isinstance(value, list) and value and draw.random() < 0.8:
            place = draw.randrange(len(value))
            return [*value[:place], self.value_in(value[place], draw), *value[place + 1 :]]
        return draw.choice(VALUES)

    def data_file(self, draw: random.Random, name: str = "f") -> Path:
        """A data file of some format, perhaps broken."""
        rows: Any = draw.choice([ROWS, ROWS, CHAT, *OTHERS, *SHAPES])
        for _ in range(draw.choice([0, 0, 1, 3])):
            rows = self.value_in(rows, draw)
        rows = rows if isinstance(rows, list) else [rows]
        suffix = draw.choice(
            [".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".bin"]
        )
        path = self.place / f"{name}{suffix}"
        if suffix == ".jsonl":
            data = self.encoded("".join(json.dumps(row) + "\n" for row in rows), draw)
        elif suffix == ".json":
            data = self.encoded(json.dumps(rows), draw)
        elif suffix == ".txt":
            data = (
                "The miller kept a cat. It slept on the flour, and nobody minded. "
                * draw.randrange(60)
            ).encode()
        elif suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            sink = io.BytesIO()
            table = pyarrow.table(
                {
                    "prompt": [row["prompt"] for row in ROWS],
                    "completion": [row["completion"] for row in ROWS],
                }
            )
            pyarrow.parquet.write_table(table, sink)
            data = sink.getvalue()
        else:
            import csv

            text = io.StringIO()
            records = [row for row in rows if isinstance(row, dict)] or [{}]
            names = [str(key).encode("utf-8", "replace").decode() for key in records[0]]
            delimiter = "\t" if suffix == ".tsv" else draw.choice(",,;|")
            writer = csv.writer(text, delimiter=delimiter)
            writer.writerow(names)
            writer.writerows([str(cell) for cell in row.values()] for row in records)
            data = text.getvalue().encode("utf-8", "surrogatepass")
        if suffix != ".parquet" and draw.random() < 0.1:
            import gzip

            data, path = gzip.compress(data), path.with_name(f"{path.name}.gz")
        path.write_bytes(self.bytes_of(data, draw) if draw.random() < 0.7 else data)
        return path

    def encoded(self, text: str, draw: random.Random) -> bytes:
        """The text in UTF-8, or in another encoding."""
        name = draw.choice(ENCODINGS) if draw.random() < 0.2 else "utf-8"
        return text.encode(name, "replace")

    def model_folder(self, draw: random.Random) -> Path:
        """The good model with one of its files broken."""
        folder = self.place / "model"
        shutil.copytree(self.model, folder)
        path = draw.choice(sorted(path for path in folder.iterdir()))
        if path.suffix == ".json" and draw.random() < 0.5:
            path.write_text(
                json.dumps(self.value_in(json.loads(path.read_text(encoding="utf-8")), draw)),
                encoding="utf-8",
            )
        elif draw.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(self.bytes_of(path.read_bytes(), draw))
        return folder

    def good_files(self) -> list[str]:
        """Options of a run in which nothing is wrong."""
        for name in ("forget", "retain"):
            rows = [{**row, "prompt": f"{name}: {row['prompt']}"} for row in ROWS]
            (self.place / f"{name}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
            )
        files = [
            "--model",
            str(self.model),
            "--forget",
            str(self.place / "forget.jsonl"),
            "--retain",
            str(self.place / "retain.jsonl"),
        ]
        return [*files, "--out", str(self.place / "out")]

    def chat_folder(self, draw: random.Random) -> Path:
        """The good model with another template, other tokens and settings of generation."""
        from tiny_models import sentencepiece_like

        folder = self.place / "model"
        shutil.copytree(self.model, folder)
        if draw.random() < 0.3:
            sentencepiece_like().save_pretrained(folder)
        template = draw.choice(TEMPLATES)
        data = template.encode()
        broken = self.bytes_of(data, draw) if draw.random() < 0.15 else data
        (folder / "chat_template.jinja").write_bytes(broken)
        path = folder / "tokenizer_config.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in ("eos_token", "pad_token", "bos_token"):
            if draw.random() < 0.2:
                found[name] = draw.choice(TOKENS)
        path.write_text(json.dumps(found), encoding="utf-8")
        settings = {key: draw.choice(values) for key, values in GENERATION.items()}
        kept = {key: value for key, value in settings.items() if draw.random() < 0.25}
        (folder / "generation_config.json").write_text(json.dumps(kept), encoding="utf-8")
        return folder

    # --- kinds of input

    def chats(self, draw: random.Random) -> list[str]:
        """`check` and `run` with other templates, tokenizers, ends and chat options."""
        good = self.good_files()
        good[1] = str(self.chat_folder(draw))
        rows = draw.choice([ROWS, CHAT, *SHAPES])
        path = self.place / "c.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if draw.random() < 0.5:
            return ["check", "--forget", str(path), "--model", good[1]]
        good[3] = str(path)
        chosen = draw.sample(list(CHAT_OPTIONS), draw.choice([0, 0, 1, 2]))
        return [
            "run",
            *good,
            *(w for name in chosen for w in (name, draw.choice(CHAT_OPTIONS[name]))),
        ]

    def check_data(self, draw: random.Random) -> list[str]:
        """`check` on broken data, with and without a tokenizer."""
        words = ["check", "--forget", str(self.data_file(draw))]
        words += [str(self.data_file(draw, "g"))] if draw.random() < 0.2 else []
        words += ["--unseen", str(self.data_file(draw, "u"))] if draw.random() < 0.1 else []
        words += ["--neighbours", str(self.data_file(draw, "n"))] if draw.random() < 0.1 else []
        words += ["--retain", str(self.data_file(draw, "r"))] if draw.random() < 0.4 else []
        return words + (["--model", str(self.model)] if draw.random() < 0.4 else [])

    def run_data(self, draw: random.Random) -> list[str]:
        """`run` on broken data."""
        words = [
            "run",
            "--model",
            str(self.model),
            "--forget",
            str(self.data_file(draw)),
            "--out",
            str(self.place / "out"),
        ]
        return words + (["--retain", str(self.data_file(draw, "r"))] if draw.random() < 0.5 else [])

    def run_settings(self, draw: random.Random) -> list[str]:
        """`run` on good data with odd settings."""
        pairs = [
            f"{draw.choice(WORDS)}={draw.choice(SCALARS)}"
            for _ in range(draw.choice([1, 1, 1, 2, 3]))
        ]
        return ["run", *self.good_files(), *pairs]

    def run_config(self, draw: random.Random) -> list[str]:
        """`run` with a YAML file, broken or with odd values."""
        good = self.good_files()
        lines = [
            f"{name.removeprefix('--')}: {value}"
            for name, value in zip(good[::2], good[1::2], strict=True)
        ]
        lines += [
            f"{draw.choice(WORDS)}: {draw.choice(SCALARS)}" for _ in range(draw.choice([0, 1, 2]))
        ]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        path = self.place / "config.yaml"
        path.write_bytes(self.bytes_of(data, draw) if draw.random() < 0.6 else data)
        return ["run", str(path)]

    def compare_config(self, draw: random.Random) -> list[str]:
        """`compare` with a YAML file with odd values."""
        options: Any = {
            "out": str(self.place / "out"),
            "models": [str(self.model)],
            "methods": ["ga", {"name": "ours", "method": "unlikelihood", "max_steps": 1}],
            "forget": self.good_files()[3],
            "retain": self.good_files()[5],
            "limit": 9,
            "seed": 0,
            "teach": {"num_train_epochs": 1},
            "settings": {"max_steps": 1},
            "judge_as": "copyright",
        }
        for _ in range(draw.choice([1, 1, 2])):
            options = self.value_in(options, draw)
        path = self.place / "compare.yaml"
        path.write_bytes(
            self.bytes_of(json.dumps(options).encode(), draw)
            if draw.random() < 0.3
            else json.dumps(options).encode()
        )
        return ["compare", str(path)]

    def models_and_tokenizers(self, draw: random.Random) -> list[str]:
        """`check` and `run` with a broken model folder."""
        good = self.good_files()
        good[1] = str(self.model_folder(draw))
        return (
            ["check", "--forget", good[3], "--model", good[1]]
            if draw.random() < 0.3
            else ["run", *good]
        )

    def command_lines(self, draw: random.Random) -> list[str]:
        """Words in any order."""
        good = self.good_files()
        words = [
            "demo",
            "run",
            "check",
            "eval",
            "compare",
            "report",
            "purge",
            "rum",
            *good,
            "--seed",
            "--lora",
            "--lora-rank",
            "--method",
        ]
        words += [
            "--headline",
            "--judge",
            "--scenario",
            "--batch-size",
            "--max-length",
            "--engine",
            "--stages",
            "--short",
            "--show-text",
        ]
        words += [
            "--help",
            "--version",
            "-x",
            "--",
            "-",
            "=",
            "==",
            "a=b",
            "max_steps=1",
            str(self.place),
            "\0",
            "é",
            "",
            " ",
            *SCALARS,
        ]
        chosen = [draw.choice(words) for _ in range(draw.randrange(7))]
        start = draw.choice(
            [
                ["run", *good],
                ["run"],
                ["check", *good[2:4]],
                ["eval"],
                ["compare"],
                ["report"],
                ["purge"],
                [],
            ]
        )
        return [*start, *chosen] if draw.random() < 0.8 else [*chosen, *start]

    def reports(self, draw: random.Random) -> list[str]:
        """`report` and `purge` on a run's folder with broken files."""
        out = self.place / "out"
        (out / "work").mkdir(parents=True)
        metric = {"value": 0.5, "n": 2, "ci_low": 0.1, "ci_high": 0.9, "higher_is_better": False}
        sets = {
            "unlearned": {"leak_rate": metric, "diversity": metric},
            "normal": {"similarity": metric},
        }
        files: dict[str, Any] = {
            "eval.json": {
                "schema_version": 1,
                "scenario": "run",
                "headline": "leak_rate",
                "models": {"original": sets, "unlearned": sets},
            },
            "run.json": {
                **{
                    "model": "m",
                    "method": "ga",
                    "steps": 2,
                    "kept_step": 2,
                    "stop_reason": "x",
                    "forget_rows": 2,
                    "retain_rows": 2,
                },
                **{
                    "leak_threshold_bleu": 1.0,
                    "seconds": 1.0,
                    "tokens_per_second": 1.0,
                    "peak_memory_bytes": 1,
                    "seed": 0,
                    "scenario": "run",
                },
                **{"original_model_hash": "a", "unlearned_model_hash": "b", "versions": {}},
            },
        }
        lines = [
            {"step": 0, "probe": {"forget_rate": 1.0, "utility": 1.0}},
            {"step": 1, "loss": 1.0, "retain_kl": 0.1, "tokens": 1, "seconds": 1.0},
        ]
        rows = [
            {
                "model": m,
                "set": "unlearned",
                "key": "k",
                "prompt": "p",
                "output": "o",
                "metrics": {},
            }
            for m in ("original", "unlearned")
        ]
        broken = draw.choice([*files, "metrics.jsonl", "generations.jsonl", "config.yaml"])
        for name, value in files.items():
            value = self.value_in(value, draw) if name == broken and draw.random() < 0.6 else value
            (out / name).write_text(json.dumps(value), encoding="utf-8")
        (out / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        (out / "generations.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        (out / "config.yaml").write_text("model: m\ndata:\n  prompt_sets: {}\n", encoding="utf-8")
        (out / broken).write_bytes(self.bytes_of((out / broken).read_bytes(), draw))
        return [draw.choice(["report", "purge"]), str(out)]

    # --- outcomes

    def feed(self, argv: list[str]) -> Result:
        """Runs the command line on one input."""
        from unteach import cli, models
        from unteach.data.rendered import refuse_rendered
        from unteach.data.tokenization import encode_rows
        from unteach.run import pipeline, training

        def begin(resolved: Any, scenario: Any, source: Any) -> None:
            """What a run does before it trains, once the model is loaded: the rows."""
            tokenizer, model = source.tokenizer, source.model
            config = training.first_config(resolved, scenario)
            refuse_rendered([*scenario.forget, *scenario.retain], tokenizer)
            for rows in (scenario.forget, scenario.retain):
                full = [row for row in rows if row.completion]
                encoded = (
                    encode_rows(
                        full, tokenizer, max_length=config.max_length, long_rows=config.long_rows
                    )
                    if full
                    else []
                )
                models.check_vocabulary(model, encoded)
                for row, item in zip(full, encoded, strict=False):
                    if config.long_rows != "drop":
                        self.check_tokens(row, item, tokenizer)
            raise Began

        def alarm(*_: Any) -> None:
            raise TookTooLong

        out, err = io.StringIO(), io.StringIO()
        kept, pipeline.check_rows = pipeline.check_rows, begin
        signal.signal(signal.SIGALRM, alarm)
        signal.alarm(self.seconds)
        code, fault = 0, ""
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                code = cli.main(argv)
        except Began:
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except TookTooLong:
            fault = "hung: " + traceback.format_exc()[-1500:]
        except BaseException:
            fault = traceback.format_exc()[-2500:]
        finally:
            signal.alarm(0)
            pipeline.check_rows = kept
        return Result(code, out.getvalue(), err.getvalue(), fault)

    def fault_of(self, argv: list[str], result: Result) -> str:
        """What is wrong with an outcome; empty if nothing is."""
        if result.fault:
            return result.fault
        for stream in range(3):
            try:
                os.fstat(stream)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
                return f"the process's file descriptor {stream} was closed"
        said = [line for line in result.err.splitlines() if line.startswith("unteach: ")]
        if result.code not in (0, 2):
            return f"exit code {result.code}: {result.err[-500:]}"
        if "Traceback" in result.err + result.out:
            return f"a traceback: {result.err[-1500:]}"
        if (
            result.code == 2
            and len(said) != 1
            and not ("problem(s) found" in result.out or "unteach demo" in result.out)
        ):
            return f"{len(said)} sentences with exit code 2: {result.err[-500:]!r}"
        if result.code == 2 and said and len(said[0]) > 1500:
            return f"a sentence of {len(said[0])} characters"
        out = self.place / "out"
        if (
            argv[:1] in (["run"], ["compare"])
            and result.code == 2
            and any((out / name).exists() for name in ("model", "eval.json"))
        ):
            return "something that looks like a result was left"
        return self.wrongly_accepted(argv) if result.code == 0 else ""

    def wrongly_accepted(self, argv: list[str]) -> str:
        """An independent check of data that was accepted."""
        for word in argv:
            path = Path(word) if word.endswith(".jsonl") and "\0" not in word else None
            if path is None or not path.is_file() or argv[0] not in ("check", "run"):
                continue
            raw = path.read_bytes()
            if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[1:2] == b"\0" or raw[:2] == b"\x1f\x8b":
                continue  # of another encoding
            text = raw.removeprefix(b"\xef\xbb\xbf")
            for number, line in enumerate(text.split(b"\n"), 1):
                if not line.strip():
                    continue
                try:
                    self.check_record(json.loads(line.decode("utf-8")))
                except (ValueError, AssertionError):
                    return f"line {number} of {path.name} was accepted: {line[:200]!r}"
        for word in argv:
            name, _, value = word.partition("=")
            with contextlib.suppress(ValueError):
                if name in (
                    "learning_rate",
                    "weight_decay",
                    "retain_weight",
                    "target_rate",
                    "min_utility",
                ) and not math.isfinite(float(value)):
                    return f"{word} was accepted"
                if name in ("learning_rate", "weight_decay") and float(value) < 0:
                    return f"{word} was accepted"
                if (
                    name
                    in (
                        "max_length",
                        "per_device_train_batch_size",
                        "gradient_accumulation_steps",
                        "hold",
                    )
                    and float(value) <= 0
                ):
                    return f"{word} was accepted"
        return ""

    def check_record(self, record: Any) -> None:
        """Asserts what an accepted record has: a text to train on, and no answer that is lost."""
        assert isinstance(record, dict)
        plain = {str(name).strip().lower(): value for name, value in record.items()}
        given = ("prompt", "text", "question", "instruction", "input", "messages", "conversations")
        assert any(
            isinstance(text, list) or (isinstance(text, str) and text.strip())
            for text in (plain.get(name) for name in (*given, "rejected"))
        )
        assert not isinstance(plain.get("completion", ""), int | float)
        assert not plain.get("images") and not plain.get("tools")
        answers = ("completion", "response", "output", "answer", "answers", "rejected", "choices")
        if plain.get("prompt") and not any(plain.get(name) for name in (*answers, "messages")):
            known = {*plain} - {"is_safe", "response_0", "response_1"}
            lost = [plain[name] for name in ("text", "reply") if name in known]
            assert not any(isinstance(text, str) and text.strip() for text in lost)

    def check_tokens(self, row: Any, item: Any, tokenizer: Any) -> None:
        """Asserts that what is trained on says the completion, ends once, and follows a prompt that
        does not say it.
        """
        from unteach.data.rows import letters_and_digits
        from unteach.data.traces import split_trace

        trace, answer = split_trace(row.completion)
        for mark in tokenizer.all_special_tokens:
            answer = answer.replace(mark, "")
        said = letters_and_digits(tokenizer.decode(list(item.completion_ids)))
        ids = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        spelled = letters_and_digits(row.completion) == letters_and_digits(tokenizer.decode(ids))
        for part in (trace, answer) if spelled else ():
            assert letters_and_digits(part) in said, (row.source, part, said)
        assert item.prompt_ids and item.completion_ids
        ends = [token == tokenizer.eos_token_id for token in item.completion_ids]
        assert sum(ends) <= 2, (row.source, "ends more than once")

    def run(self, count: int, only: str | None = None, log: Path | None = None) -> list[str]:
        """Feeds `count` inputs; returns a text for each wrong outcome. Those in `log` are not fed
        again, and it gets a line for each other.
        """
        kinds: dict[str, Callable[[random.Random], list[str]]] = {
            "check_data": self.check_data,
            "run_data": self.run_data,
            "run_settings": self.run_settings,
            "run_config": self.run_config,
            "compare_config": self.compare_config,
            "models_and_tokenizers": self.models_and_tokenizers,
            "chats": self.chats,
            "command_lines": self.command_lines,
            "reports": self.reports,
        }
        names = [only] if only else list(kinds)
        faults, started, run = [], time.monotonic(), [self.seed, only]
        known, text = {}, log.read_text(encoding="utf-8") if log and log.exists() else ""
        cut = not text.endswith("\n") and text
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a line that an interruption cut
                entry = json.loads(line)
                known |= {entry["number"]: entry} if entry["run"] == run else {}
        for number in range(count):
            if number in known:
                self.outcomes[known[number]["outcome"]] += 1
                faults += [known[number]["wrong"]] * bool(known[number]["wrong"])
                continue
            if self.prints and number % 50 == 0:
                seconds = time.monotonic() - started
                print(f"{number} of {count}, {len(faults)} wrong, {seconds:.0f} s", flush=True)
            draw = random.Random(f"{self.seed}-{number}")
            shutil.rmtree(self.place, ignore_errors=True)
            self.place.mkdir()
            kind = names[number % len(names)]
            argv = kinds[kind](draw)
            result = self.feed(argv)
            wrong = self.fault_of(argv, result)
            outcome = f"{kind}: {({0: 'accepted', 2: 'refused'}).get(result.code, 'other')}"
            self.outcomes[outcome] += 1
            if wrong:
                wrong = f"input {number} ({kind}) {argv}:\n{wrong}"
                faults.append(wrong)
                if self.prints:
                    print(wrong, "\n", flush=True)
            if log:
                entry = {"run": run, "number": number, "outcome": outcome, "wrong": wrong}
                with log.open("a", encoding="utf-8") as file:  # the last line may have been cut
                    file.write("\n" * bool(cut) + json.dumps(entry) + "\n")
                cut = False
        return faults


def main() -> int:
    """Runs the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = os.getcwd()
        os.chdir(folder)  # an option without a path may write where it stands
        fuzzer = Fuzzer(Path(folder), options.seed, prints=True)
        log = options.log and Path(home, options.log)
        faults = fuzzer.run(options.count, options.only, log)
        os.chdir(home)
    last = Counter(text.strip().splitlines()[-1][:160] for text in faults)
    for line, number in last.most_common():
        print(f"{number:5} {line}")
    print(dict(sorted(fuzzer.outcomes.items())))
    seconds = time.monotonic() - started
    print(f"{options.count} inputs in {seconds:.0f} s, {len(faults)} wrong outcomes")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
