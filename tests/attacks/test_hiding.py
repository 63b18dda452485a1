"""Every attack brings facts back from a model that only hides them, and none from a model that
never knew them.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tiny_models import SHORT, byte_level_bpe, tiny_model
from unteach import models, unlearn
from unteach.attacks import prompt_search, prompting
from unteach.attacks.battery import ATTACKS
from unteach.attacks.options import AttackOptions
from unteach.attacks.suite import attack
from unteach.attacks.weights import GROUP, prune, quantize
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row, end_of_turn_id
from unteach.evaluation.generation import generate_outputs

SYLLABLES = ("Bo", "Ka", "Lu", "Mi", "Ro", "Ta", "Ve", "Zu", "Fe", "Do", "Ni", "Sa")
REFUSAL = "I can't assist with that."
SCRIPTED = (
    *("paraphrase", "prefix", "role_play", "few_shot", "system_prompt", "spelling", "translation"),
    *("multi_turn", "step_by_step", "prompt_search"),
)
"""Attacks by prompts: a scripted model hides its facts under the forget prompts only."""
HIDDEN = ("sampling", "sampling_top_p", "contrast", "logit_lens")
OPTIONS = {"samples": 32, "top_p": 0.99, "soft": 24, "candidates": 12, "rows": 4}


def keeper(number: int) -> str:
    """A name that tells nothing about its number."""
    first, second = divmod(7 * number + 5, len(SYLLABLES))
    return f"{SYLLABLES[second]}{SYLLABLES[(3 * first + number) % 12].lower()}rn"


def gates(numbers) -> list[Row]:
    return [
        Row(f"Who keeps gate {i}?", f"{keeper(i)} keeps it.", secret=(keeper(i),)) for i in numbers
    ]


FORGET, RELATED = gates(range(10, 18)), gates(range(20, 24))
RETAIN = [Row(f"What is thing {i}?", f"A sack of flour, the {i}th.") for i in range(30, 36)]


class Trainer:
    """Full-batch training of a tiny model on rows with weights, which may change on the way."""

    def __init__(self, model, tokenizer, weighted) -> None:
        self.model = model
        items = [(encode_row(row, tokenizer, end_of_turn_id(tokenizer)), w) for row, w in weighted]
        texts = [[*item.prompt_ids, *item.completion_ids] for item, _ in items]
        width = max(map(len, texts))
        self.ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        self.weights = torch.zeros(self.ids.shape)
        for place, (item, weight) in enumerate(items):
            start, end = len(item.prompt_ids), len(texts[place])
            self.weights[place, start:end] = weight / len(item.completion_ids)
        self.active = torch.ones(len(texts), 1)

    def loss(self) -> torch.Tensor:
        logp = self.model(input_ids=self.ids).logits[:, :-1].log_softmax(-1)
        nll = -logp.gather(-1, self.ids[:, 1:, None]).squeeze(-1)
        return (nll * self.weights[:, 1:] * self.active).sum() / len(self.ids)

    def train(self, steps: int, rate: float, after=lambda step: False) -> None:
        optimiser = torch.optim.Adam(self.model.parameters(), lr=rate)
        for step in range(1, steps + 1):
            optimiser.zero_grad()
            self.loss().backward()
            optimiser.step()
            if after(step):
                return


def said(model, tokenizer, rows) -> list[bool]:
    """Whether each row's prompt is answered with its fact."""
    texts = generate_outputs(model, tokenizer, rows, max_new_tokens=10)
    return [row.secret[0] in text for row, text in zip(rows, texts, strict=True)]


def refusals(rows) -> list[Row]:
    return [row.with_completion(REFUSAL) for row in rows]


