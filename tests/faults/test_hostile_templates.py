"""A chat template comes with a checkpoint: whatever it tries ends in an error, soon, and in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.errors import DataError
from pellucid.text import template as process
from pellucid.text import template_worker
from pellucid.text.template import render

# What a template may take in these tests. Each of those that take more ends by itself, too, within seconds and without
# harm; the limits of real ones are as many times larger as what a stranger could ask for.
SMALL = {"MAX_TEXT": 20_000, "MAX_TEMPLATE": 20_000, "MEMORY": 160 << 20}
SHORT = 0.1  # seconds, for those that are to run out of time
LOOPS = "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='a') %}{% for i in range(28) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
MUCH = "200000000"  # characters

# what it tries, the template, what the message says
HOSTILE = [
    ("class of a string", "{{ ''.__class__.__mro__ }}", "at line 1: .*unsafe"),
    ("globals of a class", "\n{{ cycler.__init__.__globals__.os }}", "at line 2: .*unsafe"),
    ("globals of a function", "{{ raise_exception.__globals__.os }}", "unsafe"),
    ("code of a function", "{{ strftime_now.__code__.co_consts }}", "unsafe"),
    ("the context", "{{ self._TemplateReference__context.eval_ctx.environment }}", "at line 1"),
    ("a frame", "{{ (messages | map('upper')).gi_frame.f_globals }}", "unsafe"),
    ("attr", "{{ (''|attr('__class__')).__mro__ }}", "at line 1"),
    ("map by attribute", "{{ ([''] | map(attribute='__class__') | first).__mro__ }}", "at line 1"),
    ("format", "{{ '{0.__class__.__mro__}'.format('') }}", "at line 1"),
    ("format_map", "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}", "at line 1"),
    ("a namespace", "{% set ns = namespace() %}{% set ns._hidden = 1 %}", "no attribute '_hidden'"),
    ("a namespace made so", "{{ namespace({'_hidden': 1}) }}", "no attribute '_hidden'"),
    ("changing its input", "{{ messages.append(1) }}", "unsafe"),
    ("include", "{% include 'other' %}", "no loader"),
    ("import", "{% import 'other' as os %}", "no loader"),
    ("from import", "{% from 'other' import name %}", "no loader"),
    ("extends", "{% extends 'other' %}", "no loader"),
    ("opening a file", "{{ open('other').read() }}", "'open' is undefined"),
    ("random text", "{{ lipsum() }}", "'lipsum' is undefined"),
    ("nested loops", LOOPS, "did not finish within 0.1 s"),
    ("one long step", "{{ 3 ** 4000000 % 10 }}", "did not finish within 0.1 s"),
    ("a number written out", "{{ 10 ** 9999 }}", "4300 digits"),
    ("recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("recursive loop", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "RecursionError"),
    ("itself a block", "{% block a %}{{ self.a() }}{% endblock %}", "RecursionError"),
    ("a string times", f"{{{{ 'a' * {MUCH} }}}}", "more memory"),
    ("a list times", "{{ [0] * 30000000 }}", "more memory"),
    ("doubling", DOUBLING, "more memory"),
    ("center", f"{{{{ 'a' | center({MUCH}) }}}}", "more memory"),
    ("indent", f"{{{{ 'a\nb' | indent({MUCH}) }}}}", "more memory"),
    ("ljust", f"{{{{ 'a'.ljust({MUCH}) }}}}", "more memory"),
    ("percent format", f"{{{{ '%{MUCH}d' | format(1) }}}}", "more memory"),
    ("format width", f"{{{{ '{{:{MUCH}}}'.format(1) }}}}", "more memory"),
    ("range", "{{ range(10 ** 9) | list }}", "at line 1: .*Range too big"),
    ("a long text", "{% for i in range(99) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 20,000 characters"),
    ("a long template", "x" * 20_001, "20,001 characters long; at most 20,000"),
    ("many brackets", "{{ " + "(" * 2000 + ")" * 2000 + " }}", "RecursionError|not valid Jinja"),
    ("deep tree", "{{ " + "-" * 2000 + "1 }}", "RecursionError|broke its process|not valid Jinja"),
    ("syntax", "a\nb\n{% if %}", "not valid Jinja at line 3"),
    ("an unknown tag", "{% exec 'x' %}", "not valid Jinja at line 1.*unknown tag 'exec'"),
    ("an unknown filter", "{{ 'x' | pickle }}", "No filter named 'pickle'"),
    ("not closed", "{% for m in messages %}", "not valid Jinja"),
    ("what is not there", "{{ messages[0].content.text.more }}", "at line 1: .*has no attribute"),
    ("wrong types", "{{ 'a' + 1 }}", "at line 1: TypeError"),
    ("its own exception", "{{ raise_exception('no ' * 1000) }}", "refuses this conversation at line 1: (no ){100}"),
]
on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux lets a process bound its own memory"
)
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def small_limits() -> Iterator[None]:
    """A worker with ``SMALL`` limits."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(process, name, value)
        process._end()  # the next one starts with these
        yield
        process._end()


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(("source", "problem"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_template_ends_in_an_error(source: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.perf_counter()
    with monkeypatch.context() as patch:
        if "finish" in problem:
            patch.setattr(process, "SECONDS", SHORT)
        with pytest.raises(DataError, match=problem) as caught:
            render(source, {"messages": MESSAGES})
    assert time.perf_counter() - start < process.SECONDS + 2
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000
    assert render("{{ messages[0].content }}", {"messages": MESSAGES}) == "Hello", "the next template is none the worse"


def test_limits_of_real_templates_are_far_above_their_needs_and_bounded() -> None:
    assert process.SECONDS <= 3 and process.MEMORY <= 512 << 20
    assert process.MAX_TEXT <= 1 << 23 and process.MAX_TEMPLATE <= 1 << 18


def test_its_words_have_no_power_over_the_terminal() -> None:
    with pytest.raises(DataError) as caught:
        render("{{ raise_exception('no\\x1b[2J\\x07\\u202eon') }}", {})
    assert caught.value.problem.endswith(": no [2J  on")


LEAKS = ["{{ ''|attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}", "{{ self._TemplateReference__context }}"]


@pytest.mark.parametrize("source", LEAKS)
def test_names_hidden_by_the_sandbox_are_empty(source: str) -> None:
    assert render(source, {}) == ""


@on_linux
@pytest.mark.parametrize("source", [DOUBLING, "{% for i in range(99) %}{{ 'a' * 1000000 }}{% endfor %}"])
def test_memory_is_bounded_on_both_sides(source: str) -> None:
    program = (
        "import re, resource, sys\nfrom pellucid.text import template\n"
        f"template.MEMORY, template.MAX_TEXT = {SMALL['MEMORY']}, 1 << 20\n"
        "try: template.render(sys.argv[1], {})\nexcept ValueError as error: print(error, file=sys.stderr)\n"
        "template._end()\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, source], capture_output=True, text=True, check=True)
    assert "more " in done.stderr
    here, there = (int(kilobytes) << 10 for kilobytes in done.stdout.split())
    assert here < 200 << 20
    assert there < SMALL["MEMORY"]


@on_linux
def test_the_limits_hold_even_outside_the_sandbox() -> None:
    """As if a template had escaped: the process where it is opens no file and no connection, and ends at a limit."""
    memory = SMALL["MEMORY"]
    tries = {
        "read": "open('/etc/hostname')",
        "write": "open('escaped', 'w')",
        "connect": "socket.socket()",
        "allocate": f"bytearray({memory})",
    }
    program = "import sys; sys.path.insert(0, {path!r}); import template_worker, socket; {confine}; {code}"
    path = str(Path(template_worker.__file__).parent)
    confine = f"template_worker.confine({memory})"

    def tried(code: str, confine: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program.format(path=path, code=code, confine=confine)],
            capture_output=True, text=True, timeout=60, cwd=os.environ.get("TMPDIR", "/tmp"),
        )  # fmt: skip

    for name, code in tries.items():
        free, held = tried(code, "pass"), tried(code, confine)
        assert free.returncode == 0, f"control: {name} works without limits: {free.stderr}"
        assert held.returncode != 0
        assert ("MemoryError" if name == "allocate" else "Too many open files") in held.stderr


def test_a_worker_that_died_is_replaced() -> None:
    render("a", {})
    worker = process._process
    assert worker is not None
    worker.child.kill()
    worker.child.wait()
    assert render("b", {}) == "b"
    assert process._process is not worker


def test_an_interruption_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(answers: object) -> None:
        raise KeyboardInterrupt

    render("a", {})
    with monkeypatch.context() as patch:
        patch.setattr(process, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render("first", {})
    assert render("second", {}) == "second", "not the answer to the first"


def test_threads_get_their_own_answers() -> None:
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        got[number] = render("{{ number }}", {"number": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: str(number) for number in range(16)}


def test_a_worker_ends_with_its_parent() -> None:
    program = (
        "from pellucid.text import template as t; import os; t.render('a', {});"
        "print(t._process.child.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return  # it has ended; whoever adopts it has yet to notice
        time.sleep(0.05)
    raise AssertionError("the worker outlived its parent")
