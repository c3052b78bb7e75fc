"""The YAML: what is refused, and with which words."""

import pytest

from flow_factory.config import ConfigError, load_config
from tests.config.cases import BAD, GOOD


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[f"{k}-{case[2][0]}" for k, case in enumerate(BAD)])
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(load, old, new, said):
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    with pytest.raises(ConfigError) as error:
        load(text)
    message = str(error.value)
    (line,) = [line for line in message.splitlines() if said[0] in line]
    for part in said:
        assert part in line
    if marked:
        assert f"run.yaml:{marked[0]}: " in line


def test_the_table_of_mistakes_starts_from_a_good_config(load):
    assert load().notices == ()


def test_all_mistakes_are_reported_together_in_the_order_of_the_file(load):
    text = GOOD.replace("num_processes: 2", "num_processes: two").replace("group_size: 8", "group_siz: 8").replace("flux1", "flux9")
    with pytest.raises(ConfigError) as error:
        load(text.replace("max_epochs: 5", "learning_rate: 1e-4"))
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["num_processes", "model.model_type", "train.learning_rate"]


def test_all_rules_are_reported_together(load):
    with pytest.raises(ConfigError) as error:
        load(GOOD.replace("group_size: 8", "group_size: 6").replace("Flow-SDE", "ODE"))
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["scheduler.dynamics_type", "train.group_size"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "not a mapping"),
        (b"model: {a: 1\n", "not valid YAML"),
        (b"a: 1\nb: \xe9\n", "run.yaml:2: not UTF-8"),
        (b"? [a]\n: 1\n", "a key must be text"),
        (b"a: 1\n---\nb: 1\n", "run.yaml:2: not valid YAML"),
        (b"a: \x07\n", "not valid YAML"),
        (b"a: &x [*x]\n", "alias"),
        (b"a: !!python/object:os.system {}\n", "not valid YAML"),
        (b"a: !!set {b}\n", "run.yaml:1: not valid YAML: a config has no values of the kind tag:yaml.org,2002:set"),
        (b"a: 1\nb: " + b"9" * 5000, "b: is too large; a whole number is at most 9223372036854775807"),
        (b"a: !!bool 3\n", "not valid YAML: a value is not a number, or not what its tag says"),
        (b"a: 1\nb: " + b"[" * 3000 + b"]" * 3000, "run.yaml:2: not valid YAML: nested more than 32 deep"),
        (
            b"a: &a [x, x, x, x, x, x, x, x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (k, k, b", ".join([b"*%c" % (k - 1)] * 8)) for k in b"bcdefgh"),
            "more than 50000 values, with those of its aliases",
        ),
        (b'a: 1\nb: \'x\\n\n"\\ud83d"\'\nc: "\\ud83d"\n', "run.yaml:4: not valid YAML: the character 0xd83d cannot be used"),
        (b'a: "\\U7fffffff"\n', "no character has the number that an escape names"),
        (b"model: 3\nmixed_precision: 'no'\n", "model: wants a mapping of keys to values, got 3"),
    ],
)
def test_a_file_that_is_no_configuration_is_said_to_be_none(tmp_path, content, said):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_a_message_is_one_line_whatever_it_quotes(load):
    """A terminal obeys some characters, and others end the line."""
    with pytest.raises(ConfigError) as error:
        load(GOOD + f'"a\\tb\\x1b\\u2028c": 1\neval_rewards: {"x" * 5000}\n')
    assert len(str(ConfigError("a/" * 5000))) < 2100
    one, other = str(error.value).splitlines()
    assert r"a\tb\x1b\u2028c: unknown key" in one and one.isprintable()
    assert "eval_rewards: " in other and other.endswith("(5002 characters)") and len(other) < 500


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    (tmp_path / "flux.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no such file.*flux\.yaml"):
        load_config(tmp_path / "flx.yaml")
    with pytest.raises(ConfigError, match="a folder, where a YAML file belongs"):
        load_config(tmp_path)
