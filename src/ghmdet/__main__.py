"""`python -m ghmdet`, which `torchrun -m ghmdet` needs."""

from ghmdet.cli import main

main()
