"""What a run cost, as a cell's number."""

from pathlib import Path

import pytest

from regbench.tables.costs import training_seconds
from regbench.tables.reductions import RunData


def test_training_seconds_are_those_of_the_one_run():
    run = RunData({"fit_s": 3.25, "duration_s": 5.0, "metrics": {}}, Path())
    assert training_seconds([run], "test/accuracy") == 3.25
    with pytest.raises(ValueError, match="too many values"):
        training_seconds([run, run], "test/accuracy")
