"""Python loads this when it starts: a process of a contender counts from its first moment on."""

import os

if "YARDSTICK_COUNTS" in os.environ:
    from yardstick import hooks

    hooks.install()
