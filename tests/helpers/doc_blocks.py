"""The blocks of code of a document, and the commands in them."""

import re
import shlex
from typing import NamedTuple

from scemae.cli.main import build_parser

FENCE = re.compile(
    r"(?:^<!-- not run:(?P<reason>.*?)-->\n)?^```(?P<language>python|bash)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOT_CODE = {"math", "text", "bibtex", "{toctree}", "{eval-rst}"}


class Block(NamedTuple):
    """One block of code of a page; `reason`: why it is not run, or None."""

    language: str
    code: str
    reason: str | None
    line: int


def blocks_of(text):
    found = [
        Block(match["language"], match["code"], match["reason"], text.count("\n", 0, match.start("code")) + 1)
        for match in FENCE.finditer(text)
    ]
    fences = re.findall(r"^ *```+ *(\S+)", text, re.MULTILINE)
    code = [language for language in fences if language not in NOT_CODE]
    assert code == [block.language for block in found], f"of the fences {code} only some are understood"
    for block in found:
        assert block.reason is None or block.reason.strip(), f"line {block.line}: not run, but the reason is missing"
    return found


def commands_of(code):
    """The lines of a bash block as words, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def parse_words(words):
    """Parse the words after `scemae`; a renamed option ends in SystemExit."""
    return build_parser(words).parse_args(words)
