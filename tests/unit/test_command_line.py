"""The command line without Spark: help and its examples, wrong names, completion, colours, --quiet, --log-file."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from itertools import takewhile
from pathlib import Path

import pytest
from bad_inputs import Done, in_this_process
from conftest import ROOT

from spark_dbp import cli, open_run
from spark_dbp.commands import choose, output
from spark_dbp.commands.ending import tell_next, to_document
from spark_dbp.commands.parsers import list_commands
from spark_dbp.engine import java_output
from spark_dbp.engine.held_signals import hold_signals
from spark_dbp.errors import InputError
from spark_dbp.explore.sweep import sweep
from spark_dbp.settings import redact_arguments

RUN = ROOT / "tests/data/run-format-1"
COMMANDS = list_commands(cli.make_parser())


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def command(capsys):
    return lambda *arguments: in_this_process(list(arguments), capsys)


# Help.


def examples_of(name: str) -> list[str]:
    text = COMMANDS[name].epilog or ""
    return re.findall(r"^  spark-dbp (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_help_parse(name):
    examples = examples_of(name)
    assert 1 <= len(examples) <= 4
    for line in examples:
        words = list(takewhile(lambda word: word not in (">", "|"), shlex.split(line, comments=True)))
        assert words[0] == name
        assert cli.make_parser().parse_args(words).command_name == name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_takes_the_options_of_all(name):
    known = COMMANDS[name]._option_string_actions
    assert {"--quiet", "--log-file", "--debug", "--json", "--help"} <= set(known)


def test_main_help_has_every_command_and_the_exit_codes(command):
    done = command("--help")
    assert done.code == 0
    assert all(re.search(rf"^    {name}\b", done.out, re.MULTILINE) for name in COMMANDS)
    assert all(f"\n  {code}  " in done.out for code in range(5))


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from spark_dbp import cli\n"
        "try: cli.main(['sweep', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pyspark', 'numpy', 'pyarrow', 'pandas', 'pydantic', 'yaml', 'difflib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swep", "RUN"], ["invalid choice: 'swep'", "did you mean sweep?"]),
        (["sweep", "RUN", "--kepp-ratio", "0.1"], ["--kepp-ratio", "did you mean --keep-ratio?", "sweep --help"]),
        (["sweep", "RUN", "--keep-ration=0.1"], ["did you mean --keep-ratio?"]),
        (["--quite", "verify", "RUN"], ["--quite", "did you mean --quiet?"]),
        (["verify", "RUN", "xyzzy"], ["unrecognized arguments: xyzzy", "spark-dbp verify --help"]),
        (["completion", "bsh"], ["did you mean bash?"]),
        (["verify"], ["RUN", "to mend it"]),
        ([], ["COMMAND", "to mend it"]),
    ],
)  # fmt: skip
def test_wrong_names_get_the_nearest(command, arguments, words):
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert all(word in done.err for word in words)


def test_what_is_like_no_name_gets_no_proposal(command):
    assert "did you mean" not in command("xyzzy").err


@pytest.mark.parametrize(
    "words",
    [
        ["k1", "k2", "--json"], ["--json", "k1", "k2"], ["k1", "--json", "k2"], ["k1", "--json", "--", "k2"],
    ],
)  # fmt: skip
def test_keys_may_follow_options(words):
    parsed = cli.make_parser().parse_args(["explain", "RUN", *words])
    assert (parsed.run, parsed.keys, parsed.json) == ("RUN", ["k1", "k2"], True)
    assert cli.make_parser().parse_args(["explain", "RUN", "--json", "--", "-k", "--"]).keys == ["-k", "--"]


# Completion.

TRY = """
source {script}
compopt() {{ :; }}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_spark_dbp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "spark_dbp", "completion", shell],
            capture_output=True, text=True, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        (folder / shell).write_text(done.stdout)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sw"], ["sweep"]),
        ([""], list(COMMANDS)),
        (["--log-file", "run", "sel"], ["select"]),
        (["sweep", "--keep"], ["--keep-ratio"]),
        (["sweep", "RUN", "--complexity", "d_intra*"], ["d_intra*d_inter"]),
        (["run", "conf.yaml", "--set", "prune.which"], ["prune.which_to_keep="]),
        (["run", "--set", "a", "=", "1", "cluster.n_c"], ["cluster.n_clusters="]),
        (["export", "RUN", "--to", "tx"], ["txt"]),
        (["import", "datac"], ["datacomp"]),
        (["completion", "z"], ["zsh"]),
        (["verify", "--q"], ["--quiet"]),
        (["run", ""], []),  # names of files: bash does it
    ],
)  # fmt: skip
def test_bash_completes(scripts, tmp_path, words, found):
    script = TRY.format(script=scripts / "bash", words=shlex.join(["spark-dbp", *words]))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == found
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_name_every_command_and_option(scripts, shell):
    text = (scripts / shell).read_text()
    for name, parser in COMMANDS.items():
        assert re.search(rf"\b{name}\b", text)
        for option in parser._option_string_actions:
            assert (option if shell == "zsh" else option.lstrip("-")) in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", scripts / shell], check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes(scripts):
    code = f"source {scripts / 'fish'}; complete -C 'spark-dbp sw'; complete -C 'spark-dbp sweep --keep'"
    done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["sweep", "--keep-ratio"]


