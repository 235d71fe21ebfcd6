#!/usr/bin/env python3
"""Plants the bugs of tests/mutants, one at a time, in a copy of the tree, and demands that the suite named beside each
fails: scripts/mutants.py [--list] [--only NAME ...]

A bug is caught if a test case fails by an assertion. A crash counts only where the table says so (the proof is a guard
page then); code that does not compile and a suite that hangs never do. Exit status 1 unless every bug is caught. --list
says what is in the table, and fails if a text that it replaces is not there exactly once: code has moved. Needs a CPU with
AVX2, since some of the bugs are in its kernels.
"""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLES = os.path.join(ROOT, "tests", "mutants", "*.toml")
HANGS_AFTER = 100  # seconds, of a suite

# Lines of cmocka and of Python's unittest that say which case runs, and that it failed, crashed or raised an error.
RUNS = re.compile(r"^\[ RUN      \] (.+)|^\s*(test_\w+) \(")
FAILS = re.compile(r"^\[  FAILED  \] |\.\.\. (FAIL|ERROR)$")
CRASHES = re.compile(r"Test failed with exception")


def read_table(only):
    table = {}
    for path in sorted(glob.glob(TABLES)):
        with open(path, "rb") as f:
            part = tomllib.load(f)
        if twice := set(table) & set(part):
            sys.exit(f"mutants: {path} has a second {', '.join(sorted(twice))}")
        table |= part
    if unknown := set(only or []) - set(table):
        sys.exit(f"mutants: tests/mutants has no {', '.join(sorted(unknown))}")
    return {name: m for name, m in table.items() if not only or name in only}


def find_stale(table):
    """Those whose old text the file does not hold exactly once."""
    stale = []
    for name, mutant in table.items():
        path = os.path.join(ROOT, mutant["file"])
        text = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
        stale += [name] * (text.count(mutant["old"]) != 1)
    return stale


def copy_tree(to):
    """The tracked files, as they are in the working tree."""
    files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        if os.path.exists(os.path.join(ROOT, name)):
            os.makedirs(os.path.dirname(os.path.join(to, name)), exist_ok=True)
            shutil.copyfile(os.path.join(ROOT, name), os.path.join(to, name))


def target_of(suite):
    """A Python suite loads the library, every other is a program of its own."""
    return "nsa" if suite.startswith("oracle_") else f"test_{suite}"


class Build:
    def __init__(self, tree):
        self.dir = os.path.join(tree, "build")
        self.run("cmake", "-S", tree, "-B", self.dir, "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS_DEBUG=-O2",
                 "-DNSA_EXAMPLES=OFF")

    def run(self, *command):
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            raise RuntimeError(result.stdout[-3000:])

    def make(self, suites):
        self.run("cmake", "--build", self.dir, "-j2", "--target", *sorted({target_of(s) for s in suites}))

    def check(self, suites):
        """All of the suites pass."""
        self.run("ctest", "--test-dir", self.dir, "--parallel", "2", "--output-on-failure", "--no-tests=error", "-R",
                 f"^({'|'.join(sorted(suites))})$")

    def commands(self):
        """suite -> (command, environment), as ctest would run it."""
        out = subprocess.run(["ctest", "--test-dir", self.dir, "--show-only=json-v1"], check=True, capture_output=True,
                             text=True).stdout
        commands = {}
        for test in json.loads(out)["tests"]:
            properties = {p["name"]: p["value"] for p in test["properties"]}
            environment = dict(e.split("=", 1) for e in properties.get("ENVIRONMENT", []))
            commands[test["name"]] = test.get("command"), environment
        return commands


def run_suite(command, environment):
    """Runs until the first case that fails: 'passed', 'failed', 'crashed', 'raised' or 'hung', and the case. Suites of lm/
    are not cut short: they remove the files that they make."""
    suite = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace", start_new_session=True)
    hung = threading.Event()

    def stop():
        hung.set()
        os.killpg(suite.pid, signal.SIGKILL)

    timer = threading.Timer(HANGS_AFTER, stop)
    timer.start()
    verdict, case, crashed = None, "", False
    for line in suite.stdout:
        if match := RUNS.match(line):
            case, crashed = match[1] or match[2], False
        crashed = crashed or CRASHES.search(line) is not None
        if match := FAILS.search(line.rstrip()):
            verdict = "crashed" if crashed else "raised" if match[1] == "ERROR" else "failed"
            break
    if verdict is not None and "test_lm_" not in command[0]:
        os.killpg(suite.pid, signal.SIGKILL)
    suite.communicate()
    timer.cancel()
    if verdict is None:
        verdict = "hung" if hung.is_set() else "passed" if suite.returncode == 0 else "crashed"
    return verdict, case


def plant(tree, build, commands, mutant):
    """Returns what came of it ('' if the bug was caught), and the case that caught it."""
    path = os.path.join(tree, mutant["file"])
    with open(path, encoding="utf-8") as f:
        text = f.read()
    try:
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace(mutant["old"], mutant["new"]))
        build.make([mutant["suite"]])
        verdict, case = run_suite(*commands[mutant["suite"]])
    except RuntimeError as e:
        return f"does not compile:\n{e}", ""
    finally:
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
    wanted = "crashed" if mutant.get("crash") else "failed"
    return "" if verdict == wanted else "SURVIVED" if verdict == "passed" else verdict, case


def main():
    parser = argparse.ArgumentParser(description="Plants known bugs and proves that the tests catch each.")
    parser.add_argument("--list", action="store_true", help="say what is in the table and whether it fits the code")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these")
    args = parser.parse_args()
    table = read_table(args.only)
    width = max(map(len, table))
    if args.list:
        for name, m in table.items():
            print(f"{name:{width}}  {m['suite']:20}  {m['what']}")
    if stale := find_stale(table):
        print(f"mutants: the text to replace is not there exactly once: {', '.join(stale)}", file=sys.stderr)
        return 1
    if args.list:
        return 0

    os.environ["OMP_WAIT_POLICY"] = "passive"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nsa-mutants-") as tree:
        suites = {m["suite"] for m in table.values()}
        copy_tree(tree)
        print(f"building and running {len(suites)} suites without bugs ...", flush=True)
        try:
            build = Build(tree)
            build.make(suites)
            build.check(suites)
        except RuntimeError as e:
            print(f"{e}\nmutants: the tree is broken as it is")
            return 1
        commands = build.commands()
        print(f"they pass; {time.monotonic() - started:.0f} s", flush=True)
        problems = []
        by_file = sorted(table.items(), key=lambda item: item[1]["file"])  # so that each file is restored once
        for i, (name, mutant) in enumerate(by_file, 1):
            planted = time.monotonic()
            problem, case = plant(tree, build, commands, mutant)
            seconds = time.monotonic() - planted
            outcome = f"{mutant['suite']}: {case or problem}" + f"  <-- {problem}" * bool(problem)
            print(f"[{i:3}/{len(table)}] {name:{width}}  {outcome}  {seconds:.1f} s", flush=True)
            problems += [name] * bool(problem)
    print(f"{len(table)} planted, {len(table) - len(problems)} caught, in {time.monotonic() - started:.0f} s")
    if problems:
        print(f"not caught: {', '.join(problems)}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
