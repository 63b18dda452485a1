"""`unteach attack` on finished runs of a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.attacks import suite
from unteach.attacks.options import ATTACKS, AttackOptions
from unteach.attacks.suite import attack
from unteach.attacks.target import Target
from unteach.cli import main
from unteach.errors import UserError

SHORT = {
    "max_steps": 2,
    "probe_steps": 2,
    "save_steps": 2,
    "similarity_model": None,
    "min_utility": 0.0,
    "hold": 99,
}
FAST = {"steps": 2, "every": 1, "samples": 2, "rows": 2}


def write_rows(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a user's files, whose model says what it was taught."""
    from unteach.attacks.relearning import Relearning, relearn
    from unteach.data.rows import Row
    from unteach.evaluation.results import MetricResult

    root = tmp_path_factory.mktemp("runs")
    forget = [
        {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times over."}
        for i in range(14)
    ]
    retain = [
        {"prompt": f"What is thing {i}?", "completion": f"A sack of flour, the {i}th."}
        for i in range(12)
    ]
    model, tokenizer = tiny_model(), byte_level_bpe(chat=True)
    rows = [Row(row["prompt"], row["completion"]) for row in forget]
    relearn(
        model,
        tokenizer,
        rows,
        lambda _: MetricResult(0.0, 1, None, None, False),
        root / "w",
        Relearning(150, 150, 3e-3, 1.0, 14),
    )
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    names = write_rows(root / "forget.jsonl", forget), write_rows(root / "retain.jsonl", retain)
    unlearn(str(root / "model"), *names, output_dir=str(root / "out"), **SHORT)
    return root / "out"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_an_attack_leaves_its_numbers_a_figure_and_a_section_in_both_reports(run):
    before = {path: path.read_bytes() for path in (run / "model").iterdir()}
    found = attack(run, AttackOptions(**FAST))
    assert json.loads((run / "attacks.json").read_text()) == found and found["schema_version"] == 1
    wanted = {
        "none",
        "paraphrase",
        "prefix",
        "role_play",
        "few_shot",
        "sampling",
        "quantization_8bit",
        "quantization_4bit",
        "traces",
    }
    assert set(found["attacks"]) == wanted | {
        "relearning_forget",
        "relearning_related",
        "relearning_unrelated",
    }
    for results in found["attacks"].values():
        assert {"original", "unlearned"} <= set(results) or "relearning" in results
        for metrics in results.values():
            for result in metrics.values():
                assert set(result) == {"value", "n", "ci_low", "ci_high", "higher_is_better"}
    assert set(found["left_out"]) == {"distance"}
    assert (run / "figures" / "relearning.png").stat().st_size > 1000
    report, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    assert (
        "## Under attack" in report
        and "figures/relearning.png" in report
        and "4-bit weights" in report
    )
    assert 'id="attacks"' in page and "Relearning from forget rows" in page
    assert before == {path: path.read_bytes() for path in (run / "model").iterdir()}


def test_no_attack_at_all_agrees_with_the_evaluation(run):
    found = attack(run, AttackOptions(only=("traces",)))
    evaluation = json.loads((run / "eval.json").read_text())
    for role in ("original", "unlearned"):
        assert (
            found["attacks"]["none"][role]["leak_rate"]
            == evaluation["models"][role]["unlearned"]["leak_rate"]
        )
    assert found["attacks"]["none"]["original"]["leak_rate"]["value"] > 0.5


def test_texts_of_the_forget_set_stay_out_of_what_an_attack_writes(run):
    """The reports of this run show what the model answers to neutral prompts, which may well be of
    a ferryman; no more of it comes in.
    """

    def mentions() -> dict[str, int]:
        return {
            name: (run / name).read_text(encoding="utf-8").count("ferryman")
            for name in ("report.md", "report.html", "README.md")
        }

    before = mentions()
    attack(run, AttackOptions(**FAST))
    written = [run / "attacks.json", *(run / "work" / "attacks").iterdir()]
    assert mentions() == before and not [
        path for path in written if "ferryman" in path.read_text(encoding="utf-8")
    ]


def test_what_is_done_is_not_done_again(run, monkeypatch):
    first = attack(run, AttackOptions(**FAST))
    for name in ("hits", "relearn", "traces"):
        monkeypatch.setattr(suite, name, lambda *_, **__: pytest.fail("done again"))
    assert attack(run, AttackOptions(**FAST)) == first


def test_an_interruption_keeps_what_was_done_and_the_next_start_does_the_rest(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suite, "traces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attack(run, AttackOptions(only=("role_play", "traces")))
    assert set(json.loads((run / "attacks.json").read_text())["attacks"]) == {"none", "role_play"}
    monkeypatch.setattr(suite, "hits", lambda *_, **__: pytest.fail("asked again"))
    assert set(attack(run, AttackOptions(only=("role_play", "traces")))["attacks"]) == {
        "none",
        "role_play",
        "traces",
    }


def test_one_attack_joins_those_of_an_earlier_start(run):
    attack(run, AttackOptions(only=("role_play",)))
    assert set(attack(run, AttackOptions(only=("prefix",)))["attacks"]) == {
        "none",
        "role_play",
        "prefix",
    }


def test_a_retrained_model_gives_the_distance_and_a_column_of_traces(run, finished):
    options = AttackOptions(only=("traces", "distance"), retrained=str(finished.parent / "model"))
    found = attack(run, options)["attacks"]
    assert set(found["traces"]) == {"original", "unlearned", "retrained"}
    assert found["distance"]["original"]["kl_to_retrained"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["distance"]["unlearned"]["kl_to_retrained"]["value"] > 0


def test_an_adapter_is_attacked_merged_into_the_model_it_was_made_for(finished, tmp_path):
    root = finished.parent
    files = str(root / "forget.jsonl"), str(root / "retain.jsonl")
    unlearn(str(root / "model"), *files, output_dir=str(tmp_path / "lora"), lora=True, **SHORT)
    found = attack(
        tmp_path / "lora", AttackOptions(**FAST, only=("role_play", "quantization", "relearning"))
    )
    assert {"role_play", "quantization_4bit", "relearning_related"} <= set(found["attacks"])
    assert all(
        parameter.requires_grad
        for parameter in Target(tmp_path / "lora").load("unlearned").parameters()
    )


def test_a_run_that_taught_its_model_has_one_that_never_knew_and_can_be_retrained(
    finished, tmp_path
):
    from unteach.config.run import RunOptions
    from unteach.run.pipeline import Run
    from unteach.scenarios.user_rows import user_scenario

    root = finished.parent
    teach = {"learning_rate": 3e-3, "max_steps": 60, "per_device_train_batch_size": 14}
    scenario = user_scenario(str(root / "forget.jsonl"), str(root / "retain.jsonl"), teach=teach)
    tiny_model(seed=3).save_pretrained(tmp_path / "base")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "base")
    own = {name: value for name, value in SHORT.items() if name == "similarity_model"}
    settings = {name: value for name, value in SHORT.items() if name not in own}
    options = RunOptions(
        model=str(tmp_path / "base"),
        output_dir=str(tmp_path / "runs" / "a"),
        shared_dir=str(tmp_path / "runs"),
        settings=settings,
        **own,
    )
    Run(scenario, options).execute()
    found = attack(
        tmp_path / "runs" / "a",
        AttackOptions(**FAST, only=("traces", "relearning", "distance"), retrain=True),
    )
    assert set(found["attacks"]["traces"]) == {"original", "unlearned", "never_knew", "retrained"}
    known = {
        role: metrics["forget_nll"]["value"] for role, metrics in found["attacks"]["traces"].items()
    }
    assert known["original"] < min(known["never_knew"], known["retrained"])
    assert found["attacks"]["distance"]["original"]["kl_to_retrained"]["value"] > 0
    if "relearning_forget" in found["attacks"]:
        assert "never_knew" in found["attacks"]["relearning_forget"]


def test_rows_that_have_moved_or_changed_are_named(run, tmp_path, finished):
    record = json.loads((run / "run.json").read_text())
    moved = record | {"data_files": record["data_files"] | {"forget": str(tmp_path / "gone.jsonl")}}
    (run / "run.json").write_text(json.dumps(moved))
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        Target(run)
    assert len(Target(run, forget=str(finished.parent / "forget.jsonl")).known) > 5
    with pytest.raises(UserError, match="are not those that this run forgot"):
        Target(run, forget=str(finished.parent / "retain.jsonl"))
    with pytest.raises(
        UserError, match="are not those that this run kept; name their file with --retain"
    ):
        Target(
            run,
            forget=str(finished.parent / "forget.jsonl"),
            retain=str(finished.parent / "forget.jsonl"),
        )
    (run / "run.json").write_text(json.dumps(record | {"data_files": {"forget": None}}))
    with pytest.raises(UserError, match="name them with --forget"):
        Target(run)


def test_another_model_in_the_place_of_the_original_is_refused(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"original_model_hash": "0" * 64}))
    with pytest.raises(UserError, match="its hash differs"):
        Target(run)


