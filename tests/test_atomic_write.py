import pytest

from mask_former.atomic_write import replace_file


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with replace_file(path) as file:
        file.write(b"new and longer")
        assert path.read_text() == "old"
    assert path.read_text() == "new and longer"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with pytest.raises(interruption), replace_file(path) as file:
        file.write(b"ne")
        raise interruption
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
