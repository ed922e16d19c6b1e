"""Files of jobs: whatever is in them, they are jobs, or lines that say what is wrong and where."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import WrongJobFile, read_jobs
from broker.files import formats
from broker.jobs.files.job_file import SIZE_LIMIT, parse_jobs
from schemas import Command, Job, WallClock, everyone, group

PLAIN = '{"command": {"argv": ["true"]}, "targets": ["all"]}'
LARGE = PLAIN.replace('"true"', ", ".join(['"true"', *['"' + "x" * 100_000 + '"'] * 11]))
SUFFIXES = ["jobs.json", "jobs.yaml", "jobs.toml", "stdin"]

NO_TARGET = "is not a target: use all, group:NAME or workstation:NAME"
NO_TIME = "is not a time: write 2026-11-30T02:00Z, +10m, now, or '2026-11-30T02:00 local'"
NO_DURATION = "'long' is not a duration: write 30s, 5m, 2h or 1h30m"
YAML = """\
jobs:
- name: Office update
  command: {argv: [/opt/update, --all], background: true, timeout: 5m}
  targets: [all]
  excluded: ["group:lab"]
  mandatory_at: 2026-12-01T02:00 local
- command:
    argv:
    - df -h | tail -1
    shell: yes
    success_exit_codes: [0, 2]
  targets:
  - group:lab
"""
TOML = """\
[[jobs]]
name = "Office update"
targets = ["all"]
excluded = ["group:lab"]
mandatory_at = "2026-12-01T02:00 local"
[jobs.command]
argv = ["/opt/update", "--all"]
background = true
timeout = "5m"

[[jobs]]
targets = ["group:lab"]
command.argv = ["df -h | tail -1"]
command.shell = true
command.success_exit_codes = [0, 2]
"""
JSON = """\
[
\t{"name": "Office update", "targets": ["all"], "excluded": ["group:lab"],
\t "mandatory_at": {"local": "2026-12-01T02:00"},
\t "command": {"argv": ["/opt/update", "--all"], "background": true, "timeout": 300}},
\t{"targets": ["group:lab"],
\t "command": {"argv": ["df -h | tail -1"], "shell": true, "success_exit_codes": [0, 2]}}
]
"""
DOCUMENTS = YAML.replace("jobs:\n- name", "- name").replace("- command:", "---\n- command:")


def errors(text: str | bytes, name: str = "jobs.yaml") -> list[str]:
    """Return the lines of what is wrong in a file."""
    with pytest.raises(WrongJobFile) as caught:
        parse_jobs(text.encode() if isinstance(text, str) else text, name)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (YAML, "jobs.yml"),
        (DOCUMENTS, "jobs.yaml"),
        (YAML, "stdin"),
        (TOML, "jobs.toml"),
        (JSON, "jobs.json"),
        (JSON, "stdin"),
        ("\ufeff" + JSON, "jobs.json"),
    ],
)
def test_the_same_jobs_in_every_form(text: str, name: str) -> None:
    update, disk = parse_jobs(text.encode(), name)
    assert update.name == "Office update"
    assert update.command == Command(
        argv=("/opt/update", "--all"), background=True, timeout=timedelta(minutes=5)
    )
    assert (update.targets, update.excluded) == ((everyone,), (group("lab"),))
    assert update.mandatory_at == WallClock(local=datetime(2026, 12, 1, 2))  # noqa: DTZ001
    assert disk.command.shell
    assert disk.command.success_exit_codes == {0, 2}
    assert disk.targets == (group("lab"),)
    assert disk.created_at == update.created_at


def test_one_job_is_no_list(tmp_path: Path) -> None:
    """And one that a program wrote is read as it was."""
    job = Job(command=Command(argv=("true",)), targets=(everyone,), expires_at="2100-01-01T00:00Z")  # type: ignore[arg-type]
    file = tmp_path / "job.json"
    file.write_bytes(job.body())
    assert read_jobs(file) == [job]


def test_times_are_reported_from_one_instant() -> None:
    jobs = parse_jobs(
        b"- {command: {argv: [a]}, targets: [all], mandatory_at: now, expires_at: +1h}\n"
        b"- {command: {argv: [a]}, targets: [all], offer_at: +10m, mandatory_at: +1h}\n",
        "jobs.yaml",
    )
    now = jobs[0].mandatory_at
    assert isinstance(now, datetime)
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=30)
    hour = now + timedelta(hours=1)
    assert (jobs[0].expires_at, jobs[1].mandatory_at) == (hour, hour)
    assert jobs[1].offer_at == now + timedelta(minutes=10)


def test_a_toml_time_is_a_time() -> None:
    text = 'targets = ["all"]\nmandatory_at = 2026-12-01T02:00:00+01:00\ncommand.argv = ["a"]\n'
    (job,) = parse_jobs(text.encode(), "job.toml")
    assert job.mandatory_at == datetime(2026, 12, 1, 1, tzinfo=UTC)
    (wrong,) = errors(text.replace("+01:00", ""), "job.toml")
    assert wrong.startswith("job.toml:2: mandatory_at: '2026-12-01T02:00:00': give either a zone")


def test_all_that_is_wrong_is_reported_by_its_line() -> None:
    text = """\
