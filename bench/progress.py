"""Progress of a run on the terminal; a line a step elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """A bar for each scenario."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = Progress(
            TextColumn("{task.fields[scenario]:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._steps = 0
        self._scenario = ""

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self._shown.stop()

    def begin(self, scenario: str, steps: int) -> None:
        """A scenario of so many steps begins; the last one is done."""
        self._finish()
        self._scenario, self._steps = scenario, 0
        self._task = self._shown.add_task("", total=steps, scenario=scenario)

    def step(self, text: str) -> None:
        """The next step begins."""
        if self._task is not None:
            self._shown.update(self._task, completed=self._steps, description=text)
        if not self._console.is_terminal:
            self._console.print(f"{self._scenario}: {text}")
        self._steps += 1

    def _finish(self) -> None:
        if self._task is not None:
            self._shown.update(self._task, total=self._steps, completed=self._steps, description="done")
