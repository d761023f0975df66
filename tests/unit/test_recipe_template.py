# SPDX-License-Identifier: Apache-2.0
"""What a template can do, and above all what it can't."""

import time

import pytest

from sevkit.errors import RecipeError
from sevkit.recipe.template import Templates

VARIABLES = {"series": "6.12", "empty": "", "long": "x" * 16384}


def rendered(text: str) -> str:
    return Templates(VARIABLES, {}).render(text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("linux-{{ series }}", "linux-6.12"),
        ("{{series}}{{series}}", "6.126.12"),
        ("{{ 'a' if series == '6.12' else 'b' }}", "a"),
        ("{{ 'a' if empty or not series else 'b' }}", "b"),
        ("{{ 'v' ~ series }}", "v6.12"),
        ("{{ series|replace('.', '_')|upper }}", "6_12"),
        ("{{ nothing|default('there') }}", "there"),
        ("{{ series|first }}{{ series|last }}{{ ' x '|trim }}", "62x"),
        ("{{ '{{' }}", "{{"),
        ("{# a comment #}text\n", "text\n"),
        ("no template { at all }", "no template { at all }"),
    ],
)
def test_a_template_renders(text: str, result: str) -> None:
    assert rendered(text) == result


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ series.__class__ }}", "uses an attribute"),
        ("{{ series['__class__'] }}", "uses an index"),
        ("{{ series|attr('__class__') }}", "No filter named 'attr'"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not possible here"),
        ("{{ self._TemplateReference__context }}", "uses an attribute"),
        ("{{ self }}", "no variable 'self'"),
        ("{{ range(10**9) }}", "uses a call"),
        ("{{ cycler() }}", "uses a call"),
        ("{{ range }}", "no variable 'range'"),
        ("{{ 'a' * 10**9 }}", "uses \\*"),
        ("{{ 9 ** 9 ** 9 }}", "uses \\*\\*"),
        ("{{ 1 + 1 }}", "uses \\+"),
        ("{{ '%999999999d' % 1 }}", "uses %"),
        ("{% for x in series %}{% endfor %}", "uses for"),
        ("{% set x = series %}", "uses assign"),
        ("{% include '/etc/passwd' %}", "uses include"),
        ("{% import 'x' as y %}", "uses import"),
        ("{{ series is defined }}", "uses a test with 'is'"),
        ("{{ [series] }}", "uses list"),
        ("{{ series|format }}", "No filter named 'format'"),
        ("{{ long|replace('x', long) }}", "gives more than 16384"),
        ("{{ long|replace('', long) }}", "gives more than 16384"),
        ("{{ 'a'|replace('a', long)|replace('x', long) }}", "gives more than 16384"),
        ("{{ long }}" * 2, "gives more than 16384"),
        ("{{ long }}" * 400, "gives more than 16384"),
        ("{{ series|replace(1, 2) }}", "can't be rendered"),
        ("{{ series|replace }}", "can't be rendered"),
        ("{{ nothing }}", "there is no variable 'nothing'"),
        ("{{ serie }}", "there is no variable 'serie': did you mean 'series'?"),
        ("{{ nothing|replace('a', 'b') }}", "there is no variable 'nothing'"),
        ("{{ series", "the template is wrong"),
        ("{{ }}", "the template is wrong"),
        ("{% nonsense %}", "the template is wrong"),
        ("{# unclosed", "the template is wrong"),
        ("{{ " + "(" * 1900 + "1" + ")" * 1900 + " }}", "nested too deeply"),
        ("{{ " + "not " * 900 + "1 }}", "nested too deeply"),
        ("{{ 'a'" + "|upper" * 600 + " }}", "nested too deeply"),
        ("{{ " + "1" * 4096 + " }}", "a template of more than 4096 characters"),
    ],
)
def test_a_template_that_reaches_too_far_is_refused_at_once(text: str, why: str) -> None:
    templates = Templates(VARIABLES, {})
    started = time.process_time()
    with pytest.raises(RecipeError, match=why):
        templates.render(text)
    assert time.process_time() - started < 5


def test_variables_can_not_grow_by_using_each_other() -> None:
    variables = {f"v{n}": f"{{{{ v{n + 1} }}}}" * 9 for n in range(20)} | {"v20": "x" * 9}
    templates = Templates(variables, {})
    assert max(len(value) for value in templates.values.values()) <= 16384
    assert any("more than 16384" in error.what for error in templates.errors.values())


def test_a_loop_of_variables_is_found_and_its_users_are_not_blamed() -> None:
    templates = Templates({"a": "{{ b }}", "b": "{{ a }}", "c": "{{ a }}", "d": "fine"}, {})
    assert "a → b → a" in templates.errors["a"].what
    assert templates.values == {"d": "fine"}


def test_very_many_templates_are_refused() -> None:
    templates = Templates({}, {})
    for _ in range(1000):
        templates.render("{{ 'x' }}")
    with pytest.raises(RecipeError, match="more than 1000 templates"):
        templates.render("{{ 'x' }}")
    assert templates.render("plain") == "plain"
