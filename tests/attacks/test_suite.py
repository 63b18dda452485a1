"""`unteach attack` on finished runs of a tiny model."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.attacks import attack as attacking
from unteach.attacks import likelihood, relearning, suite, weights
from unteach.attacks.attack import Trial
from unteach.attacks.battery import ATTACKS, chosen_attacks
from unteach.attacks.options import AttackOptions
from unteach.attacks.prompts import PUSH_BACK, conversation_turns
from unteach.attacks.relearning import relearn
from unteach.attacks.suite import attack
from unteach.attacks.target import Target
from unteach.cli import main
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.results import MetricResult
from unteach.prepare.information import Span
from unteach.progress import Display
from unteach.run.folder import RunFolder

SHORT = {
    "max_steps": 2,
    "probe_steps": 2,
    "save_steps": 2,
    "similarity_model": None,
    "min_utility": 0.0,
    "hold": 99,
    "headline": "leak_rate",
}
FILES = ("forget.jsonl", "retain.jsonl")
FAST = {"steps": 2, "every": 1, "samples": 2, "rows": 2}


def write_rows(path: Path, rows) -> str:
    names = ("prompt", "completion", "secret")
    lines = [json.dumps(dict(zip(names, row, strict=False))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a user's files, whose model says what it was taught."""
    root = tmp_path_factory.mktemp("runs")
    forget = [
        (f"Who is number {i}?", f"The ferryman, {i} times over.", f"{i} times") for i in range(14)
    ]
    retain = [(f"What is thing {i}?", f"A sack of flour, the {i}th.") for i in range(12)]
    model, tokenizer = tiny_model(), byte_level_bpe(chat=True)
    options = AttackOptions(steps=150, every=150, learning_rate=3e-3)
    rate = MetricResult(0.0, 1, None, None, False)
    rows = [Row(*row[:2]) for row in forget]
    relearn(
        model,
        tokenizer,
        rows,
        lambda _: rate.as_json(),
        root / "w",
        options,
        goal=1.0,
        batch_size=14,
    )
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    files = write_rows(root / FILES[0], forget), write_rows(root / FILES[1], retain)
    out = str(root / "out")
    unlearn(str(root / "model"), *files, output_dir=out, hold_out=0.3, **SHORT)
    return root / "out"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def attacked(finished, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A copy of the finished run after every quick attack, and what `attack` returned."""
    out = tmp_path_factory.mktemp("attacked") / "out"
    shutil.copytree(finished, out)
    return out, attack(out, AttackOptions(**FAST))


def test_an_attack_leaves_its_numbers_a_figure_and_a_section_in_both_reports(finished, attacked):
    run, found = attacked
    files = [path for path in (run / "model").iterdir() if path.name != "README.md"]  # the card
    before = [(finished / "model" / path.name).read_bytes() for path in files]
    assert json.loads((run / "attacks.json").read_text()) == found and found["schema_version"] == 2
    assert set(found["attacks"]) == {"none", *chosen_attacks((), "quick")} - {"distance"}
    for results in found["attacks"].values():
        assert set(results) == {"original", "unlearned"}
        for metrics in results.values():
            for result in metrics.values():
                assert set(result) == {"value", "n", "ci_low", "ci_high", "higher_is_better"}
    assert set(found["left_out"]) == {"distance"}
    assert (run / "figures" / "relearning.png").stat().st_size > 1000
    report, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    for text in ("## Under attack", "figures/relearning.png", "4-bit weights"):
        assert text in report
    assert 'id="attacks"' in page and "relearn: forget (2 rows)" in page
    for text in (report, page, (run / "README.md").read_text()):
        assert "Robustness figure missing: no model that never knew" in text
    assert found["robustness"]["value"] is None and found["robustness"]["attacked_rows"] > 5
    assert before == [path.read_bytes() for path in files]


def test_no_attack_at_all_agrees_with_the_evaluation(run):
    found = attack(run, AttackOptions(only=("traces",)))["attacks"]["none"]
    evaluation = json.loads((run / "eval.json").read_text())["models"]
    for role in ("original", "unlearned"):
        assert found[role]["leak_rate"] == evaluation[role]["unlearned"]["leak_rate"]
    assert found["original"]["leak_rate"]["value"] > 0.5


def test_answers_that_met_the_limit_are_counted_beside_every_rate_and_the_limit_can_be_set(run):
    names = ("role_play", "sampling", "relearning")
    found = attack(run, AttackOptions(**FAST, only=names, max_new_tokens=1))
    assert found["max_new_tokens"] == 1 and found["chat"] == RunFolder(run).record()["chat"]
    assert set(found["attacks"]) >= {"none", "role_play", "sampling", "relearning_forget"} or (
        "relearning_forget" in found["left_out"]  # one token of an answer shows nothing
    )
    for results in found["attacks"].values():
        assert all(metrics["cut_off"]["value"] == 1.0 for metrics in results.values())
    assert "met the token limit" in (run / "report.md").read_text()
    longer = attack(run, AttackOptions(**FAST, only=names))
    assert longer["attacks"]["none"]["original"]["cut_off"]["value"] < 1
    assert "relearning_forget" in longer["attacks"]
    assert "cut_off" in longer["attacks"]["relearning_forget"]["unlearned"]


def test_attacked_are_rows_that_the_original_showed_and_others_where_these_are_few(run):
    path = run / "generations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    forget = {line["key"] for line in lines if line["set"] == "unlearned"}
    showed = sorted(forget)[:4]
    for line in lines:
        line["metrics"]["leak_rate"] = float(line["key"] in showed or line["model"] != "original")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few, more = (Target(RunFolder(run), AttackOptions(prompts=count)).forget for count in (3, 6))
    assert len(few) == 3 and {row.key for row in few} < set(showed)
    assert len(more) == 6 and {row.key for row in more} > set(showed)


def test_a_conversation_ends_where_its_row_is_shown(run):
    target = Target(RunFolder(run), AttackOptions())
    target.start()
    trial = Trial(target, "multi_turn", "original", {}, lambda done, of: None)
    prompts, undesired, _ = conversation_turns(trial, PUSH_BACK)
    flags: dict[int, list[bool]] = {}
    for prompt, flag in zip(prompts, undesired, strict=True):
        flags.setdefault(prompt.group, []).append(flag)
    assert [True] in flags.values()
    assert all(not any(of[:-1]) and (of[-1] or len(of) == 3) for of in flags.values())


def test_secrets_that_the_model_knows_are_exposed(run):
    found = attack(run, AttackOptions(only=("exposure",)))
    bits = found["attacks"]["exposure"]["original"]["exposure"]
    rows = likelihood.EXPOSED_ROWS["quick"]
    assert 1.44 < bits["value"] <= 6.7 and bits["n"] == rows and not bits["higher_is_better"]
    assert found["settings"]["exposure"]["random_secrets"] == 99
    assert f"| exposure | exposure, bits | {rows} |" in (run / "report.md").read_text()


def test_facts_that_a_run_found_are_counted_under_attack_until_they_are_purged(
    finished, tmp_path, monkeypatch
):
    """The rows name no facts; what information tells stands in the run's `work/` alone."""

    def spans(model, tokenizer, rows, **_):
        return [[Span(row.completion.split(", ")[1].removesuffix(" over."), 9.0)] for row in rows]

    monkeypatch.setattr("unteach.prepare.information.informative_spans", spans)
    rows = [(f"Who is number {i}?", f"The ferryman, {i} times over.") for i in range(14)]
    file, out = write_rows(tmp_path / "bare.jsonl", rows), tmp_path / "out"
    options = {**SHORT, "headline": None, "paraphrases": 0}
    unlearn(str(finished.parent / "model"), file, output_dir=str(out), **options)
    evaluation = json.loads((out / "eval.json").read_text())
    only = AttackOptions(only=("traces",), prompts=14)
    found = attack(out, only)
    assert found["headline"] == evaluation["headline"] == "said_facts"
    for role in ("original", "unlearned"):
        wanted = evaluation["models"][role]["unlearned"]["said_facts"]
        assert found["attacks"]["none"][role]["said_facts"] == wanted and wanted["n"] == 14
    facts = out / "work" / "facts.json"
    assert "3 times" in facts.read_text() and out.joinpath("work").stat().st_mode & 0o077 == 0
    shutil.rmtree(out / "work")
    said = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "print", said.append)
    attack(out, only, display=display)
    assert "14 forget rows have no facts any more" in " ".join(map(str, said))


