"""Files of logs stay whole where the disk is full."""

import csv
import errno
import os

import pytest

from attention_zoo.tasks.training.loggers.file_loggers import WholeRowsWriter


def rows(path):
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("failing", [1, 2])  # the new header, or the new row
def test_rows_that_cannot_be_written_wait_and_leave_the_file_whole(tmp_path, monkeypatch, failing):
    writer, path = WholeRowsWriter(str(tmp_path)), tmp_path / "metrics.csv"
    writer.log_metrics({"a": 1.0}, 0)
    writer.save()
    write, calls = csv.DictWriter.writerows, []

    def fail(self, rows):
        calls.append(rows)
        write(self, rows)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer.log_metrics({"a": 2.0, "b": 3.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", fail)
        with pytest.raises(OSError, match="No space"):
            writer.save()
    assert [x["a"] for x in rows(path)] == ["1.0"]
    writer.save()
    saved = rows(path)
    assert [(x["step"], x["a"], x["b"]) for x in saved] == [("0", "1.0", ""), ("1", "2.0", "3.0")]
    assert [x.name for x in tmp_path.iterdir()] == ["metrics.csv"]
