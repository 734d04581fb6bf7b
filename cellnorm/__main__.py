"""`python -m cellnorm` is the command `cellnorm`."""

from cellnorm.cli import main

if __name__ == "__main__":
    main(prog_name="cellnorm")
