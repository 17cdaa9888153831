"""Each row of the matrix has its tests, and the page shows the table of today."""

import ast

from tests.faults.matrix import PAGE, ROOT, ROWS, TABLE, format_table, in_matrix


def test_every_row_names_tests_that_there_are() -> None:
    assert len(ROWS) == 26
    for row in ROWS:
        assert row.tests
        for test in row.tests:
            file, function = test.split("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test
            assert in_matrix(f"tests/{test}[any-1]")
    assert not in_matrix("tests/faults/test_matrix.py::test_every_row_names_tests_that_there_are")


def test_the_page_shows_the_table() -> None:
    found = TABLE.search(PAGE.read_text())
    assert found is not None and found[0] == format_table(), "python -m tests.faults.matrix writes it"
