"""From text to pipelines."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shell.llmsh.parser import Incomplete, ParseError, parse, parse_partial, quote
from shell.llmsh.syntax import Part, Substitution, Text, Variable

texts = st.text(st.characters(codec="utf-8"), max_size=30)
tricky_texts = st.text(st.sampled_from("a b\t\n'\"\\;&|<>#$`-%"), max_size=20)
plain_words = st.text(st.sampled_from("abcXYZ019_-+=.,:/@%^"), min_size=1, max_size=10)
word_lists = st.lists(st.one_of(texts, tricky_texts), min_size=1, max_size=6)


def list_words(text: str) -> list[list[str]]:
    """The words of each command of a text."""
    return [[word.text for word in pipeline.commands[0].words] for pipeline in parse(text)]


@given(word_lists)
def test_quoted_words_come_back_as_they_were(words: list[str]) -> None:
    """Quoting is the inverse of parsing, whatever the words hold."""
    assert list_words(" ".join(map(quote, words))) == [words]


@given(word_lists)
def test_double_quotes_with_escapes_keep_any_text(words: list[str]) -> None:
    """A text whose special characters are escaped stands between double quotes unchanged."""
    escaped = ["".join("\\" + c if c in '"\\$`' else c for c in word) for word in words]
    assert list_words(" ".join(f'"{word}"' for word in escaped)) == [words]


@given(st.lists(st.lists(plain_words, min_size=1, max_size=3), min_size=1, max_size=5), st.data())
def test_separators_cut_commands_and_ampersand_marks_background(
    commands: list[list[str]], data: st.DataObject
) -> None:
    """Each command ends at `;`, a newline or `&`, and only the last of them means the background."""
    ends = [data.draw(st.sampled_from([";", "\n", "&", " ;\n", " & "])) for _ in commands]
    text = "".join(" ".join(words) + end for words, end in zip(commands, ends, strict=True))
    pipelines = parse(text)
    assert [[word.text for word in p.commands[0].words] for p in pipelines] == commands
    assert [p.is_background for p in pipelines] == ["&" in end for end in ends]
    assert [p.source for p in pipelines] == [" ".join(words) for words in commands]


@given(st.one_of(texts, tricky_texts))
def test_parsing_ends_in_commands_or_a_located_error(text: str) -> None:
    """Any text parses, or fails at a column inside it; commands have a name and words true positions."""
    column, pipelines = 1, ()
    try:
        pipelines = parse(text)
    except ParseError as error:
        column = error.column
    assert 1 <= column <= max(1, len(text))
    for pipeline in pipelines:
        for command in pipeline.commands:
            assert command.words
            for word in command.words:
                assert 0 <= word.start < word.end <= len(text)


@given(st.one_of(texts, tricky_texts))
@example("0|#")
def test_an_unfinished_text_can_be_finished(text: str) -> None:
    """What is called incomplete can be completed by closing the quotation or adding a character."""
    try:
        parse(text)
    except Incomplete:
        endings = ("'", '"', "x", 'x"', ")", "')", '")', ')"', "x)", 'x")')
        endings += tuple("\n" + ending for ending in endings)  # behind a comment
        assert any(is_complete(text + ending) for ending in endings)
    except ParseError:
        pass


def is_complete(text: str) -> bool:
    """Whether no quotation is open in a text; it may hold another error."""
    try:
        parse(text)
    except Incomplete:
        return False
    except ParseError:
        return True
    return True


@given(plain_words, st.one_of(texts, tricky_texts))
def test_a_cursor_sees_the_word_before_it(name: str, word: str) -> None:
    """Completion knows the command and the word in progress, where it starts, and what it holds unquoted."""
    line = f"{name} {quote(word)}"
    partial = parse_partial(line)
    assert (partial.words, partial.current, partial.start) == ((name,), word, len(name) + 1)


@given(plain_words, st.text("ab c;|&#<\n", max_size=10), st.sampled_from("'\""))
def test_a_cursor_sees_into_an_open_quotation(name: str, begun: str, mark: str) -> None:
    """The word in progress is known although its quotation is not closed."""
    partial = parse_partial(f"ps; {name} {mark}{begun}")
    assert (partial.words, partial.current, partial.start) == ((name,), begun, len(name) + 5)


@given(st.one_of(texts, tricky_texts))
def test_completion_parses_anything(text: str) -> None:
    """A half-typed line never raises, and the word to replace lies inside it."""
    partial = parse_partial(text)
    assert 0 <= partial.start <= len(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat << x", "column 5: '<<' is not supported"),
        ("ps >& x", "'>&' is not supported"),
        ("run hi 2> x", "column 8: a number before '>' is not supported"),
        ("ps > ; ps", "column 4: no file name after '>'"),
        ("ps >", "no file name after '>'"),
        ("> x", "no command for '>'"),
        ("| ps", r"column 1: no command before '\|'"),
        ("ps | | ps", r"column 6: no command before '\|'"),
        ("ps | ; ps", "no command before ';'"),
        ("ps && ps & ps", "'&' after '&&' is not supported"),
        ("run ${1}", "after \\$\\{ comes a variable's name"),
        ("  & ps", "column 3: no command before '&'"),
        ("ps; & ps", "no command before '&'"),
    ],
)
def test_operators_without_a_meaning_are_refused_by_name(text: str, message: str) -> None:
    """The error says which operator is not supported, and where it stands."""
    with pytest.raises(ParseError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run 'a | b > c & d; e'", ["run", "a | b > c & d; e"]),
        ('run "say \\"hi\\" for \\$5 \\n"', ["run", 'say "hi" for $5 \\n']),
        ("run it\\'s", ["run", "it's"]),
        ("run a'b c'\"d e\"f", ["run", "ab cd ef"]),
        ("run '' x", ["run", "", "x"]),
        ("run one \\\n two", ["run", "one", "two"]),
        ("run a#b # and a comment; ps", ["run", "a#b"]),
        ("run 'two\nlines'", ["run", "two\nlines"]),
    ],
)
def test_quoting_examples(text: str, words: list[str]) -> None:
    """Quotes, escapes, comments and continued lines mean what they mean in sh."""
    assert list_words(text) == [words]


@pytest.mark.parametrize(
    "text",
    [
        "run 'abc",
        'run "abc',
        "run abc\\",
        'run "a\\"',
        "ps |",
        "ps &&\n",
        "ps || # or",
        "run $(ps",
        'x=$(run "a',
    ],
)
def test_open_quotations_are_incomplete(text: str) -> None:
    """A text that ends inside a quotation asks for more instead of failing for good."""
    with pytest.raises(Incomplete):
        parse(text)


@pytest.mark.parametrize("text", ["", "   ", "# nothing", ";;\n ; ", "\n# a\n"])
def test_nothing_to_do(text: str) -> None:
    """Blanks, comments and empty commands are no commands."""
    assert parse(text) == ()


@given(
    st.lists(st.lists(plain_words, min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(["<", ">", ">>"]), plain_words), max_size=3),
    st.sampled_from(["|", " | ", " |\n"]),
)
def test_pipes_join_commands_and_redirections_name_files(
    commands: list[list[str]], files: list[tuple[str, str]], pipe: str
) -> None:
    """A pipeline has its commands in order, and the last one's files in the order in which they are named."""
    text = pipe.join(" ".join(words) for words in commands)
    text += "".join(f" {operator} {name}" for operator, name in files)
    (pipeline,) = parse(text)
    assert [[word.text for word in command.words] for command in pipeline.commands] == commands
    assert [(r.operator, r.target.text) for r in pipeline.commands[-1].redirections] == files
    assert pipeline.source == text


