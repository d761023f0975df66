# SPDX-License-Identifier: Apache-2.0
"""The templates in a recipe's strings: Jinja2 expressions over the recipe's variables.

Only what can neither reach a Python object nor grow without bound is allowed: variables, text,
comparisons, conditions, joining, and a few filters. No calls, loops, attributes or arithmetic.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sevkit.errors import RecipeError
from sevkit.library import nearest

_SOURCE_CHARACTERS = 4096
_RESULT_CHARACTERS = 65536
_FILTERS = ("default", "first", "last", "lower", "replace", "trim", "upper")
_ALLOWED = (
    nodes.Add, nodes.And, nodes.Compare, nodes.Concat, nodes.CondExpr, nodes.Const, nodes.Filter,
    nodes.Name, nodes.Not, nodes.Operand, nodes.Or, nodes.Output, nodes.Template,
    nodes.TemplateData,
)  # fmt: skip


class Templates:
    """Renders strings over `variables`, which may use each other."""

    def __init__(self, variables: Mapping[str, str]):
        self._variables = variables
        self._values: dict[str, str] = {}
        self._under_way: list[str] = []
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        filters: dict[str, Any] = {name: self._environment.filters[name] for name in _FILTERS}
        self._environment.filters = filters
        self._environment.globals = {}

    def variable(self, name: str) -> str:
        """The value of a variable. Raises `RecipeError` for a loop and for what `render` does."""
        if name not in self._values:
            if name in self._under_way:
                loop = [*self._under_way[self._under_way.index(name) :], name]
                raise RecipeError(f"the variables use each other in a loop: {' → '.join(loop)}")
            self._under_way.append(name)
            try:
                self._values[name] = self.render(self._variables[name])
            finally:
                self._under_way.pop()
        return self._values[name]

    def render(self, text: str) -> str:
        """`text` with its templates rendered.

        Raises `RecipeError` for an undefined variable, a syntax error, or more than is allowed.
        """
        if "{" not in text:
            return text
        if len(text) > _SOURCE_CHARACTERS:
            raise RecipeError(f"a template of more than {_SOURCE_CHARACTERS} characters")
        try:
            tree = self._environment.parse(text)
            used = self._checked(tree)
            values = {name: self.variable(name) for name in sorted(used & self._variables.keys())}
            rendered = self._environment.from_string(tree).render(values)
        except UndefinedError as error:
            name = str(error).partition("'")[2].partition("'")[0]
            raise RecipeError(
                f"there is no variable '{name}'", hint=nearest(name, self._variables)
            ) from error
        except TemplateSyntaxError as error:
            raise RecipeError(f"the template is wrong: {error.message}") from error
        except RecipeError:
            raise
        except Exception as error:  # whatever an expression over strings can do wrong
            raise RecipeError(f"the template can't be rendered: {error}") from error
        if len(rendered) > _RESULT_CHARACTERS:
            raise RecipeError(f"the template gives more than {_RESULT_CHARACTERS} characters")
        return rendered

    def _checked(self, tree: nodes.Template) -> set[str]:
        """The names that `tree` uses. Raises `RecipeError` for what is not allowed."""
        for node in tree.find_all(nodes.Node):
            if not isinstance(node, _ALLOWED):
                what = type(node).__name__.lower()
                raise RecipeError(
                    f"the template uses '{what}', which is not possible here",
                    hint=f"variables, conditions, ~, and the filters {', '.join(_FILTERS)}",
                )
        return {node.name for node in tree.find_all(nodes.Name)}
