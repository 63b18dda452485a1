"""Folders known by what they hold."""

from __future__ import annotations

from unteach.files.folders import content_key, set_aside


def test_a_content_key_depends_on_the_content_and_not_on_the_order_of_names():
    assert (
        content_key({"a": 1, "b": [2]})
        == content_key({"b": [2], "a": 1})
        != content_key({"a": 1, "b": [3]})
    )
    assert len(content_key(None)) == 16


def test_a_folder_with_the_same_config_is_not_set_aside(tmp_path):
    folder = tmp_path / "run"
    assert set_aside(folder, "config.yaml", "a: 1") is None
    folder.mkdir()
    assert set_aside(folder, "config.yaml", "a: 1") is None
    (folder / "config.yaml").write_text("a: 1")
    assert set_aside(folder, "config.yaml", "a: 1") is None and folder.exists()


def test_a_folder_with_another_config_takes_the_first_free_name(tmp_path):
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "config.yaml").write_text(f"a: {number}")
        assert set_aside(folder, "config.yaml", "a: 9") == tmp_path / f"run-{number}"
        assert (
            not folder.exists()
            and (tmp_path / f"run-{number}" / "config.yaml").read_text() == f"a: {number}"
        )
