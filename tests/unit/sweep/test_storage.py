"""Storages: a journal that no kill spoils, a database, and clear errors for what cannot be used."""

import json
from pathlib import Path

import pytest

from amidkd.errors import SettingError
from amidkd.locks import try_lock
from amidkd.sweep import storage
from amidkd.sweep.storage import JOURNAL, open_study


def test_a_line_that_was_cut_off_is_removed_and_the_study_goes_on(sweep_config) -> None:
    config = sweep_config()
    study = open_study(config, ["minimize"])
    study.tell(study.ask(), 1.0)
    journal = Path(config.output.folder) / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x')
    again = open_study(config, ["minimize"])
    again.tell(again.ask(), 2.0)
    assert [trial.value for trial in open_study(config, ["minimize"]).trials] == [1.0, 2.0]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(sweep_config, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    for text in ("dear diary\nall is well\n", '{"a": 1}\n{"b": 2}\n', "[1, 2]\n3\n"):
        file.write_text(text)
        with pytest.raises(SettingError, match=r"notes\.txt is not a sweep's journal"):
            open_study(sweep_config(sweep={"storage": str(file)}), ["minimize"])
        assert file.read_text() == text


def test_a_folder_in_place_of_the_journal_is_refused(sweep_config, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is a folder"):
        open_study(sweep_config(sweep={"storage": str(tmp_path)}), ["minimize"])


def test_a_locked_journal_is_an_error_that_names_it(sweep_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    config = sweep_config()
    lock = try_lock(Path(config.output.folder) / f"{JOURNAL}.lock")
    assert lock is not None
    with pytest.raises(SettingError, match=r"sweep\.journal has been locked by another process"):
        open_study(config, ["minimize"])
    lock.release()
    open_study(config, ["minimize"])


def test_a_database_keeps_the_study(sweep_config, tmp_path: Path) -> None:
    config = sweep_config(sweep={"storage": f"sqlite:///{tmp_path / 'sweeps.db'}"})
    study = open_study(config, ["minimize"])
    study.tell(study.ask(), 3.0)
    assert [trial.value for trial in open_study(config, ["minimize"]).trials] == [3.0]
    with pytest.raises(SettingError, match=r"sweep\.objective"):
        open_study(sweep_config(sweep={"storage": config.sweep.storage, "objective": "perplexity"}), ["minimize"])
    open_study(
        sweep_config(sweep={"storage": config.sweep.storage, "objective": "perplexity", "name": "other"}), ["minimize"]
    )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nosuch://host/x", "no such kind of database"),
        ("sqlite:////nowhere/at/all/x.db", "cannot be used: unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:1/x", "psycopg|cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(sweep_config, address: str, said: str) -> None:
    with pytest.raises(SettingError, match=said) as error:
        open_study(sweep_config(sweep={"storage": address}), ["minimize"])
    assert "secret" not in str(error.value)


def test_a_locked_database_is_an_error(sweep_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    file = tmp_path / "sweeps.db"
    config = sweep_config(sweep={"storage": f"sqlite:///{file}"})
    open_study(config, ["minimize"])
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SettingError, match="database is locked"):
        open_study(config, ["minimize"])
    holder.execute("ROLLBACK")


def test_another_space_or_other_data_than_the_study_was_made_with_is_refused(sweep_config, sweep_world: Path) -> None:
    open_study(sweep_config(), ["minimize"])
    with pytest.raises(SettingError, match=r"sweep\.space\.objective\.alpha"):
        open_study(sweep_config(sweep={"space": {"objective.alpha": [-1.0, 0.0]}}), ["minimize"])
    with pytest.raises(SettingError, match=r"data\.validation: 'held_out"):
        open_study(sweep_config(data={"validation": str(sweep_world / "train.jsonl")}), ["minimize"])
    with pytest.raises(SettingError, match=r"training\.learning_rate: 0\.01 there, 0\.02 now"):
        open_study(sweep_config(training={"learning_rate": 0.02}), ["minimize"])
    # What decides no number may change.
    open_study(
        sweep_config(training={"save_steps": 1}, sweep={"trials": 9, "keep_students": "all"}, kernels={"memory_mb": 8}),
        ["minimize"],
    )
