"""The bar of a training on stderr: samples a second, time left; plain lines where it is no terminal."""

from __future__ import annotations

from typing import Any

from .progress import Progress


class TrainingBar(Progress):
    """`Progress` whose `step` moves a bar over all epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._epochs = epochs
        self._bar: Any = None
        self._task: Any = None
        if self._console.is_terminal:
            columns = (
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("{task.fields[speed]:,.0f} samples/s, loss {task.fields[loss]:.4f}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._console, transient=True)

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if self._task is not None:
            self._bar.stop()

    def step(self, epoch: int, step: int, steps: int, speed: float, loss: float) -> None:
        """See `train.training_loop.OnStep`."""
        if self._bar is None:
            return
        done = (epoch - 1) * steps + step
        fields = {"epoch": epoch, "epochs": self._epochs, "speed": speed, "loss": loss}
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._epochs * steps, **fields)
        self._bar.update(self._task, completed=done, **fields)
