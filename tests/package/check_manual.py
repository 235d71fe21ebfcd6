#!/usr/bin/env python3
"""The manual and --help name the same commands, options and defaults: check_manual.py NSA PAGE"""
import re
import subprocess
import sys

nsa, page = sys.argv[1:]
failed = 0


def run(*words):
    return subprocess.run([nsa, *words], capture_output=True, text=True, check=True).stdout


def instruction_sets():
    """What NSA_DISABLE_CPU knows, from what it says of what it does not know."""
    said = subprocess.run([nsa, "info"], capture_output=True, text=True, env={"NSA_DISABLE_CPU": "none"}).stderr
    return set(re.search(r"known are: (.*)", said).group(1).split(", "))


def same(what, manual, program):
    global failed
    for missing in sorted(program - manual):
        print(f"{page}: {what}: {missing} is missing", file=sys.stderr)
    for unknown in sorted(manual - program):
        print(f"{page}: {what}: {unknown} is not in nsa", file=sys.stderr)
    failed += manual != program


def options(text, start):
    """Pairs of an option and what it says of its default; `start` matches where the line of an option begins."""
    found = {}
    for entry in re.split(start, text, flags=re.M)[1:]:
        name, rest = re.match(r"([a-z0-9-]+)(.*)", entry, re.S).groups()
        rest = " ".join(rest.split())
        default = re.search(r"\(default: ([^)]*)\)", rest)
        found[name] = "required" if "(required)" in rest else default.group(0) if default else ""
    return set(found.items())


text = open(page, encoding="utf-8").read()
sections = dict(re.findall(r"^\.Ss nsa (\S+)\n(.*?)(?=^\.S[sh] )", text, re.M | re.S))
commands = set(re.findall(r"^  (\w+)  +\w", run("--help"), re.M))
same("commands", set(sections), commands)
same("synopsis", set(re.findall(r"^\.Cm (\w+)$", text[: text.index(".Sh DESCRIPTION")], re.M)), commands)
for command in sorted(commands & set(sections)):
    listed = options(run(command, "--help"), r"^  --") - {("help", "")}
    same(f"nsa {command}", options(sections[command], r"^\.It Fl -"), listed)
section = re.search(r"^\.It Ev NSA_DISABLE_CPU\n(.*?)^\.It ", text, re.M | re.S).group(1)
same("NSA_DISABLE_CPU", set(re.findall(r"^\.Cm (\w+)", section, re.M)), instruction_sets())
sys.exit(failed > 0)
