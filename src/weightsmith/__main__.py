"""``python -m weightsmith``."""

from .cli.main import main

main()
