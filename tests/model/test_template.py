"""Chat templates, as transformers renders them."""

import pytest

from edgeagent.errors import ModelError
from edgeagent.model.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi <b> é"}, {"role": "assistant", "content": "yes"}]


def render(text, messages=MESSAGES, **tokens):
    return ChatTemplate(text, tokens, "tokenizer_config.json").render(messages)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>hi <b> é"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hi <b> é"}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% for m in messages %}{% if loop.index0 %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", "x"),
        ("{% generation %}a{{ 1 + 1 }}{% endgeneration %}b", "a2b"),
        ("{%- if tools is none and documents is none %}none{% endif %}", "none"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% if strftime_now is defined %}{{ strftime_now('%%') }}{% endif %}", "%"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ pad_token is defined }}", "False"),
    ],
)
def test_what_templates_use_is_there(text, want):
    assert render(text, bos_token="<s>") == want


def test_the_date_is_todays():
    assert render("{{ strftime_now('%Y') }}").isdecimal()


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('roles must\n alternate') }}",
        "{% if %}",
        "{{ messages[9]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ {}['a' * 3].b }}",
        "{{ 'a'.format_map(messages[0]).x.y }}",
        "{% generation %}",
    ],
)
def test_what_fails_is_one_line(text):
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template: ") as caught:
        render(text)
    assert "\n" not in str(caught.value)


def test_the_reason_of_a_template_is_passed_on():
    with pytest.raises(ModelError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_template_cannot_change_what_people_wrote():
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises(ModelError):
        render("{{ messages[0].update({'content': 'x'}) }}", messages)
    assert messages == MESSAGES
