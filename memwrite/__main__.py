"""`python -m memwrite`."""

from memwrite.cli.main import main

main(prog_name="memwrite")
