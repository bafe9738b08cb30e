"""What `python -m gfm_calc...` commands of those who make the packaged model share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import GFMError


def write_new(output: Path, make: Callable[[], str]) -> int:
    """Exit code of a command that writes one new file; make: writes it, and says in words what is in it.

    One line on stderr where the file is there already, or an error of ours or of the system came.
    """
    try:
        if output.exists():
            raise GFMError(f"{output}: is there already")
        said = make()
    except (GFMError, OSError) as error:
        print(f"gfm: error: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {said}")
    return 0
