"""``python -m vitquant``: the command line, where its script is not on the path."""

from vitquant.cli.main import main

raise SystemExit(main())
