"""Tables for people."""

from pipelines.runtime import console


def test_in_a_log_a_path_is_whole_and_text_is_no_markup(capsys):
    path = "/images/[bold]/" + "x" * 150
    console.show({"best_checkpoint": path})
    console.show_rows([["what", "where"], ["[red]", path]])
    lines = [line for line in capsys.readouterr().out.splitlines() if path in line]
    assert [line.split()[1:3] for line in lines] == [["best", "checkpoint"], ["[red]", "│"]]


def test_numbers_are_rounded_and_lists_take_a_line_each(capsys):
    console.show(
        {
            "epochs": 1200,
            "top1": 0.5,
            "seconds": 1234.56,
            "runs": ["a", "b"],
            "search_score": {"x": 1.23456789, "y": 3.8e7},
        }
    )
    lines = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["epochs", "1,200"],
        ["top-1", "50.00 %"],
        ["seconds", "1,234.6"],
        ["runs", "a"],
        ["", "b"],
        ["search score", "x 1.2346, y 3.8e+07"],
    ]
