"""The picture of a run's curves: what it draws, and what it leaves in memory."""

import gc
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghmdet.engine.curves import curves_of, draw_curves


def curves(folder: Path, rows: int, loss: str = "{0}.5") -> Path:
    columns = "step,epoch,lr,loss,classification,bbox_regression,grad_norm\n"
    lines = (f"{step},1,.1,{loss.format(step)},1,1,1\n" for step in range(1, rows + 1))
    (folder / "log.csv").write_text(columns + "".join(lines))
    (folder / "metrics.csv").write_text("step,epoch,AP,AP50\n9,1,.1,\n10,1,.2,.3\n")
    draw_curves(folder)
    return folder / "curves.png"


def test_curves_that_were_drawn_leave_no_figure_in_memory(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        assert curves(tmp_path, 10).stat().st_size > 5000
        assert not [each for each in gc.get_objects() if isinstance(each, (Figure, Axes))]
    finally:
        gc.enable()


def test_curves_of_a_long_run_are_the_means_of_what_a_picture_can_show(tmp_path: Path) -> None:
    drawn = curves_of(curves(tmp_path, 7001).parent).axes[0].lines
    steps, loss = drawn[0].get_data()
    assert len(steps) == 1751 and list(steps[:2]) == [2.5, 6.5] and steps[-1] == 7001
    assert list(loss[:2]) == [3.0, 7.0] and loss[-1] == 7001.5
    drawn = curves_of(curves(tmp_path, 2000).parent).axes
    assert list(drawn[0].lines[0].get_xdata()) == list(range(1, 2001))
    assert [list(line.get_xdata()) for line in drawn[1].lines] == [[9, 10], [10]]


def test_damaged_losses_are_left_out_of_the_curves(tmp_path: Path) -> None:
    drawn = curves_of(curves(tmp_path, 3, "{0}e").parent).axes[0].lines
    assert [len(line.get_xdata()) for line in drawn] == [0, 3, 3]