# Output.


@pytest.fixture
def shown(monkeypatch):
    """Prints to a terminal, or what takes its place."""

    def show(text: str, stream: io.StringIO, **environment: str) -> str:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout", stream)
        output.print_text(text)
        return stream.getvalue()

    return show


def test_colours_on_a_terminal_only(shown):
    plain = "ok  files\nhint        keep fewer\nkept        3\n"
    assert "\x1b[32mok\x1b[0m  files" in shown(plain, Terminal(), TERM="xterm")
    assert "\x1b[33mhint\x1b[0m  " in shown(plain, Terminal(), TERM="xterm", NO_COLOR="")
    assert shown(plain, Terminal(), TERM="xterm", NO_COLOR="1") == plain + "\n"
    assert shown(plain, Terminal(), TERM="dumb") == plain + "\n"
    piped = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    output_of = shown_bytes(shown, plain, piped)
    assert output_of == (plain + "\n").encode()


def shown_bytes(shown, text: str, stream: io.TextIOWrapper) -> bytes:
    stream.getvalue = lambda: ""  # type: ignore[attr-defined]
    shown(text, stream, TERM="xterm")
    stream.flush()
    return stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_what_would_steer_a_terminal_is_written_out(shown):
    assert "\\x1b[2J" in shown("kept  \x1b[2J", Terminal(), TERM="xterm")


def test_text_that_the_output_cannot_encode_is_escaped(shown):
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert shown_bytes(shown, "key é漢", latin) == "key é\\u6f22\n".encode("latin-1")


def test_numbers_that_json_does_not_have(capsys):
    output.print_json({"a": [float("nan"), 1.5, float("inf")], "b": "token=abc", 3: None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, None], "b": "token=(redacted)", "3": None}


@pytest.mark.parametrize("width", [200, 80, 60])
def test_a_table_fits_the_terminal(width):
    lines = sweep(open_run(RUN), [0.1, 0.5], [0.1, 1]).format(width).splitlines()
    table = [
        line for line in lines[1:] if line.lstrip()[:1].isdigit() or line.lstrip().startswith("keep_ratio")
    ]
    assert len(table) == 6
    assert max(map(len, table)) <= width
    assert all(name in table[0] for name in ("keep_ratio", "temperature", "kept"))
    assert any(line.startswith("left out, for the terminal is narrow: ") for line in lines) == (width < 200)


def test_results_are_as_wide_as_they_get_when_piped(command):
    done = command("sweep", RUN, "--keep-ratio", "0.1")
    assert "mean distance" in done.out
    assert "left out" not in done.out


# --quiet and --log-file.


@pytest.fixture
def chatty(monkeypatch):
    """A command that tells things, and fails when it is asked to."""

    def sweep_loudly(parsed) -> int:
        log = logging.getLogger("spark_dbp")
        log.debug("fine print")
        log.info("reading s3://AKIA:abc@bucket/x")
        log.warning("a warning")
        warnings.warn("a library warns of token=hunter2", stacklevel=1)
        print("result")
        if parsed.dedup_to:
            raise InputError("it is refused: password=hunter2", mend="do better")
        if parsed.csv:
            raise RuntimeError("a bug, token=hunter2")
        return 0

    monkeypatch.setattr(choose, "_sweep", sweep_loudly)


