"""CSV tables as text: lines are told, and nothing but a table is taken for one."""

import pytest

from spidask.errors import DataError
from spidask.io.text_tables import read_text_table, whole_numbers


def test_text_and_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("run , index\nr1,07\n\nr2,nan\n")
    table = read_text_table(str(path))
    assert list(table) == ["run", "index"]
    assert table["index"].to_dict() == {2: "07", 3: "", 4: "nan"}
    assert whole_numbers(table["index"][:1], "t.csv").tolist() == [7]
    with pytest.raises(DataError, match=r"t\.csv, line 3: index '' is no whole number"):
        whole_numbers(table["index"], "t.csv")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfer\0u\0n\0", "is no CSV table: 'utf-8' codec"),
        (b"", "is no CSV table: No columns"),
        (b"a,b\n1,2\n1,2,3\n", "is no CSV table: .* line 3"),
        (b"a,b\n1,2,3\n", "more fields than the header"),
    ],
)
def test_other_files_are_refused(tmp_path, content, why):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_text_table(str(tmp_path / "t.csv"))
