#!/usr/bin/env python3
"""Put single faults into the package, one at a time, and see whether the tests notice.

    python tools/mutants.py [NAME ...]   the faults of tests/mutants.toml, or those of these modules
                                         (`sde`), functions (`sde.marginal_sample`) or names
    python tools/mutants.py check        list the faults whose text no longer stands in the package

First the tests run once without a fault, and it is noted which statements each of them reaches.
Then every fault meets, in a fork of this process and on a copy of the package, the tests that
reach its statement: those of its module first, the quick ones before the slow, until one fails.
"""

import argparse
import ast
import builtins
import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "amtutorial"
ELSEWHERE = "site", "explorer", "colab", "install", "frame"  # of pages, and of the package's text
BUDGET = 20  # seconds of the processor for tests of other modules that one fault may meet
MEMORY = 12 * 2**30  # address space of a fork: a fault may ask for all there is


# The table


def functions(tree, before=""):
    "Name -> node of all functions and classes, as in `Class.method`."
    found = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found |= {before + node.name: node} | functions(node, f"{before}{node.name}.")
    return found


def statement(node, line):
    "First line of the innermost statement of a function that a line belongs to."
    inner = [s for s in ast.walk(node) if isinstance(s, ast.stmt) and s is not node]
    starts = [s.lineno for s in inner if s.lineno <= line <= s.end_lineno]
    return max(starts, default=node.body[-1].lineno)


def locate(fault, text):
    "Completes a fault with the mutated module and its statement, or with what is wrong with it."
    node = functions(ast.parse(text)).get(fault["in"])
    if node is None:
        return fault | dict(wrong="there is no such function")
    lines = text.splitlines(keepends=True)
    start, end = (len("".join(lines[:n])) for n in (node.lineno - 1, node.end_lineno))
    n = text.count(fault["old"], start, end)
    if n != 1:
        return fault | dict(wrong=f"the old text occurs {n} times: {fault['old']!r}")
    at = text.index(fault["old"], start)
    mutated = text[:at] + fault["new"] + text[at + len(fault["old"]) :]
    return fault | dict(text=mutated, line=statement(node, text.count("\n", 0, at) + 1))


def faults(names=()):
    "The faults of the table that `names` ask for (all if there are none), each located."
    table = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    found = []
    for module, entries in table.items():
        text, seen = (ROOT / PACKAGE / f"{module}.py").read_text(encoding="utf-8"), Counter()
        for entry in entries:
            place = f"{module}.{entry['in']}"
            seen[place] += 1
            name = f"{place}#{seen[place]}"
            if not names or {module, place, name} & set(names):
                found.append(locate(entry | dict(name=name, module=module), text))
    return found


# Which statements a test reaches


class Marking(importlib.machinery.SourceFileLoader):
    "Loads a module with a note before each statement of a function; lines stay where they are."

    def path_stats(self, path):
        raise OSError("no byte code")

    def source_to_code(self, data, path, *_, **__):
        tree, module = ast.parse(data), self.name.rpartition(".")[2]
        within = {n for f in functions(tree).values() for n in ast.walk(f)}
        for node in within - {n for n in within if isinstance(n, (ast.ClassDef, ast.Lambda))}:
            for block in "body", "orelse", "finalbody":
                if isinstance(getattr(node, block, None), list):
                    setattr(node, block, self.marked(getattr(node, block), module))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    @staticmethod
    def marked(statements, module):
        out = []
        for s in statements:
            if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)):
                note = ast.parse(f"__reached__({module!r}, {s.lineno})").body
                out += [ast.copy_location(n, s) for n in note]
            out.append(s)
        return out


class Finder(importlib.abc.MetaPathFinder):
    "Finds the modules of the package in a tree."

    def __init__(self, tree):
        self.tree = tree

    def find_spec(self, name, path=None, target=None):
        file = Path(self.tree, *name.split(".")).with_suffix(".py")
        if not name.startswith(f"{PACKAGE}.") or not file.is_file():
            return None
        return importlib.util.spec_from_file_location(name, file, loader=Marking(name, str(file)))


def watch(tree, reached):
    "From now on modules of the package in `tree` call `reached(module, line)`."
    builtins.__reached__ = reached
    sys.meta_path.insert(0, Finder(tree))


