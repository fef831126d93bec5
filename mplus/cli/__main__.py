"""``python -m mplus.cli``: the ``mplus`` command where there is no script of that name."""

from mplus.cli.app import main

main()
