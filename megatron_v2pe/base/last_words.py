"""What a process that ends for an error leaves where PyTorch's torchrun looks for it, and shows it last on the screen.

Our own launcher needs none of it: it stays silent where a process has said what has to be mended.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable in which torchrun names a file for each of its processes."""


def leave(text: str) -> None:
    """Leave an error for the launcher; only the first of a process is kept, as that one has ended it.

    Args:
        text: the message as it was printed, `error: ...`.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    record = {"message": {"message": text.strip(), "extraInfo": {"timestamp": str(int(time.time()))}}}
    with suppress(OSError), open(path, "x", encoding="utf-8") as file:
        json.dump(record, file)
