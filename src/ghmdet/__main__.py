"""The command, also as `python -m ghmdet`, which `torchrun -m ghmdet` needs."""

from ghmdet.signals import end_at_once, on_stop


def main() -> None:
    """Run the command line; an interrupt is taken from the first import on."""
    on_stop(end_at_once)
    from ghmdet.cli import main

    main()


if __name__ == "__main__":
    main()