def watch_a_child():
    "The same in a process that a test starts; it writes to the file that its parent named."
    seen, file = set(), os.open(os.environ["REACHED"], os.O_WRONLY | os.O_APPEND)

    def reached(module, line):
        if (module, line) not in seen:
            seen.add((module, line))
            os.write(file, f"{module} {line}\n".encode())

    watch(os.environ["TREE"], reached)


class Survey:
    "A plugin of pytest: for each test its outcome, its seconds and the statements it reaches."

    def __init__(self, tree):
        self.now, self.tests, self.failed = set(), {}, set()
        self.shared, self.cost = defaultdict(set), Counter()  # by file or fixture
        self.file = Path(os.environ["REACHED"])
        watch(tree, lambda *at: self.now.add(at))

    @contextlib.contextmanager
    def during(self, kept):
        before, self.now = self.now, set()
        try:
            yield
        finally:
            for line in self.file.read_text().splitlines():
                module, number = line.split()
                self.now.add((module, int(number)))
            self.file.write_text("")
            kept |= self.now
            self.now |= before

    def wrap(self, kept, name):
        began = spent()
        with self.during(kept):
            result = yield
        self.cost[name] += spent() - began
        return result

    def collected(self, file):
        return self.shared[Path(file).name]

    def plugin(self):
        import pytest

        class Plugin:
            @pytest.hookimpl(wrapper=True)
            def pytest_make_collect_report(_, collector):  # importing a test may compute
                here = isinstance(collector, pytest.Module)
                kept = self.collected(collector.path) if here else set()
                return (yield from self.wrap(kept, collector.path))

            @pytest.hookimpl(wrapper=True)
            def pytest_fixture_setup(_, fixturedef, request):  # others use it, too
                if fixturedef.scope == "function":
                    return (yield)
                return (yield from self.wrap(self.shared[fixturedef], fixturedef))

            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_protocol(_, item, nextitem):
                began, kept, before = spent(), set(), self.cost.total()
                with self.during(kept):
                    result = yield
                    end_workers()
                cost = spent() - began - (self.cost.total() - before)
                for fixtures in item._fixtureinfo.name2fixturedefs.values():
                    kept |= set().union(*(self.shared[f] for f in fixtures))
                    cost += sum(self.cost[f] for f in fixtures)  # whoever comes first pays
                kept |= self.collected(item.path)
                self.tests[item.nodeid] = dict(seconds=round(cost, 3), reached=sorted(kept))
                return result

            def pytest_runtest_logreport(_, report):
                if report.failed:
                    self.failed.add(report.nodeid)

        return Plugin()


def spent():
    "Of the processor, used so far by this process and the children that it has waited for."
    return sum(os.times()[:4])


def end_workers():
    "Let joblib start new processes for the next test, which say again what they reach."
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    if loky and loky._executor is not None:
        loky._executor.shutdown(wait=True)


# Forks