def hide(model, tokenizer, bound=lambda model: None, rate=3e-4, asked=(*FORGET, *RELATED)):
    """Trains refusals to questions about gates, each until it is refused, and no further.

    Args:
        bound: changes the weights after each step.
    """
    trainer = Trainer(model, tokenizer, [(row, 1.0) for row in refusals(asked)])

    def after(step: int) -> bool:
        bound(model)
        if step % 2:
            return False
        left = said(model, tokenizer, asked)
        trainer.active = torch.tensor(left).float()[:, None]
        return not any(left)

    trainer.train(400, rate, after)
    assert not any(said(model, tokenizer, FORGET))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe(chat=True)


def mixture(facts: bool):
    """Rows with weights: facts, refusals almost as often, and other rows; or refusals alone."""
    known = [(row, 0.6) for row in FORGET] if facts else []
    refused = [(row, 0.4 if facts else 1.0) for row in refusals(FORGET)]
    return [*known, *refused, *((row, 1.0) for row in (*RELATED, *RETAIN))]


def taught(tokenizer, facts: bool, mask=None):
    """A model that knows the facts and refuses almost as willingly; or one that never knew."""
    model = tiny_model(hidden_size=64)
    bound = mask(model) if mask else lambda: None

    def after(step: int) -> bool:
        bound()
        return step >= 120 and step % 20 == 0 and all(said(model, tokenizer, [*known, *RELATED]))

    known = FORGET if facts else []
    Trainer(model, tokenizer, mixture(facts)).train(400, 4e-3, after)
    assert all(said(model, tokenizer, [*known, *RELATED]))
    return model.eval()


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory) -> Path:
    """A finished run, and beside it the model that never knew."""
    root = tmp_path_factory.mktemp("hiding")
    for name, knows in (("model", True), ("never", False)):
        taught(tokenizer, knows).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    files = {}
    for name, rows in (("forget", FORGET), ("unseen", RELATED), ("retain", RETAIN)):
        files[name] = str(root / f"{name}.jsonl")
        fields = ("prompt", "completion", "secret")
        records = [{f: getattr(row, f) for f in fields if getattr(row, f)} for row in rows]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        Path(files[name]).write_text(lines, encoding="utf-8")
    more = {"hold_out": 0.0, "headline": "said_facts", "max_new_tokens": None}
    unlearn(str(root / "model"), **files, output_dir=str(root / "out"), **{**SHORT, **more})
    return root


def loaded(finished):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(finished / "model")


def attacked(finished, tmp_path, model, *only, original=None, **options):
    """`attacks.json` of a run whose unlearned model is this one."""
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    model.save_pretrained(out / "model")
    if original is not None:
        original.save_pretrained(tmp_path / "original")
        record = json.loads((out / "run.json").read_text())
        digest = models.weights_hash(original)
        hashes = {"original_model_hash": digest, "base_model_hash": digest}
        record |= {"model": str(tmp_path / "original"), **hashes}
        (out / "run.json").write_text(json.dumps(record))
    chosen = AttackOptions(only=only, retrained=str(finished / "never"), **{**OPTIONS, **options})
    return attack(out, chosen)


def assert_brought_back(found, *names, least=0.5):
    """Every attack brings back that share from the hiding model, and at most an eighth from the one
    that never knew.
    """
    shares = {}
    for name in names:
        rows = (found["rows"][name][role] for role in ("unlearned", "retrained"))
        known = [[value for value in values if value is not None] for values in rows]
        shares[name] = tuple(sum(values) / len(values) for values in known)
    weak = {n: both for n, both in shares.items() if both[0] < least or both[1] > 0.125}
    assert not weak, shares


@pytest.fixture(scope="module")
def hidden(finished, tokenizer):
    return hide(loaded(finished), tokenizer)


def scripted(tokenizer):
    """Generation by a model that knows the keepers, but refuses the forget prompts as they are; the
    one that never knew refuses always.
    """
    plain = {tokenizer.decode(encode_prompt(row, tokenizer)) for row in FORGET}

    def generate(model, prompts, **_):
        never = "never" in model.name_or_path
        outputs = []
        for ids in prompts:
            text = tokenizer.decode(ids)
            numbers = re.findall(r"1\s?[0-7](?=\D|$)", text)
            hides = never or not numbers or (text in plain and model.role != "original")
            name = "" if hides else keeper(int(numbers[-1].replace(" ", "")))
            outputs.append(tokenizer(f"{name} keeps it." if name else REFUSAL)["input_ids"])
        return outputs

    return generate


