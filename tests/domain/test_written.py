from __future__ import annotations

import json

from ssclf.domain.written import changes, mark, mark_all, mark_rows


def test_marks_do_not_depend_on_the_form_of_a_file() -> None:
    values = {"b": (1, 2.5, None), 10: {"y": "é", "x": True}, 9: []}
    assert mark(values) == mark(json.loads(json.dumps(values, indent=3)))
    assert mark([1, 2]) != mark([2, 1]) and mark("1") != mark(1)
    rows = [{"path": "a", "label": "HGG", "note": ""}, {"path": "b", "label": "LGG", "note": "x"}]
    turned = [{name: row[name] for name in sorted(row)} for row in rows[::-1]]
    assert mark_rows(rows, "path") == mark_rows(turned, "path")
    assert mark_rows(rows, "path", ("path", "label")) == mark_rows(
        turned, "path", ("label", "absent", "path")
    )


def test_changes_are_told_in_words() -> None:
    rows = [{"path": name, "label": "HGG"} for name in "abcdef"]
    written = mark_rows(rows, "path")
    assert changes(written, written) == ""
    assert changes(written, mark_rows([*rows, rows[0]], "path")) == "a again new"
    changed = [{**row, "label": "LGG"} for row in rows[:4]] + [{"path": "g", "label": "HGG"}]
    assert changes(written, mark_rows(changed, "path")) == "a, b, c, … other, e, f gone, g new"
    assert changes(None, written) and changes([], written)


def test_a_name_that_comes_again_is_a_name_of_its_own() -> None:
    assert list(mark_all([("a", 1), ("a", 1), ("a", 2)])) == ["a", "a again", "a again again"]
