"""``python -m wan_host`` is ``wan-host``."""

from wan_host.cli import main

main()