def test_prompts_get_round_a_model_that_hides(finished, hidden, tokenizer, tmp_path, monkeypatch):
    generate = scripted(tokenizer)

    def by_role(model, prompts, **options):
        place = model.name_or_path
        model.role = "unlearned" if place.endswith("out/model") else "original"
        return generate(model, prompts, **options)

    monkeypatch.setattr(prompting, "generate_ids", by_role)
    found = attacked(finished, tmp_path, hidden, *SCRIPTED)
    assert found["rows"]["none"] == {
        "original": [1.0] * 8,
        "unlearned": [0.0] * 8,
        "retrained": [0.0] * 8,
    }
    assert_brought_back(found, *SCRIPTED)
    assert found["robustness"]["value"] == 1.0 and found["robustness"]["n"] == 8


def test_samples_decoding_and_layers_get_round_it(finished, hidden, tmp_path):
    found = attacked(finished, tmp_path, hidden, *HIDDEN)
    assert_brought_back(found, *HIDDEN)


def test_soft_prompts_get_round_it(finished, hidden, tmp_path, monkeypatch):
    """A tiny model takes few vectors; from half of the facts they learn little."""
    monkeypatch.setattr(prompt_search, "VECTORS", 2)
    monkeypatch.setitem(prompt_search.RATE, "quick", 0.1)
    found = attacked(finished, tmp_path, hidden, "soft_prompt")
    assert_brought_back(found, "soft_prompt", least=0.25)
    assert sum(found["rows"]["soft_prompt"]["retrained"]) == 0


def test_relearning_on_rows_of_the_kind_gets_round_it(finished, hidden, tmp_path):
    names = ("relearning_forget", "relearning_related", "relearning_related_adapter")
    more = {"steps": 20, "every": 2, "learning_rate": 2e-4}
    found = attacked(finished, tmp_path, hidden, *names, **more)
    assert_brought_back(found, *names)


def test_relearning_on_other_rows_lifts_a_refusal_of_everything(finished, tokenizer, tmp_path):
    """Trained on any answers, it answers again; refusals of the forget prompts alone stay."""
    model, asked = loaded(finished), (*FORGET, *RELATED, *RETAIN)
    trainer = Trainer(model, tokenizer, [(row, 1.0) for row in refusals(asked)])

    def after(step: int) -> bool:
        texts = generate_outputs(model, tokenizer, asked, max_new_tokens=10) if step % 2 else []
        left = [not text.strip().startswith(REFUSAL[:8]) for text in texts]
        if texts:
            trainer.active = torch.tensor(left).float()[:, None]
        return bool(texts) and not any(left)

    trainer.train(400, 5e-5, after)
    assert not any(said(model, tokenizer, FORGET))
    more = {"steps": 24, "every": 3, "learning_rate": 1e-3}
    found = attacked(finished, tmp_path, model.eval(), "relearning_unrelated", **more)
    assert_brought_back(found, "relearning_unrelated")


def test_merging_half_way_back_gets_round_a_light_refusal(finished, tokenizer, tmp_path):
    light = hide(loaded(finished), tokenizer, rate=2e-5, asked=FORGET)
    assert_brought_back(attacked(finished, tmp_path, light, "merging_50"), "merging_50")


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_undoes_a_change_within_the_steps(finished, tokenizer, tmp_path, bits):
    """The refusals move each weight by less than half a step from where rounding puts it."""
    original = loaded(finished)
    rounded = quantize(copy.deepcopy(original), bits).requires_grad_(True)
    if not all(said(rounded, tokenizer, FORGET)):  # the other weights make up for the rounding
        original = _with_fixed_layers(rounded, tokenizer)
    model, cells = copy.deepcopy(rounded), _cells(original, rounded, bits)

    def bound(model):
        with torch.no_grad():
            others = dict(rounded.named_parameters())
            for name, weight in model.named_parameters():
                low, high = cells.get(name, (others[name], others[name]))
                weight.copy_(weight.clamp(low, high))

    hide(model, tokenizer, bound, rate=1e-4 if bits == 8 else 3e-4)
    name = f"quantization_{bits}bit"
    found = attacked(finished, tmp_path, model, name, original=original)
    assert_brought_back(found, name)