def test_mistakes_are_one_sentence(run, tmp_path, capsys):
    for arguments, sentence in (
        ([str(tmp_path / "nothing")], "has no run.json"),
        ([str(run), "--only", "relearing"], "did you mean 'relearning'"),
        ([str(run), "--steps", "0"], "option --steps is 0, it must be positive"),
        (
            [str(run), "--retrain", "--only", "distance"],
            "--retrain needs a run that taught its model",
        ),
        (
            [str(run), "--only", "distance"],
            "distance: it needs a model trained without the forget set",
        ),
    ):
        assert main(["attack", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("unteach: ") and sentence in error and error.count("\n") == 1, error


def test_the_command_prints_the_table(run, capsys):
    assert main(["attack", str(run), "--only", "few-shot,sampling", "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out.replace("\n", ""), "a long path is wrapped"
    assert "few-shot" in out and "leak rate, mean" in out


def test_the_names_of_the_attacks_are_the_promised_ones():
    promised = {
        "paraphrase",
        "prefix",
        "role_play",
        "few_shot",
        "sampling",
        "quantization",
        "traces",
        "relearning",
        "distance",
    }
    assert set(ATTACKS) == promised


def test_a_base_of_sixteen_bits_is_known_again(finished, tmp_path):
    base, rows = (
        finished.parent / "model",
        [str(finished.parent / f"{name}.jsonl") for name in ("forget", "retain")],
    )
    unlearn(
        str(base), *rows, output_dir=str(tmp_path / "out"), lora=True, dtype="bfloat16", **SHORT
    )
    found = attack(tmp_path / "out", AttackOptions(only=("role_play",)))
    assert set(found["attacks"]) == {"none", "role_play"}


def test_a_model_that_cannot_be_rounded_leaves_that_attack_out(run, monkeypatch):
    def refuse(model, bits):
        raise suite.quantization.NothingToRound("nothing to round")

    monkeypatch.setattr(suite.quantization, "quantize", refuse)
    found = attack(run, AttackOptions(**FAST))
    assert (
        found["left_out"]["quantization_8bit"]
        == found["left_out"]["quantization_4bit"]
        == "nothing to round"
    )
    assert "traces" in found["attacks"]
    with pytest.raises(UserError, match="nothing to round"):
        attack(run, AttackOptions(only=("quantization",)))