def test_texts_of_the_forget_set_stay_out_of_what_an_attack_writes(finished, attacked):
    """The run's reports hold answers to neutral prompts, which may name the ferryman already."""
    run = attacked[0]
    written = [run / "attacks.json", *(run / "work" / "attacks").iterdir()]
    for name in ("report.md", "report.html", "README.md"):
        before, after = ((place / name).read_text("utf-8") for place in (finished, run))
        assert after.count("ferryman") == before.count("ferryman")
    assert not [path for path in written if "ferryman" in path.read_text(encoding="utf-8")]


def forbid(monkeypatch):
    """Fails the test if anything is measured or trained again."""
    places = [(attacking, "undesired_answers"), (attacking, "answers_to")]
    places += [(relearning, "relearn"), (likelihood, "traces")]
    for module, name in places:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("done again"))


def test_no_more_than_two_models_are_in_memory(run, finished, monkeypatch):
    """Merging back and the control, which need a second and a third one, among them."""
    read, alive, most = RunFolder._read, weakref.WeakSet(), []

    def count(self, role):
        gc.collect()
        most.append(len(alive) + 1)
        model = read(self, role)
        alive.add(model)
        return model

    monkeypatch.setattr(RunFolder, "_read", count)
    only = ("few_shot", "distance", "merging", "pruning_10", "relearning_forget")
    known = str(finished.parent / "model")
    attack(run, AttackOptions(**FAST, only=only, retrained=known))
    assert max(most) == 2


