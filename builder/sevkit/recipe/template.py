# SPDX-License-Identifier: Apache-2.0
"""The templates in a recipe's strings: Jinja2 expressions over the recipe's variables.

Only what can neither reach a Python object nor grow without bound is allowed: variables, text,
comparisons, conditions, joining, and a few filters. No calls, loops, attributes or arithmetic.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sevkit.errors import RecipeError
from sevkit.recipe.library import nearest

_SOURCE_CHARACTERS = 4096
_RESULT_CHARACTERS = 16384
_TEMPLATES = 1000
_DEPTH = 32
_FILTERS = ("default", "first", "last", "lower", "replace", "trim", "upper")
_ALLOWED = (
    nodes.And,
    nodes.Compare,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Filter,
    nodes.Name,
    nodes.Not,
    nodes.Operand,
    nodes.Or,
    nodes.Output,
    nodes.Template,
    nodes.TemplateData,
)
_WRONG = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(SyntaxError, TypeError, ValueError),
)
"""What an expression over strings can do wrong."""
_WORDS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "pow": "**",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "call": "a call",
    "getattr": "an attribute",
    "getitem": "an index",
    "test": "a test with 'is'",
}


class BrokenVariableError(RecipeError):
    """A template uses a variable that is itself in trouble."""


class Templates:
    """Renders strings over variables.

    `variables` are templates and may use each other; one that is None is known to be no text.
    `given` ones are text, taken as it is, and come before variables of the same name. Afterwards
    `values` has what each stands for, and `errors` why it stands for nothing.
    """

    def __init__(self, variables: Mapping[str, str | None], given: Mapping[str, str]):
        self.values: dict[str, str] = dict(given)
        self.errors: dict[str, RecipeError] = {}
        self._variables = {**variables, **given}
        self._under_way: list[str] = []
        self._count = 0
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        filters: dict[str, Any] = {name: self._environment.filters[name] for name in _FILTERS}
        self._environment.filters = {**filters, "replace": _replace}
        self._environment.globals = {}
        for name in sorted(variables):
            self._resolve(name)

    def render(self, text: str) -> str:
        """`text` with its templates rendered.

        Raises `RecipeError` for an undefined variable, a syntax error, or more than is allowed.
        """
        if "{" not in text:
            return text
        self._count += 1
        if self._count > _TEMPLATES:
            raise RecipeError(f"more than {_TEMPLATES} templates in one recipe")
        if len(text) > _SOURCE_CHARACTERS:
            raise RecipeError(f"a template of more than {_SOURCE_CHARACTERS} characters")
        try:
            tree = self._environment.parse(text)
            used = self._checked(tree)
            if "self" in used:  # Jinja's name for the template, an object
                raise UndefinedError("'self' is undefined")
            values = {name: self._value(name) for name in sorted(used & self._variables.keys())}
            rendered = self._environment.from_string(tree).render(values)
        except RecipeError:
            raise
        except UndefinedError as error:
            name = str(error).partition("'")[2].partition("'")[0]
            raise RecipeError(
                f"there is no variable '{name}'{nearest(name, self._variables)}"
            ) from error
        except TemplateSyntaxError as error:
            raise RecipeError(f"the template is wrong: {error.message}") from error
        except RecursionError as error:
            raise RecipeError("the template is nested too deeply") from error
        except _WRONG as error:
            raise RecipeError(f"the template can't be rendered: {error}") from error
        if len(rendered) > _RESULT_CHARACTERS:
            raise RecipeError(f"the template gives more than {_RESULT_CHARACTERS} characters")
        return rendered

    def _value(self, name: str) -> str:
        self._resolve(name)
        if name not in self.values:
            raise BrokenVariableError(f"uses the variable '{name}', which has no value")
        return self.values[name]

    def _resolve(self, name: str) -> None:
        text = self._variables[name]
        if name in self.values or name in self.errors or text is None:
            return
        if name in self._under_way:
            loop = self._under_way[self._under_way.index(name) :]
            chain = " → ".join([*loop, name])
            self.errors[name] = RecipeError(f"variables use each other in a loop: {chain}")
            return
        if len(self._under_way) == _DEPTH:
            self.errors[name] = RecipeError(f"variables use each other more than {_DEPTH} deep")
            return
        self._under_way.append(name)
        try:
            self.values[name] = self.render(text)
        except RecipeError as error:
            self.errors.setdefault(name, error)
        finally:
            self._under_way.pop()

    def _checked(self, tree: nodes.Template) -> set[str]:
        """The names that `tree` uses. Raises `RecipeError` for what is not allowed."""
        for node in tree.find_all(nodes.Node):
            if not isinstance(node, _ALLOWED):
                kind = type(node).__name__.lower()
                raise RecipeError(
                    f"the template uses {_WORDS.get(kind, kind)}, which is not possible here: "
                    f"only variables, conditions, ~, and the filters {', '.join(_FILTERS)}"
                )
        return {node.name for node in tree.find_all(nodes.Name)}


def _replace(text: str, old: str, new: str) -> str:
    """Jinja's `replace`, refused where the result would be too long."""
    length = len(text) + text.count(old) * (len(new) - len(old))
    if length > _RESULT_CHARACTERS:
        raise RecipeError(f"the template gives more than {_RESULT_CHARACTERS} characters")
    return text.replace(old, new)
