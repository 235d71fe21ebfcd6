#!/usr/bin/env python3
"""Every C snippet of a page follows a line `<!-- examples/FILE.c -->` and stands in that file, which CI builds and runs:
line for line, but for indentation."""
import re
import sys

failed = 0
for page in sys.argv[1:]:
    text = open(page, encoding="utf-8").read()
    for match in re.finditer(r"(?:<!-- (\S+) -->\n)?```c\n(.*?)```", text, re.S):
        name, snippet = match.groups()
        if name is None:
            print(f"{page}: a C snippet without its example:\n{snippet}", file=sys.stderr)
            failed += 1
            continue
        strip = lambda s: [line.strip() for line in s.splitlines() if line.strip()]
        lines, wanted = strip(open(name, encoding="utf-8").read()), strip(snippet)
        if not any(lines[i : i + len(wanted)] == wanted for i in range(len(lines))):
            print(f"{page}: this snippet is not in {name}:\n{snippet}", file=sys.stderr)
            failed += 1
sys.exit(failed != 0)