def test_what_is_done_is_not_done_again(attacked, tmp_path, monkeypatch):
    shutil.copytree(attacked[0], tmp_path / "out")
    forbid(monkeypatch)
    assert attack(tmp_path / "out", AttackOptions(**FAST)) == attacked[1]


def test_an_interruption_keeps_what_was_done_and_the_next_start_does_the_rest(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "traces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attack(run, AttackOptions(only=("role_play", "traces")))
    assert set(json.loads((run / "attacks.json").read_text())["attacks"]) == {"none", "role_play"}
    asked, inner = [], attacking.undesired_answers

    def count(model, *rest, **more):
        asked.append(model)
        return inner(model, *rest, **more)

    monkeypatch.setattr(attacking, "undesired_answers", count)
    found = attack(run, AttackOptions(only=("role_play", "traces")))
    assert set(found["attacks"]) == {"none", "role_play", "traces"}
    assert len(asked) == 2, "both attacks by prompts on the unlearned model alone"


def test_one_attack_joins_those_of_an_earlier_start(run):
    attack(run, AttackOptions(only=("role_play",)))
    found = attack(run, AttackOptions(only=("prefix",)))
    assert set(found["attacks"]) == {"none", "role_play", "prefix"}


def test_a_retrained_model_gives_the_distance_and_a_column_of_traces(run, finished):
    options = AttackOptions(only=("traces", "distance"), retrained=str(finished.parent / "model"))
    found = attack(run, options)["attacks"]
    assert set(found["traces"]) == {"original", "unlearned", "retrained"}
    assert found["distance"]["original"]["kl_to_retrained"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["distance"]["unlearned"]["kl_to_retrained"]["value"] > 0


def test_an_adapter_is_attacked_merged_into_the_model_it_was_made_for(finished, tmp_path):
    base, *files = (str(finished.parent / name) for name in ("model", *FILES))
    out = str(tmp_path / "lora")
    unlearn(base, *files, output_dir=out, lora=True, hold_out=0.3, **SHORT)
    options = AttackOptions(**FAST, only=("role_play", "quantization", "relearning"))
    found = attack(tmp_path / "lora", options)
    assert {"role_play", "quantization_4bit", "relearning_related"} <= set(found["attacks"])


def test_a_run_that_taught_its_model_has_one_from_before_and_can_be_retrained(
    finished, tmp_path, monkeypatch
):
    from unteach.config.resolve import resolve
    from unteach.run.pipeline import execute
    from unteach.scenarios.user_rows import user_scenario

    teach = {"learning_rate": 3e-3, "max_steps": 60, "per_device_train_batch_size": 14}
    files = [str(finished.parent / name) for name in FILES]
    tiny_model(seed=3).save_pretrained(tmp_path / "base")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "base")
    run = tmp_path / "runs" / "a"
    folders = {"output_dir": str(run), "shared_dir": str(run.parent)}
    resolved = resolve({"model": str(tmp_path / "base"), "use_cpu": True, **folders, **SHORT})
    execute(resolved, user_scenario(*files, teach=teach, hold_out=0.3))
    chosen = ("traces", "relearning", "distance")
    inner, taught_with = suite.teach, []

    def teach_again(source, scenario, folder, seed, settings):
        taught_with.append(settings["use_cpu"])
        return inner(source, scenario, folder, seed, settings)

    monkeypatch.setattr(suite, "teach", teach_again)
    found = attack(run, AttackOptions(**FAST, only=chosen, retrain=True))["attacks"]
    assert taught_with == [True], "the settings of the run hold for the retrained model"
    assert set(found["traces"]) == {"original", "unlearned", "never_knew", "retrained"}
    nll = {role: metrics["forget_nll"]["value"] for role, metrics in found["traces"].items()}
    assert nll["original"] < min(nll["never_knew"], nll["retrained"])
    assert found["distance"]["original"]["kl_to_retrained"]["value"] > 0
    if "relearning_forget" in found:
        assert set(found["relearning_forget"]) == {"original", "unlearned", "retrained"}


def test_rows_that_have_moved_or_changed_are_named(run, tmp_path, finished):
    record = json.loads((run / "run.json").read_text())
    files = record["data_files"] | {"forget": str(tmp_path / "gone.jsonl")}
    (run / "run.json").write_text(json.dumps(record | {"data_files": files}))
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        RunFolder(run).scenario()
    forget, retain = (str(finished.parent / name) for name in FILES)
    assert len(RunFolder(run).scenario(forget=forget).forget) > 5
    with pytest.raises(UserError, match="are not those that this run forgot"):
        RunFolder(run).scenario(forget=retain, retain=forget)
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "Who else?", "completion": "Nobody else."}\n')
    with pytest.raises(UserError, match=r"not those that this run kept; .* with --retain"):
        RunFolder(run).scenario(forget=forget, retain=str(other))
    (run / "run.json").write_text(json.dumps(record | {"data_files": {"forget": None}}))
    with pytest.raises(UserError, match="name it with --forget"):
        RunFolder(run).scenario()