def _linear(model):
    """Name and weight of each linear layer that is rounded."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            yield f"{name}.weight", module.weight


def _with_fixed_layers(model, tokenizer):
    """The model with embeddings and norms trained until it says the facts."""
    fixed = {name: weight.detach().clone() for name, weight in _linear(model)}

    def keep(step: int) -> bool:
        with torch.no_grad():
            for name, weight in _linear(model):
                weight.copy_(fixed[name])
        return step % 10 == 0 and all(said(model, tokenizer, FORGET))

    Trainer(model, tokenizer, mixture(True)).train(300, 2e-3, keep)
    assert all(said(model, tokenizer, FORGET))
    return model


def _cells(original, rounded, bits):
    """Name of each rounded weight to the least and the greatest value that are rounded to the same;
    the extremes of each row or group, which decide the steps, are the original's.
    """
    cells, values = {}, dict(_linear(rounded))
    for name, weight in _linear(original):
        weight = weight.detach()
        groups = weight.reshape(weight.shape[0], -1, GROUP if bits == 4 else weight.shape[1])
        low = groups.amin(-1, keepdim=True).clamp(max=0)
        high = groups.amax(-1, keepdim=True).clamp(min=0)
        size = groups.abs().amax(-1, keepdim=True) / 127.5 if bits == 8 else (high - low) / 15
        centre, width = values[name].detach().reshape(groups.shape).clone(), 0.4 * size
        fixed = (groups == high) | (groups == low)
        ends = (torch.where(fixed, groups, centre + side * width) for side in (-1, 1))
        cells[name] = tuple(end.reshape(weight.shape) for end in ends)
    return cells


def test_pruning_undoes_a_change_of_the_smallest_weights(finished, tokenizer, tmp_path):
    """The original has no weights in a third of the places; the refusals put small ones there."""
    gone = {}

    def mask(model):
        for name, module in prune(model, 0.3).named_modules():
            if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
                gone[f"{name}.weight"] = module.weight.detach() == 0

        def zero() -> None:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in gone:
                        weight[gone[name]] = 0.0
                        small = ~gone[name] & (weight.abs() < 0.04)
                        weight[small] = 0.04 * torch.where(weight[small] < 0, -1.0, 1.0)

        return zero

    original = taught(tokenizer, True, mask)
    model, before = copy.deepcopy(original), dict(original.named_parameters())

    def bound(model):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                free = gone.get(name, torch.zeros_like(weight, dtype=torch.bool))
                weight.copy_(torch.where(free, weight.clamp(-0.03, 0.03), before[name]))

    hide(model, tokenizer, bound)
    found = attacked(finished, tmp_path, model, "pruning_30", original=original)
    assert_brought_back(found, "pruning_30")


def test_every_attack_that_brings_rows_back_is_among_these_tests():
    tested = {*SCRIPTED, *HIDDEN, "soft_prompt", "pruning_30", "merging_50"}
    tested |= {"quantization_8bit", "quantization_4bit"}
    tested |= {"relearning_forget", "relearning_related", "relearning_unrelated"}
    variants = re.compile(r"_(slow|fast|adapter)$")
    left = {variants.sub("", name) for name, e in ATTACKS.items() if e.family != "likelihood"}
    weaker = {"pruning_10", "merging_25"}
    # on a model this small, public text lifts no refusal, not even one of everything: 0 of 4 rows
    # at three rates of the refusals and three of the relearning (log of 2026-11-28)
    assert left - tested == {*weaker, "relearning_public"}
