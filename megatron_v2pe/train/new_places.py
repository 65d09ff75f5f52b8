"""Files and folders that the start of a run makes before it trains: a run that is refused leaves none behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_v2pe.base import exit_status
from megatron_v2pe.errors import InUseError, V2PEError


class NewPlaces:
    """What a start makes; what was there before it is never touched."""

    def __init__(self, folders: Iterable[Path], files: Iterable[Path]) -> None:
        """Look which places are not there yet.

        Args:
            folders: those that may be made, with the folders above them.
            files: those that may be made.
        """
        above = (place for folder in folders for place in (folder, *folder.absolute().parents))
        self._folders = sorted({one.absolute() for one in above if not one.exists()}, key=lambda one: -len(one.parts))
        self._files = [file for file in files if not file.exists()]

    def keep(self) -> None:
        """Leave all of them where they are from now on: the run begins."""
        self._files, self._folders = [], []

    def remove(self) -> None:
        """Remove the files, and the folders as far as they are empty."""
        with suppress(OSError):
            for file in self._files:
                file.unlink(missing_ok=True)
        for folder in self._folders:
            with suppress(OSError):  # something else is in it, or it was not made
                folder.rmdir()

    @contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """Remove them where the block ends with an error that a user has to mend.

        Where the folder is in use, what is in it by now is of the run that has begun there meanwhile.
        """
        try:
            yield
        except (V2PEError, OSError) as error:
            if exit_status.of(error) == exit_status.MEND and not isinstance(error, InUseError):
                self.remove()
            raise
