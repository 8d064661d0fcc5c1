"""Files and folders that a command writes at its end, checked at its start: a wrong name loses no measurement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """A file to write, whose folder exists."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses a file in a folder that does not exist or cannot be written to."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not file.parent.is_dir():
            self.fail(f"{str(file)!r}: there is no folder {str(file.parent)!r}.", param, ctx)
        if not file.exists() and not os.access(file.parent, os.W_OK):
            self.fail(f"{str(file)!r}: the folder cannot be written to.", param, ctx)
        return file


class OutputFolder(click.Path):
    """A folder to write to, which is there or can be made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses a folder below a file, or below a folder that cannot be written to."""
        folder = Path(os.fsdecode(super().convert(value, param, ctx)))
        above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            self.fail(
                f"{str(folder)!r} cannot be made: {str(above)!r} is no folder that can be written to.", param, ctx
            )
        return folder