FAILS = ["--dedup-to", "3"]


@pytest.mark.parametrize("before", [True, False])
def test_quiet_shows_the_result_and_errors(command, chatty, before):
    def give(*more: str) -> Done:
        return command(*(["-q", "sweep", RUN] if before else ["sweep", RUN, "--quiet"]), *more)

    assert give() == Done(0, "result\n", "")
    failed = give(*FAILS)
    assert (failed.code, failed.out) == (3, "result\n")
    assert failed.err == "spark-dbp: it is refused: password=(redacted)\n  to mend it: do better\n"


def test_the_log_file_has_everything(command, chatty, tmp_path):
    path = tmp_path / "a b.log"
    path.write_text("before\n")
    done = command("sweep", RUN, "--log-file", path, "--quiet", *FAILS)
    assert (done.code, done.err.count("\n")) == (3, 2)
    text = path.read_text()
    assert text.startswith("before\n")
    for words in (
        "DEBUG fine print", "INFO reading s3://(redacted)@bucket/x", "WARNING a warning", "a library warns of token=(redacted)", "Traceback",
        "InputError: it is refused: password=(redacted)", "exit code 3", "DEBUG spark-dbp sweep",
    ):  # fmt: skip
        assert words in text
    assert "hunter2" not in text
    assert "result" not in text.replace("InputError", "")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO ", text, re.MULTILINE)
    assert not logging.getLogger("spark_dbp").handlers


def test_a_log_file_makes_the_terminal_no_louder(command, chatty, tmp_path):
    done = command("--log-file", tmp_path / "x.log", "sweep", RUN, "--csv", "x.csv")
    assert done.code == 1
    assert "fine print" not in done.err
    assert "a library warns" in done.err
    assert "Traceback" not in done.err
    assert "RuntimeError: a bug, token=(redacted)" in done.err
    assert "Traceback" in (tmp_path / "x.log").read_text()


