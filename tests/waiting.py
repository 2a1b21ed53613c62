"""Wait for what another process has to do first, however slow the machine is."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable


def wait_for_answer(url: str, lives: Callable[[], bool]) -> None:
    """Return when a server answers at `url`, whatever it says; each address of a name is tried (localhost has two)."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
    while lives():
        try:
            direct.open(url, timeout=60).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"The server ended before it answered at {url}.")