def test_conditions_belong_to_the_pipeline_after_them() -> None:
    """&& and || are kept with what depends on them; anything else begins afresh."""
    conditions = [pipeline.condition for pipeline in parse("a && b ||\n c | d; e & f")]
    assert conditions == ["", "&&", "||", "", ""]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("run $a", [Variable("a")]),
        ("run 'x $a'", [Text("x $a")]),
        ('run "x ${a}b $?"', [Text("x "), Variable("a"), Text("b "), Variable("?")]),
        ("run it\\$a$5", [Text("it$a$5")]),
        ("run \"$(cat 1 | head ')')!\"", [Substitution("cat 1 | head ')'"), Text("!")]),
        ("run $(echo $(ps))", [Substitution("echo $(ps)")]),
    ],
)
def test_what_words_are_made_of(text: str, parts: list[Part]) -> None:
    """Variables and substitutions stand for something but in single quotes; other dollars are text."""
    (pipeline,) = parse(text)
    assert list(pipeline.commands[0].words[1].parts) == parts


def test_assignments_have_an_unquoted_name() -> None:
    """NAME=value assigns; a quoted name, or one that is no name, does not."""
    (pipeline,) = parse("a=1 _b2='x y' 'c'=3 4d=5 e")
    assert [word.assigns for word in pipeline.commands[0].words] == ["a", "_b2", "", "", ""]


@pytest.mark.parametrize("quote_mark", ["", '"', "'"])
def test_a_paste_of_megabytes_is_one_word(quote_mark: str) -> None:
    """It is taken in runs: character by character it would take minutes."""
    paste = "a" * 3_000_000
    assert list_words(f"{quote_mark}{paste}{quote_mark}") == [[paste]]
