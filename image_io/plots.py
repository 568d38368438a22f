"""Plots by matplotlib, written as PNG."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from system.files import replaced


@contextlib.contextmanager
def plotted(path: Path, rows: int, columns: int, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes (rows, columns) to draw into; write them to path at the end.

    All rows share their x axis; options are those of matplotlib's `subplots`. The folder of path
    must exist.

    Raises:
        OSError: path cannot be written.
    """
    import matplotlib  # here, because it loads slowly and usage errors do not need it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, sharex=True, squeeze=False, **options)
    yield figure, axes
    with replaced(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    pyplot.close(figure)
