"""Text from data is shown literally on a card and cannot become markup."""

import html
import re

import pytest

from hf_gist.hub.markdown import Verbatim, code, fenced, text


HOSTILE = [
    "a|b",
    "a\nb\n---\ntags: [x]",
    "`tick`",
    "</details><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "[click](https://evil.example)",
    "https://evil.example www.evil.example",
    "<!-- hf-gist:end -->",
    "**bold** _x_ ~y~ $z$ # h",
    "\u202egnp.exe\u0000\x1b[31m",
    "&lt;b&gt;",
    "\\`",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_in_data_is_markup(value):
    for shown in (code(value), text(value)):
        inside = re.sub(r"^<code>|</code>$|^`|`$", "", shown)
        bare = re.sub(r"&#\d+;", "", inside)
        if shown.startswith("`"):
            # a code span holds plain names only, and a URL in it is not a link
            bare = bare.replace("://", "").replace("www.", "")
        assert not re.search(r"[`|<>{}\[\]()*_~$\\\n\r\x00\x1b\u202e]|&|://|www\.|--", bare)
        # rendered, it is the text itself
        assert html.unescape(inside) == " ".join(re.sub(r"[\x00-\x1f\u202e]", " ", value).split())


def test_names_stay_readable_and_short():
    assert code("openai/gsm8k") == "`openai/gsm8k`" and code("") == "(empty)"
    assert text(3) == "3" and text("12.5%") == "12.5%" and text(Verbatim("**ours**")) == "**ours**"
    assert len(html.unescape(code("<" * 500))) == 120 + len("<code></code>")


def test_a_code_block_cannot_be_ended_from_inside():
    block = fenced("a\n````\n</details>\n```", "yaml").splitlines()
    assert block[0] == "`````yaml" and block[-1] == "`````" and block[1:-1] == ["a", "````", "</details>", "```"]