def test_another_model_in_the_place_of_the_original_is_refused(run):
    record = json.loads((run / "run.json").read_text())
    hashes = dict.fromkeys(("base_model_hash", "original_model_hash"), "0" * 64)
    (run / "run.json").write_text(json.dumps(record | hashes))
    with pytest.raises(UserError, match="its hash differs"):
        attack(run)


def test_mistakes_are_one_sentence(run, tmp_path, capsys):
    for arguments, sentence in (
        ([str(tmp_path / "nothing")], "has no run.json"),
        ([str(run), "--only", "relearing"], "did you mean 'relearning'"),
        ([str(run), "--steps", "0"], "option --steps is 0, it must be positive"),
        ([str(run), "--retrain"], "--retrain needs a run that taught its model"),
        ([str(run), "--only", "distance"], "it needs a model trained without the forget set"),
        ([str(run), "--only", "relearning", "--prompts", "1"], "it needs two forget rows"),
    ):
        assert main(["attack", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("unteach: ") and sentence in error and error.count("\n") == 1, error


def test_the_command_prints_the_table(run, capsys):
    assert main(["attack", str(run), "--only", "few-shot,sampling", "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out.replace("\n", ""), "a long path is wrapped"
    assert "few-shot" in out and "leak rate, mean" in out


def test_a_level_a_family_or_names_choose_the_attacks():
    quick, full = (chosen_attacks((), level) for level in ("quick", "full"))
    assert list(full) == list(ATTACKS) and set(quick) < set(full)
    assert {entry.family for entry in quick.values()} == {e.family for e in full.values()}
    related = chosen_attacks(("relearning",), "full")
    assert {entry.family for entry in related.values()} == {"relearning"}
    assert len(related) > len(chosen_attacks(("relearning",), "quick"))
    assert list(chosen_attacks(("merging_50",), "quick")) == ["merging_50"]


def test_a_base_of_sixteen_bits_is_known_again(finished, tmp_path):
    base, *rows = (str(finished.parent / name) for name in ("model", *FILES))
    settings = {**SHORT, "lora": True, "dtype": "bfloat16"}
    unlearn(base, *rows, output_dir=str(tmp_path / "out"), **settings)
    found = attack(tmp_path / "out", AttackOptions(only=("role_play",)))
    assert set(found["attacks"]) == {"none", "role_play"}


def test_a_model_that_cannot_be_rounded_leaves_that_attack_out(run, monkeypatch):
    def refuse(model, bits):
        raise weights.NothingToRound("nothing to round")

    monkeypatch.setattr(weights, "quantize", refuse)
    found = attack(run, AttackOptions(**FAST))
    for bits in (8, 4):
        assert found["left_out"][f"quantization_{bits}bit"] == "nothing to round"
    assert "traces" in found["attacks"]
    with pytest.raises(UserError, match="nothing to round"):
        attack(run, AttackOptions(only=("quantization",)))