@pytest.mark.parametrize("place", ["none/x.log", "", "file/x.log", "~nobody-of-that-name/x.log"])
def test_a_log_file_that_cannot_be_written(command, chatty, tmp_path, place):
    (tmp_path / "file").write_text("")
    done = command("sweep", RUN, "--log-file", place if place.startswith("~") else tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert "--log-file" in done.err
    assert "to mend it" in done.err


SECRETS = [
    "spark.my.password=abc,LEAK", "spark.hadoop.fs.s3a.secret.key=ab&LEAK", "spark.y.secret=abc LEAK",
    "spark.z.password=o'LEAK", "spark={spark.my.password: LEAK}", "embed={options: {hub_token: LEAK}}",
    "embed={options: {hub_token: LEAK", "input.path=s3://AKIA:LEAK@bucket/x",
]  # fmt: skip


def test_secrets_of_arguments_are_not_written_down(command, chatty, tmp_path):
    done = command("sweep", RUN, "--log-file", tmp_path / "x.log", "--set", *SECRETS, f"--set={SECRETS[0]}")
    assert done.code == 0
    assert redact_arguments(["--keep-ratio", "0.1,0.2", "a.b={x: 1}"]) == [
        "--keep-ratio",
        "0.1,0.2",
        "a.b={x: 1}",
    ]
    text = (tmp_path / "x.log").read_text()
    assert "LEAK" not in text
    assert text.splitlines()[0].count("(redacted)") == len(SECRETS) + 1


def test_no_log_file_in_a_run_directory(command, chatty):
    done = command("sweep", RUN, "--log-file", RUN / "tables/x.log")
    assert (done.code, done.out) == (2, "")
    assert "lies in the run directory" in done.err
    assert not (RUN / "tables/x.log").exists()


def start_in_shell(line: str) -> subprocess.CompletedProcess:
    line = f"{sys.executable} -m spark_dbp {line}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_leaves_the_exit_code(tmp_path):
    done = start_in_shell(f"sweep {shlex.quote(str(RUN))} --keep-ratio 0.1 --json --log-file /dev/full")
    assert (done.returncode, len(json.loads(done.stdout))) == (0, 1)
    assert done.stderr.count("cannot write --log-file") == 1
    assert "Traceback" not in done.stderr


def test_closed_streams_leave_the_exit_code():
    run = shlex.quote(str(RUN))
    done = start_in_shell(f"sweep {run} --keep-ratio 7 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
    done = start_in_shell(f"sweep {run} --keep-ratio 0.1 >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_signals_are_held_back_while_java_starts():
    with pytest.raises(KeyboardInterrupt), hold_signals():
        signal.raise_signal(signal.SIGINT)
        is_held = True
    assert is_held
    with pytest.raises(KeyboardInterrupt), hold_signals():  # who insists need not wait
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        is_held = False
    assert is_held
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_others_log_is_shown_but_for_py4j_on_a_ctrl_c(command, monkeypatch):
    def log_of_others(parsed) -> int:
        logging.error("KeyboardInterrupt while sending command.")
        logging.getLogger("py4j.java_gateway").error("gateway")
        logging.getLogger("other").warning("a bucket is slow")
        return 0

    monkeypatch.setattr(choose, "_sweep", log_of_others)
    assert command("sweep", RUN).err == "a bucket is slow\n"
    assert command("sweep", RUN, "--quiet").err == ""


def test_who_closes_the_pipe_early_gets_no_trace():
    assert start_in_shell(f"sweep {shlex.quote(str(RUN))} --keep-ratio 0.1 --json | true").stderr == ""


# What a local Java says.

PLAIN = [
    "WARNING: Using incubator modules: jdk.incubator.vector",
    'Setting default log level to "WARN".',
    "\x1fINFO Executor: two lines\\nsecret.key=hunter2",
    "12:00:00 ERROR Utils: a disk is full",
    "ValueError in a worker",
]


@pytest.mark.parametrize(
    ("options", "shown", "kept"),
    [([], PLAIN[3:], []), (["--debug"], [*PLAIN[:2], *PLAIN[3:]], []), (["--log-file", "java.log"], PLAIN[3:], PLAIN)],
)  # fmt: skip
def test_noise_of_java_goes_to_the_log_file_only(tmp_path, options, shown, kept):
    """A program that is started as Java is, and writes on after its start."""
    (tmp_path / "java.py").write_text(
        "import sys, time\n"
        f"lines = {PLAIN!r}\n"
        "print('to stdout', flush=True)\n"
        "[print(line, file=sys.stderr, flush=True) for line in lines[:2]]\n"
        "time.sleep(0.3)\n"
        "[print(line, file=sys.stderr, flush=True) for line in lines[2:]]\n"
    )
    (tmp_path / "main.py").write_text(
        "import subprocess, sys, time\n"
        "from spark_dbp import cli\n"
        "from spark_dbp.commands import choose\n"
        "from spark_dbp.engine.java_output import pass_on_java_output\n"
        "def start(parsed):\n"
        "    with pass_on_java_output():\n"
        "        java = subprocess.Popen([sys.executable, 'java.py'])\n"
        "        print('from Python', file=sys.stderr, flush=True)\n"
        "    java.wait(); time.sleep(0.2)\n"
        "    print('result')\n"
        "    return 0\n"
        "choose._sweep = start\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "main.py", "sweep", "RUN", *options], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert sorted(done.stderr.splitlines()) == sorted(["from Python", "to stdout", *shown])
    text = (tmp_path / "java.log").read_text() if kept else ""
    for line in kept:
        first, _, second = line.lstrip("\x1f").partition("\\n")
        assert f"DEBUG java: {first}" in text
        assert "hunter2" not in text
        assert not second or "    secret.key=(redacted)" in text


def test_without_the_command_line_nothing_is_redirected():
    with java_output.pass_on_java_output():
        pass
    assert java_output.choose_log_options() == []


# The end of a run.


def test_commands_at_the_end_can_be_pasted(tmp_path):
    place = tmp_path / "a run's [dir]"
    shutil.copytree(RUN, place)
    run = open_run(place)
    lines = re.findall(r"spark-dbp (.*)$", tell_next(run), re.MULTILINE)
    names = [shlex.split(line)[0] for line in lines]
    assert names == ["report", "sweep", "select", "explain", "verify"]
    for line in lines:
        assert cli.make_parser().parse_args(shlex.split(line)).run == str(place)


def test_the_document_of_a_run():
    document = json.loads(json.dumps(to_document(open_run(RUN))))
    assert document["accounting"]["kept"] == 16
    assert [row["cluster_id"] for row in document["clusters"]]
    assert document["hints"] == []