def preload():
    "Import what package and tests import from elsewhere, once for all forks."
    files = [*(ROOT / PACKAGE).glob("*.py"), *test_files(), ROOT / "tests" / "conftest.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                here = (ROOT / "tests" / f"{name.split('.')[0]}.py").exists()
                if name.split(".")[0] != PACKAGE and not here:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(name)
    from hypothesis import settings

    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile("same")


def test_files():
    left_out = {f"test_{name}.py" for name in ELSEWHERE}
    return sorted(p for p in (ROOT / "tests").glob("test_*.py") if p.name not in left_out)


def make_tree(folder):
    "A checkout of which package and tests are copies and everything else is a link."
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in (PACKAGE, "tests"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name[0] != ".":
            (folder / path.name).symlink_to(path)
    return folder


def fork(tree, cache, job):
    "Run `job()` in a fork that sees the package of `tree`; its return value is the exit status."
    if pid := os.fork():
        return pid
    status = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        log = os.open(tree / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in 1, 2:
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        path = [str(tree), str(tree / "tests")]
        sys.path[:0] = path
        os.environ |= dict(PYTHONPATH=path[0], AMTUTORIAL_CACHE=str(cache), TREE=path[0])
        os.environ |= dict(OMP_NUM_THREADS="1", TQDM_DISABLE="1", MPLBACKEND="agg")
        status = int(job())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_pytest(plugin, *words):
    import pytest

    return pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *words], plugins=[plugin])


class Chosen:
    "A plugin of pytest: only these tests, in this order; says which one failed."

    def __init__(self, names, file):
        self.rank, self.file = {name: i for i, name in enumerate(names)}, file

    def pytest_collection_modifyitems(self, items):
        chosen = [item for item in items if item.nodeid in self.rank]
        items[:] = sorted(chosen, key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.file.write_text(report.nodeid)


def in_forks(tasks, trees):
    "Run (name, start, limit) side by side, a tree each; yields name, status, seconds, CPU, tree."
    tasks, free, running = list(tasks)[::-1], list(trees), {}
    try:
        yield from _in_forks(tasks, free, running)
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)


def _in_forks(tasks, free, running):
    while tasks or running:
        while tasks and free:
            name, start, limit = tasks.pop()
            tree = free.pop()
            running[start(tree)] = name, tree, time.monotonic(), limit
        time.sleep(0.02)
        for pid, (name, tree, began, limit) in list(running.items()):
            seconds = time.monotonic() - began
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if not done and seconds < limit:
                continue
            with contextlib.suppress(ProcessLookupError):  # also what it has started
                os.killpg(pid, signal.SIGKILL)
            if not done:
                _, status, usage = os.wait4(pid, 0)
            del running[pid]
            free.append(tree)
            code = os.waitstatus_to_exitcode(status)
            yield name, code, seconds, usage.ru_utime + usage.ru_stime, tree


# The two runs


def digest(*paths):
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()


def survey(trees, cache, kept):
    "Test -> seconds and statements reached, of tests that pass; those that fail. May be kept."
    known = json.loads(kept.read_text()) if kept and kept.exists() else {}
    package, help = sorted((ROOT / PACKAGE).glob("*.py")), ROOT / "tests" / "helpers.py"
    keys = {f.name: digest(f, help, *package) for f in test_files()}

    def start(name):
        def job(tree):
            hooks = tree / "hooks"
            hooks.mkdir(exist_ok=True)
            load = f"import sys; sys.path.append({str(ROOT / 'tools')!r}); import mutants"
            (hooks / "sitecustomize.py").write_text(f"{load}; mutants.watch_a_child()")
            (tree / "reached.txt").write_text("")
            os.environ["REACHED"] = str(tree / "reached.txt")
            os.environ["PYTHONPATH"] += f":{hooks}"
            seen = Survey(tree)
            run_pytest(seen.plugin(), f"tests/{name}")
            result = dict(tests=seen.tests, failed=sorted(seen.failed))
            (tree / "survey.json").write_text(json.dumps(result))

        return lambda tree: fork(tree, cache, lambda: job(tree) or 0)

    new = [name for name in keys if known.get(name, {}).get("key") != keys[name]]
    tasks = [(name, start(name), 1800) for name in new]
    for name, code, seconds, _, tree in in_forks(tasks, trees):
        if code:
            log = (tree / "log.txt").read_text()
            sys.exit(f"{name} cannot be run (status {code}):\n{log[-3000:]}")
        known[name] = json.loads((tree / "survey.json").read_text()) | dict(key=keys[name])
        print(f"{name}: {len(known[name]['tests'])} tests in {seconds:.0f} s", flush=True)
        if kept:
            kept.write_text(json.dumps(known))
    tests = {t: v for name in keys for t, v in known[name]["tests"].items()}
    failed = [t for name in keys for t in known[name]["failed"]]
    return {t: v for t, v in tests.items() if t not in failed}, failed


def choose(fault, tests):
    "Names of the tests that a fault meets, in order, and their seconds."
    at, own = [fault["module"], fault["line"]], f"tests/test_{fault['module']}.py::"
    able = [t for t in tests if at in tests[t]["reached"]]
    quick = sorted(able, key=lambda t: (not t.startswith(own), tests[t]["seconds"]))
    chosen, others = [], 0.0
    for t in quick:
        others += 0 if t.startswith(own) else tests[t]["seconds"]
        if others <= BUDGET or not chosen:
            chosen.append(t)
    cost = Counter()
    for t in chosen:
        cost[t.split("::")[0]] += tests[t]["seconds"]
    file = lambda t: t.split("::")[0]
    rank = lambda t: (not t.startswith(own), cost[file(t)], file(t), tests[t]["seconds"])
    return sorted(chosen, key=rank), cost.total()


def attempt(fault, names, warm):
    "A function of a tree that starts the fork in which the fault meets these tests."

    def job(tree):
        file = tree / PACKAGE / f"{fault['module']}.py"
        original = (ROOT / PACKAGE / file.name).read_text(encoding="utf-8")
        for module in (ROOT / PACKAGE).glob("*.py"):  # the fault before may have been elsewhere
            shutil.copy(module, tree / PACKAGE)
        assert fault["text"] != original
        file.write_text(fault["text"], encoding="utf-8")
        shutil.rmtree(tree / PACKAGE / "__pycache__", ignore_errors=True)
        failed = tree / "failed.txt"
        failed.unlink(missing_ok=True)
        files = dict.fromkeys(t.split("::")[0] for t in names)
        return run_pytest(Chosen(names, failed), "-x", *files)

    def start(tree):
        cache = tree / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(warm, cache)
        return fork(tree, cache, lambda: job(tree))

    return start


def verdict(code, tree):
    "What became of a fault, and the test that saw it."
    failed = tree / "failed.txt"
    by = failed.read_text() if failed.exists() else ""
    if code == 0:
        return "survived", ""
    if code in (1, 2) or by:
        return "caught", by or "at import"
    return ("caught", "did not end") if code < 0 else ("broken", f"pytest's status {code}")


def report(rows, seconds, cpu):
    "A table for the terminal, by module and by kind, and the survivors."
    for by in "module", "kind":
        print(f"\n{by:14}{'tried':>8}{'caught':>8}{'excused':>9}{'survived':>10}")
        groups = defaultdict(Counter)
        for row in rows:
            groups[row[by]][row["outcome"]] += 1
            groups["all"][row["outcome"]] += 1
        for name, n in sorted(groups.items(), key=lambda item: item[0] == "all"):
            rest = n["survived"] + n["broken"]
            print(f"{name:14}{n.total():8}{n['caught']:8}{n['excused']:9}{rest:10}")
    for row in rows:
        if row["outcome"] in ("survived", "broken"):
            print(f"\n{row['outcome']}: {row['name']} {row['by']}")
            print(f"  - {row['old']}\n  + {row['new']}")
    print(f"\n{seconds / 60:.1f} minutes, {cpu / 60:.1f} of the processors")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("names", nargs="*", help="modules, functions or names; or `check`")
    p.add_argument("--jobs", type=int, default=2, help="faults tried side by side")
    p.add_argument("--out", type=Path, help="file for a report in JSON")
    p.add_argument("--survey", type=Path, help="file that keeps the first run for the next time")
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = faults([] if args.names == ["check"] else args.names)
    misfits = [f"{f['name']}: {f['wrong']}" for f in chosen if "wrong" in f]
    if not chosen:
        sys.exit(f"No fault is called {' or '.join(args.names)}.")
    print("\n".join(misfits) or f"{len(chosen)} faults fit the package.")
    if args.names == ["check"]:
        return bool(misfits)
    began, cpu, rows = time.monotonic(), 0.0, []
    preload()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # some tests become somebody else
        warm = Path(folder, "warm")
        warm.mkdir()
        trees = [make_tree(Path(folder, f"tree{i}")) for i in range(args.jobs)]
        tests, failed = survey(trees, warm, args.survey)
        print(*(f"fails without a fault, left out: {t}" for t in failed), sep="\n")
        tasks = []
        for fault in chosen:
            if "wrong" in fault or "survives" in fault:
                continue
            names, total = choose(fault, tests)
            if names:
                tasks.append((fault["name"], attempt(fault, names, warm), 60 + 10 * total))
            else:
                rows.append(dict(name=fault["name"], outcome="survived", by="no test reaches it"))
        for name, code, seconds, used, tree in in_forks(tasks, trees):
            outcome, by = verdict(code, tree)
            cpu += used
            rows.append(dict(name=name, outcome=outcome, by=by, seconds=round(seconds, 2)))
            print(f"{outcome:9} {seconds:6.1f} s  {name}  {by}", flush=True)
    excused = [f for f in chosen if "survives" in f and "wrong" not in f]
    rows += [dict(name=f["name"], outcome="excused", by=f["survives"]) for f in excused]
    about = {f["name"]: {k: f[k] for k in ("module", "kind", "old", "new")} for f in chosen}
    rows = sorted((r | about[r["name"]] for r in rows), key=lambda r: list(about).index(r["name"]))
    report(rows, time.monotonic() - began, cpu)
    if args.out:
        result = dict(seconds=round(time.monotonic() - began), cpu=round(cpu), faults=rows)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    n = Counter(r["outcome"] for r in rows)
    return bool(failed or misfits) or n["caught"] < 0.95 * (n.total() - n["excused"])


if __name__ == "__main__":
    sys.exit(main())
