"""The list of bad data: test_data_bad_input.py holds what each case does to what is asked of all of them."""

import pytest

CORPUS = []  # (what, make(root) -> flags or None, what the line must hold, what --skip-bad does: "counts" or "refuses")


def case(says, skip_bad="counts"):
    def keep(make):
        CORPUS.append(pytest.param(make, says, skip_bad, id=make.__name__))
        return make

    return keep
