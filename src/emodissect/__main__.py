"""``python -m emodissect``: the installed command."""

from emodissect.app.main import main

if __name__ == "__main__":
    main()