jobs:
- name: one
  command:
    argv: [sleep, 5]
    timeout: long
  targets: all
  background: true
- id: A
  command: {argv: ["true"], envronment: {A: 1}}
  targets: [all, grup:x]
  mandatory_at: tomorrow
- id: a
  command: {argv: ["true"]}
  offer_at: +2h
  mandatory_at: +1h
  targets: [all]
- targets: [all]
- 5
- command: {argv: [a], background: perhaps, timeout: 5m, timeout: 6m}
  targets: [all]
  expires_at: 5
extra: 1
"""
    assert errors(text) == [
        "jobs.yaml:4: jobs[0].command.argv[1]: 5 is not a string: put it in quotes",
        f"jobs.yaml:5: jobs[0].command.timeout: {NO_DURATION}",
        "jobs.yaml:6: jobs[0].targets: 'all' is not a list: write it in [ ]",
        "jobs.yaml:7: jobs[0].background: no such field here; it belongs into command",
        "jobs.yaml:9: jobs[1].command.envronment: no such field; did you mean environment?",
        f"jobs.yaml:10: jobs[1].targets[1]: 'grup:x' {NO_TARGET}",
        f"jobs.yaml:11: jobs[1].mandatory_at: 'tomorrow' {NO_TIME}",
        "jobs.yaml:12: jobs[2].id: 'a' is the id of the job in line 8, too",
        "jobs.yaml:15: jobs[2].mandatory_at: must be after offer_at",
        "jobs.yaml:17: jobs[3].command: is missing",
        "jobs.yaml:18: jobs[4]: is not a job: write a mapping with command and targets",
        "jobs.yaml:19: jobs[5].command.timeout: is a duplicate: it is in line 19, too",
        "jobs.yaml:19: jobs[5].command.background: 'perhaps' is neither true nor false",
        "jobs.yaml:21: jobs[5].expires_at: 5 is not a time: write 2026-11-30T02:00Z, +10m or now",
        "jobs.yaml:22: extra: no such field beside jobs; write it into each job",
    ]


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("", "jobs.json", "jobs.json:1: is not valid JSON: Expecting value"),
        ("", "jobs.yaml", "jobs.yaml: has no jobs: write one, or jobs: [...]"),
        ("# nothing\n", "jobs.toml", "jobs.toml:1: command: is missing"),
        ("jobs: []\n", "jobs.yaml", "jobs.yaml: has no jobs: write one, or jobs: [...]"),
        ("targets: []", "jobs.yaml", "jobs.yaml:1: targets: is empty"),
        ("jobs: {}\n", "jobs.yaml", "jobs.yaml:1: jobs: is not a list of jobs"),
        ("just text", "stdin", "stdin:1: is not a job: write a mapping with command and targets"),
        (b"a: 1\nb: \xff\n", "jobs.yaml", "jobs.yaml:2: is not UTF-8: save it as UTF-8"),
        ("[\n{}", "stdin", "stdin:2: is not valid JSON: Expecting ',' delimiter"),
        ("a:\n\tb: 1\n", "jobs.yaml", "jobs.yaml:2: is not valid YAML: found character '\\t' that"),
        ("a = 1\nb = \n", "jobs.toml", "jobs.toml:2: is not valid TOML: Invalid value"),
        ("a = 1\na = 2\n", "jobs.toml", "jobs.toml:2: is not valid TOML: Cannot overwrite a value"),
        (
            '{"id": "a",\n"id": 2}',
            "jobs.json",
            "jobs.json:2: id: is a duplicate: it is in line 1, too",
        ),
        ('{"id": NaN}', "jobs.json", "jobs.json: is not valid JSON: NaN is not a number"),
        ("a: &x [1]\nb: [*x, *x]\n", "jobs.yaml", "jobs.yaml:2: *x: aliases are not supported"),
        ("a: !!python/name:os.system\n", "jobs.yaml", "jobs.yaml:1: tag:yaml.org,2002:python/name"),
        ("? [a]\n: 1\n", "jobs.yaml", "jobs.yaml:1: a key must be plain text"),
        ("[" * 100_000, "jobs.json", "jobs.json: is nested more than 20 levels deep"),
        ("[" * 100_000, "jobs.yaml", "jobs.yaml:1: is nested more than 20 levels deep"),
        ("- " * 100_000, "jobs.yaml", "jobs.yaml:1: is nested more than 20 levels deep"),
        ("a = " + "[" * 100_000, "jobs.toml", "jobs.toml: is nested more than 20 levels deep"),
        ("a." * 100_000 + "b=1", "jobs.toml", "jobs.toml:1: is nested more than 20 levels deep"),
        ("9" * 5000, "jobs.json", "jobs.json: is not valid JSON: Exceeds the limit"),
        (LARGE, "stdin", "stdin:1: job: 11"),
    ],
)
def test_what_is_no_file_of_jobs_is_reported_in_a_line(
    text: str | bytes, name: str, told: str
) -> None:
    assert any(line.startswith(told) for line in errors(text, name))


def test_aliases_are_no_bomb() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (told,) = errors("\n".join(lines))
    assert "aliases are not supported" in told


def test_a_file_of_more_than_it_may_have_is_refused() -> None:
    (told,) = errors(b" " * (SIZE_LIMIT + 1), "jobs.json")
    assert told == "jobs.json: is over the limit of 20 MB"


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("---\n" * 300_000, "jobs.yaml", ": is over the limit of 1 MB; write it as JSON"),
        (
            "a = 1\n" * 200_000,
            "jobs.toml",
            ": is over the limit of 1 MB; write it as JSON",
        ),
        (
            "---\n" * 1000,
            "jobs.yaml",
            ":334: has too many values for YAML; write it as JSON",
        ),
        (
            "- 1\n" * 1000,
            "jobs.yaml",
            ":998: has too many values for YAML; write it as JSON",
        ),
        ("a = {" + "b." * 6000 + "c=1}", "jobs.toml", ":1: has more than 5,000 dots"),
        ("\na" + " . a" * 6000, "jobs.toml", ":2: has more than 5,000 dots"),
    ],
)
def test_what_would_be_read_for_minutes_is_refused(
    text: str, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_MAX_EVENTS", 1000)
    assert errors(text, name) == [name + told]


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_file_full_of_errors_tells_the_first(name: str) -> None:
    text = "[[jobs]]\ncommand.argv = ['a']\n" * 1500 if name.endswith("toml") else "[%s]"
    told = errors(text.replace("%s", ",\n".join(["{}"] * 1500)), name)
    assert len(told) == 1001
    assert told[0] == f"{name}: has 1,000 errors or more"


def test_lines_of_json_are_found() -> None:
    """Also where JSON is not valid YAML: then an error has its path alone."""
    text = '[\n\t{"targets": ["all"],\n\t "command": {"argv": ["%s"], "x": 1}},\n\t5\n]'
    for char, line, last in (("\\/", ":3", ":4"), ("\\ud83d\\ude00", ":3", ":4"), ("\x7f", "", "")):
        assert errors(text.replace("%s", char), "x.json") == [
            f"x.json{line}: [0].command.x: no such field",
            f"x.json{last}: [1]: is not a job: write a mapping with command and targets",
        ]
    twice = text.replace("%s", "\x7f").replace('"x"', '"argv"')
    assert errors(twice, "x.json") == ["x.json: argv: is twice in one mapping"]


def test_lines_of_toml_are_found_in_tables_and_after_long_strings() -> None:
    text = '''\
[[jobs]]
targets = ["all"]
[jobs.command]
argv = ["""
cwd = "no key of ours"
[jobs]
""", "x"]
cwd = "x"
[[jobs]]
targets = ["all"]
"command" . 'argv' = ["true"]
command.timeout = "long"
[[jobs]]
command = { argv = ["true"], shel = true }
targets = [
    "all",
    "nobody",
]
'''
    assert [line.split(": ")[:2] for line in errors(text, "j.toml")] == [
        ["j.toml:8", "jobs[0].command.cwd"],
        ["j.toml:12", "jobs[1].command.timeout"],
        ["j.toml:14", "jobs[2].command.shel"],
        ["j.toml:15", "jobs[2].targets[1]"],
    ]


def test_an_error_is_one_line_whatever_its_field_is_called() -> None:
    job = {"command": {"argv": ["a"]}, "targets": ["all"]}
    assert errors(json.dumps({**job, "a\nb\x1b[31m": 1}), "x.json") == [
        r"x.json:1: a\nb\x1b[31m: no such field"
    ]
    assert errors(json.dumps({**job, "name": "\ud800"}), "x.json") == [
        r"x.json:1: name: '\ud800' is not UTF-8"
    ]


_KEYS = st.sampled_from([*Job.model_fields, *Command.model_fields, "jobs", "local"]) | st.text()
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["all", "now", "+10m", "2026-12-01T02:00 local", "group:x", "9999-12-31"])
)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner), max_leaves=20
)


def jobs_or_errors(body: bytes, name: str) -> None:
    """Read a file; it has jobs, or lines that say what is wrong."""
    try:
        jobs = parse_jobs(body, name)
    except WrongJobFile as error:
        lines = str(error).splitlines()
        jobs = []
    else:
        lines = []
    assert jobs or lines
    assert all(line.startswith(name) and line.isprintable() for line in lines)


@given(st.binary(), st.sampled_from(SUFFIXES))
def test_any_bytes_are_jobs_or_errors(body: bytes, name: str) -> None:
    jobs_or_errors(body, name)


@given(st.text(alphabet="{}[]:,-'\"#&*!|>%@`?=.\n\t \\ab01~<\x85\u2028"), st.sampled_from(SUFFIXES))
def test_any_text_of_their_signs_is_jobs_or_errors(text: str, name: str) -> None:
    jobs_or_errors(text.encode(), name)


@given(_VALUES, st.sampled_from(["jobs.json", "jobs.yaml", "stdin"]))
def test_any_values_are_jobs_or_errors(value: object, name: str) -> None:
    jobs_or_errors(json.dumps(value).encode(), name)


@given(
    st.dictionaries(_KEYS, _LEAVES),
    st.dictionaries(_KEYS, _LEAVES),
    st.sampled_from(["jobs.json", "jobs.yaml"]),
)
def test_any_fields_of_a_job_are_jobs_or_errors(
    job: dict[str, object], command: dict[str, object], name: str
) -> None:
    whole = {"targets": ["all"], **job, "command": {"argv": ["a"], **command}}
    jobs_or_errors(json.dumps(whole).encode(), name)


_WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1)


_TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0", max_codepoint=0xFFFF)
)


@given(_TEXTS, _WORDS)
def test_what_is_right_comes_back(text: str, word: str) -> None:
    """JSON of nothing but ASCII is YAML, too."""
    job = {"name": text[:200], "command": {"argv": [word, text]}, "targets": ["all"]}
    for name in ("jobs.json", "jobs.yaml"):
        (found,) = parse_jobs(json.dumps(job).encode(), name)
        assert (found.name, found.command.argv) == (text[:200], (word, text))
