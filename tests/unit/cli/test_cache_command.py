"""``amidkd cache`` as a user meets it."""

from amidkd.cli import main


def test_cache_and_the_command_that_it_names(run_file, capsys, tmp_path) -> None:
    path = str(run_file())
    assert main(["cache", path, "teacher.kind=cached", "teacher.top_k=5"]) == 0
    printed = capsys.readouterr()
    assert "bytes each before compression" in printed.err
    assert "free on the disk" in printed.err
    assert f"Cache: {tmp_path / 'run' / 'teacher-cache'}" in printed.out
    command = printed.out.split("Next:")[1].split()
    assert command == ["amidkd", "distill", path, "teacher.top_k=5", "teacher.kind=cached"]
    assert main(command[1:]) == 0
    capsys.readouterr()
    assert main(["distill", path, "teacher.kind=cached", "output=other", "teacher.folder=nowhere"]) == 2
    assert "make it with `amidkd cache RUN`" in capsys.readouterr().err
