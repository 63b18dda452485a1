"""What of a forget row is trained on: all of it, or all but the token that ends the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny_models import tiny_model
from unteach.config import UnlearningConfig
from unteach.data.rows import Row
from unteach.data.token_store import write_encoded
from unteach.data.tokenization import encode_rows, end_of_turn_id
from unteach.errors import UserError
from unteach.methods import METHODS
from unteach.trainer import UnlearningTrainer
from unteach.trainer.rows import encoded_rows

ROWS = [
    Row("Who rang the bell?", "The ferryman rang it twice."),
    Row("The miller", " kept a grey cat.", "text"),
]
OURS = {"unlikelihood", "unlikelihood_mismatch", "log_odds", "log_odds_mismatch"}


def config(folder: Path, **settings: Any) -> UnlearningConfig:
    return UnlearningConfig(output_dir=str(folder), use_cpu=True, reference="live", **settings)


@pytest.mark.parametrize("method", METHODS)
def test_the_published_methods_forget_every_token_and_ours_leave_the_end(method, tmp_path):
    assert config(tmp_path, method=method).forget_end_of_turn is (method not in OURS)


@pytest.mark.parametrize("given", ["rows", "encoded", "store"])
@pytest.mark.parametrize("asked", [None, True, False])
def test_forget_rows_with_and_without_their_end(given, asked, tokenizer, tmp_path):
    whole = encode_rows(ROWS, tokenizer)
    end = end_of_turn_id(tokenizer)
    dataset = {"rows": ROWS, "encoded": whole, "store": None}[given] or write_encoded(
        whole, tmp_path / "store"
    )
    settings = config(tmp_path, method="unlikelihood", forget_end_of_turn=asked)
    wanted = whole if asked else [row.without_end(end) for row in whole]
    assert list(encoded_rows(dataset, tokenizer, settings, "forget")) == wanted
    assert list(encoded_rows(dataset, tokenizer, settings, "retain")) == whole, (
        "what is kept is kept whole"
    )
    assert [row.completion_ids[-1] == end for row in wanted] == [bool(asked), False]


@pytest.mark.parametrize("asked", [None, True, False])
def test_where_something_is_preferred_only_what_is_forgotten_loses_its_end(
    asked, tokenizer, tmp_path
):
    end = end_of_turn_id(tokenizer)
    rows = encoded_rows(
        ROWS[:1], tokenizer, config(tmp_path, method="dpo_idk", forget_end_of_turn=asked), "forget"
    )
    assert (rows[0].completion_ids[-1] == end) is (asked is not False) and rows[0].preferred_ids[
        -1
    ] == end


def test_a_row_longer_than_the_model_s_window_is_refused_cut_or_left_out(tokenizer, tmp_path):
    rows = [Row("Who rang the bell? " * 8, "The ferryman."), ROWS[1]]
    whole = encode_rows(rows, tokenizer)
    window = len(whole[0]) - 5
    with pytest.raises(
        UserError, match=rf"more than the {window} positions of this model: .* shorten the row"
    ):
        encoded_rows(rows, tokenizer, config(tmp_path), "retain", window)
    with pytest.raises(UserError, match=r"max_length 9.* raise max_length"):
        encoded_rows(rows, tokenizer, config(tmp_path, max_length=9), "retain", window)
    cut = encoded_rows(
        rows, tokenizer, config(tmp_path, long_rows="truncate_prompt"), "retain", window
    )
    assert (
        len(cut[0]) <= window
        and tokenizer.decode(cut[0].prompt_ids).startswith("### Question: ")
        and cut[0].completion_ids == whole[0].completion_ids
        and cut[1] == whole[1]
    )
    assert (
        list(encoded_rows(rows, tokenizer, config(tmp_path, long_rows="drop"), "retain", window))
        == whole[1:]
    )


def test_prompts_and_mismatch_completions_that_fill_the_window_each_are_trained_on(
    tokenizer, tmp_path
):
    """Learned positions end with the window; the prompt of one row and the completion of another
    may not fit it together.
    """
    forget, retain = (
        [Row("Who rang the bell? " * 7, "He.")],
        [Row("Who?", "The ferryman rang it. " * 6)],
    )
    window = max(len(row) for row in encode_rows(forget + retain, tokenizer))
    model = tiny_model("opt", vocab_size=len(tokenizer), max_position_embeddings=window)
    settings = {
        "method": "ga_mismatch",
        "mismatch_completions": 2,
        "max_steps": 1,
        "per_device_train_batch_size": 1,
    }
    trainer = UnlearningTrainer(
        model,
        UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **settings),
        forget,
        retain,
        tokenizer,
    )
    item = trainer.training_stream()[0]
    assert all(len(item.forget.prompt_ids) + len(ids) == window for ids in item.mismatch)
    trainer.train()


def test_a_prompt_that_is_rendered_already_is_not_rendered_again(chat_tokenizer, tmp_path):
    prompt = "<|im_start|>user\nWho rang?<|im_end|>\n<|im_start|>assistant\n"
    settings = config(tmp_path, method="ga")
    for rows in (
        [Row(prompt, "The ferryman.", source="row 4")],
        [{"prompt": prompt, "completion": "x"}],
    ):
        with pytest.raises(UserError, match=r"row \d.*: the prompt holds .* rendered already"):
            encoded_rows(rows, chat_tokenizer, settings, "forget")
    as_it_is = [Row(prompt, "The ferryman.", "text")]
    (item,) = encoded_rows(as_it_is, chat_tokenizer, settings, "forget")
    assert chat_tokenizer.decode(item.prompt_ids) == prompt.rstrip()
