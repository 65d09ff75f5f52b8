"""Errors a user can mend. Each names the file, line or tensor and the numbers that disagree."""


def how_to_install(extra: str) -> str:
    """Return, for a message, the command that installs one of the extras of `setup.py`; the package is on no index."""
    return f"sh scripts/setup_venv.sh {extra}, or pip install -e '.[{extra}]', in the checkout"


class V2PEError(ValueError):
    """Base of every error caused by input a user can change."""


class ConfigError(V2PEError):
    """A configuration that cannot run: unknown key, impossible parallel layout, inconsistent V2PE fields."""


class InUseError(ConfigError):
    """A folder that is held by a process that lives."""


class DataError(V2PEError):
    """A sample, image or annotation file that cannot be used."""


class TrainingError(V2PEError):
    """A run that cannot go on: its loss or gradients are no longer finite."""


class NonFiniteError(V2PEError):
    """A model whose logits are no numbers: its answers would be noise, however often it is asked."""


class CheckpointError(V2PEError):
    """A checkpoint that is incomplete, damaged, unsafe, or of another architecture."""


class SpaceError(CheckpointError):
    """No room on the disk for what has to be written; the same command goes on once there is."""


class LayoutError(V2PEError):
    """Tokens, positions or tiles that do not fit the layout of a pack over ranks."""


class CommunicationError(V2PEError):
    """A process of the run that no longer answers."""


class MemoryShortageError(V2PEError):
    """A prompt that needs more memory than there is."""


class LostProcessError(V2PEError):
    """A reader or worker process that was killed; the same command goes on."""
