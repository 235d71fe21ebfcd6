"""Runs the tests of a program so that its last lines are cmocka's."""
import sys
import unittest


def main():
    """Runs the tests of the program; exit status and last lines as cmocka's."""
    program = unittest.main(module="__main__", exit=False, verbosity=2)
    result = program.result
    failed = [getattr(test, "test_case", test) for test, _ in result.failures + result.errors]
    bad = sorted({test.id().removeprefix("__main__.") for test in failed})
    print(f"[  PASSED  ] {result.testsRun - len(bad)} test(s).")
    if bad:
        print(f"[  FAILED  ] {len(bad)} test(s), listed below:")
        print("".join(f"[  FAILED  ] {name}\n" for name in bad), end="")
    sys.exit(bool(bad))
