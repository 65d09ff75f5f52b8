"""Whether files exist, found by listing each folder once: one system call for many files instead of one for each."""

from __future__ import annotations

import os

from megatron_v2pe.data.video import look_into
from megatron_v2pe.errors import DataError


class FolderNames:
    """Names of the files in folders, kept once listed."""

    def __init__(self) -> None:
        """Start with nothing listed."""
        self._names: dict[str, frozenset[str]] = {}
        self._reasons: dict[str, str] = {}
        self._frames: dict[str, tuple[str | None, int]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Return the files of a folder; of one that is not there none.

        Where there are any, the empty name is among them: it stands for the folder itself, as `os.path.split` has it.
        """
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        return self._names[folder]

    def why_missing(self, folder: str) -> str:
        """Return why a file is missing from a folder that was listed."""
        return self._reasons.get(folder, "no such file")

    def without_frames(self, folder: str) -> str | None:
        """Return why a folder that is there is no video, None where it is one."""
        return self._look_into(folder)[0]

    def left_out(self, folder: str) -> int:
        """Return how many files of a folder of frames are no frames."""
        return self._look_into(folder)[1]

    def _look_into(self, folder: str) -> tuple[str | None, int]:
        """Return why a folder is no video, and how many files in it are no frames."""
        if folder not in self._frames:
            try:
                found = look_into(folder + "/")
            except DataError as error:
                self._frames[folder] = str(error), 0
            else:
                others = len(found.left_out)
                reason = None if found.frames else f"no frames in the folder, {others} other files"
                self._frames[folder] = reason, others
        return self._frames[folder]

    def _list(self, folder: str) -> frozenset[str]:
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            self._reasons[folder] = "no such folder"
            return frozenset()
        except OSError as error:
            self._reasons[folder] = f"the folder cannot be read: {error.strerror}"
            return frozenset()
        return frozenset([*names, ""] if names else names)
