"""Reads grammars in the JSpeech Grammar Format (W3C note of 5 June 2000), all of it but imports.

::

    #JSGF V1.0;
    grammar coffee;
    public <order> = [please] (make | /2/ give) me {order} <count> <drink> [<with>]*;
    <drink> = latte | flat white {flat_white};
    ...
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from ..errors import SpecError

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<rule><[^<>\s]+>)
      | (?P<weight>/\s*[0-9.eE+-]+\s*/)
      | (?P<tag>\{(?:\\.|[^{}\\])*\})
      | (?P<quoted>"(?:\\.|[^"\\])*")
      | (?P<symbol>[;=|()\[\]*+])
      | (?P<word>[^\s;=|()\[\]{}*+<>"/]+)""",
    re.VERBOSE | re.DOTALL,
)
HEADER = re.compile(r"\ufeff?\s*#JSGF\s+V1\.0[^;\n]*;")


@dataclass(frozen=True)
class Word:
    """A word that is said."""

    text: str


@dataclass(frozen=True)
class Reference:
    """What another rule says; ``<NULL>`` says nothing, ``<VOID>`` can never be said."""

    rule: str


@dataclass(frozen=True)
class Sequence:
    """One after the other; of none: nothing is said."""

    parts: tuple[Expansion, ...]


@dataclass(frozen=True)
class Alternatives:
    """One of them. `weights` are relative, 1 for each where the grammar gives none."""

    parts: tuple[Expansion, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Repeat:
    """As often as one likes, but at least `least` times, 0 or 1."""

    part: Expansion
    least: int


@dataclass(frozen=True)
class Tagged:
    """What is said, and then a tag."""

    part: Expansion
    tag: str


Expansion = Word | Reference | Sequence | Alternatives | Repeat | Tagged
NULL = Sequence(())


@dataclass(frozen=True)
class Grammar:
    """Rules by name; the public ones may be said."""

    name: str
    rules: dict[str, Expansion] = field(default_factory=dict)
    public: tuple[str, ...] = ()


def parse_jsgf(text: str, *, source: str = "grammar") -> Grammar:
    """Read a grammar.

    Parameters
    ----------
    text : str
    source : str
        Where it comes from, for errors.

    Raises
    ------
    SpecError
        The text is no such grammar; says the line, what was expected and what is there.
    """
    return _Parser(text, source).grammar()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


class _Parser:
    """Recursive descent, one method a rule of the format."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        text = unicodedata.normalize("NFC", text)
        header = HEADER.match(text)
        if header is None:
            raise SpecError(
                f"{source}: expected a grammar that begins with #JSGF V1.0; got "
                f"{text.lstrip()[:20]!r}"
            )
        self._tokens = self._split(text, header.end())
        self._at = 0
        self._name = ""

    def _split(self, text: str, position: int) -> list[_Token]:
        tokens = []
        while position < len(text):
            line = text.count("\n", 0, position) + 1
            match = TOKEN.match(text, position)
            if match is None:
                raise SpecError(f"{self._source}, line {line}: cannot read {text[position]!r} here")
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match.group(), line))
            position = match.end()
        return [*tokens, _Token("end", "the end of the grammar", text.count("\n") + 1)]

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> bool:
        """Go on if the next token is one of these."""
        found = self._next.kind in ("symbol", "word") and self._next.text in texts
        self._at += found
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._error(repr(text))

    def _error(self, expected: str) -> SpecError:
        found = self._next
        return SpecError(
            f"{self._source}, line {found.line}: expected {expected}, got {found.text!r}"
        )

    def _kind(self, kind: str, expected: str) -> str:
        if self._next.kind != kind:
            raise self._error(expected)
        self._at += 1
        return self._tokens[self._at - 1].text

    def grammar(self) -> Grammar:
        """The whole file."""
        self._expect("grammar")
        name = self._name = self._kind("word", "the name of the grammar")
        self._expect(";")
        rules: dict[str, Expansion] = {}
        public: list[str] = []
        while self._next.kind != "end":
            if self._next.text == "import":
                raise self._error("a rule (write what would be imported into this file)")
            is_public = self._take("public")
            rule = self._kind("rule", "a rule such as <order>")[1:-1]
            if rule in rules or rule in ("NULL", "VOID"):
                self._at -= 1
                raise self._error("a rule that is not defined already")
            self._expect("=")
            rules[rule] = self._alternatives()
            self._expect(";")
            if is_public:
                public.append(rule)
        if not public:
            raise SpecError(
                f"{self._source}: expected a public rule, got {sorted(rules) or 'none'}"
            )
        return Grammar(name, rules, tuple(public))

    def _alternatives(self) -> Expansion:
        parts, weights = [], []
        while True:
            weight = 1.0
            if self._next.kind == "weight":
                weight = self._weight()
            weights.append(weight)
            parts.append(self._sequence())
            if not self._take("|"):
                break
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts), tuple(weights))

    def _weight(self) -> float:
        text = self._next.text.strip("/ \t\n")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise self._error("a weight of 0 or more between slashes")
        self._at += 1
        return weight

    def _sequence(self) -> Expansion:
        parts = []
        while (part := self._item()) is not None:
            parts.append(self._decorated(part))
        if not parts:
            raise self._error("a word, a <rule> or a group")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self) -> Expansion | None:
        token = self._next
        if self._take("("):
            inner = self._alternatives()
            self._expect(")")
            return inner
        if self._take("["):
            inner = self._alternatives()
            self._expect("]")
            return Alternatives((inner, NULL), (1.0, 1.0))
        if token.kind in ("rule", "word", "quoted"):
            self._at += 1
            if token.kind == "rule":
                return Reference(token.text[1:-1].removeprefix(f"{self._name}."))
            if token.kind == "word":
                return Word(token.text)
            words = re.sub(r"\\(.)", r"\1", token.text[1:-1]).split()
            return Sequence(tuple(map(Word, words)))
        return None

    def _decorated(self, part: Expansion) -> Expansion:
        while True:
            if self._take("*"):
                part = Repeat(part, 0)
            elif self._take("+"):
                part = Repeat(part, 1)
            elif self._next.kind == "tag":
                tag = re.sub(r"\\(.)", r"\1", self._next.text[1:-1]).strip()
                self._at += 1
                part = Tagged(part, tag)
            else:
                return part
