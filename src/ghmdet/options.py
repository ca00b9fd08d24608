"""How words become options, for the command line and for the arms of a comparison."""

from typing import Any

from cyclopts import App, ArgumentCollection, CoercionError, Parameter
from cyclopts.config import Dict

from ghmdet.errors import Range
from ghmdet.recipes import recipe_settings

BATCH_SIZE, WORKERS = Range(1, 10**6), Range(0, 1000)
"""Pictures at a time, and processes that read them."""


def parser(**more: Any) -> App:
    """An app that gives back what its function returns, and reads numbers and lists as all of ours do."""
    return App(
        help_format="markdown",
        default_parameter=Parameter(negative_iterable=(), parse="^(?!say$)"),  # `say` stays `print`
        config=[_take_recipe, _refuse_rounding],
        result_action="return_value",
        **more,
    )


def _take_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The settings of `--recipe NAME`, for the options that were not given."""
    for argument in arguments:
        if "--recipe" in argument.names and argument.tokens:
            name = argument.tokens[-1].value
            recipe = Dict(recipe_settings(name), source=f"recipe {name}", use_commands_as_keys=False)
            recipe(app, commands, arguments)


def _refuse_rounding(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Cyclopts rounds where a whole number is wanted: 2.7 epochs would become 3."""
    for argument in arguments:
        if "int" in str(argument.hint):
            for token in argument.tokens:
                if "." in token.value:
                    raise CoercionError(argument=argument, token=token, target_type=int)
