"""Every call that changes a file ends badly in turn: the program is killed, the disk is full, the disk is broken.

Whatever happens, the last good checkpoint loads and a resumed training is the undisturbed one bit for bit; a file that
is written in place of another one leaves the old one; nothing is left that the next run does not remove; and nsa exits
1 with a message that names the file.
"""
import os
import resource
import shutil
import signal
import subprocess
import time
import unittest

import faults
from faults import DENSE_MODEL, NSA, NSA_MODEL, nsa, succeeds, tree
from runner import main

ROOM, BROKEN = "No space left on device", "Input/output error"


def checkpoints(files):
    """{"step-1": {"config.json": ...}, ...}"""
    found = {}
    for name, data in files.items():
        folder, _, name = name.removeprefix("run/").partition("/")
        if folder.startswith("step-"):
            found.setdefault(folder, {})[name] = data
    return found


def calls_of(folder, words):
    """The calls of an undisturbed run: [(name, path)]."""
    report = folder.parent / "report"
    succeeds(folder, words, faults.FAIL_FILE, NSA_FAULT_REPORT=report)
    return [tuple(line.split(" ", 1)) for line in report.read_text().splitlines()]


class Training:
    """From a checkpoint of step 1, beside which killed runs have left something, to that of step 3, undisturbed."""

    def __init__(self, inputs):
        words = f"train --data {inputs.path}/text.txt --out run --log run.jsonl --save-every 1 {DENSE_MODEL} --steps "
        self.words = words + "3 --resume"
        self.start = inputs.root / "start"
        self.start.mkdir()
        succeeds(self.start, words + "1")
        for leftover in (".step-2", ".step-0"):  # half written, half removed
            shutil.copytree(self.start / "run/step-1", self.start / "run" / leftover)
            (self.start / "run" / leftover / "config.json").unlink()

        folder = inputs.folder(self.start)
        self.calls = calls_of(folder, self.words)
        self.end = tree(folder)
        assert set(checkpoints(self.end)) == {"step-3"} and "run/.lock" in self.end
        # Step 3 makes the calls of step 2 once more.
        step_3 = [n for n, call in enumerate(self.calls, 1) if call == ("write", "run.jsonl")][1]
        self.tried = [*range(1, step_3), len(self.calls) - 1, len(self.calls)]

        folder = inputs.folder(self.start)
        nsa(folder, self.words, faults.FAIL_FILE, NSA_FAULT_KIND="kill", NSA_FAULT_AT=step_3)
        self.checkpoints = checkpoints(tree(self.start)) | checkpoints(tree(folder)) | checkpoints(self.end)
        assert set(self.checkpoints) == {"step-1", "step-2", "step-3"}


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.inputs = faults.Inputs()
        cls.text = cls.inputs.path / "text.txt"
        cls.training = Training(cls.inputs)

    @classmethod
    def tearDownClass(cls):
        cls.inputs.remove()

    # ---- Training ----------------------------------------------------------------------------------------------------

    def each_call_of_training(self, kind, check, tried):
        training = self.training
        for n in tried:
            with self.subTest(kind=kind, n=n, call=training.calls[n - 1]):
                folder = self.inputs.folder(training.start)
                check(nsa(folder, training.words, faults.FAIL_FILE, NSA_FAULT_KIND=kind, NSA_FAULT_AT=n), n)
                left = checkpoints(tree(folder))
                self.assertTrue(left)
                for step, files in left.items():
                    self.assertEqual(files, training.checkpoints[step], step)
                succeeds(folder, training.words)
                self.assertEqual(tree(folder), training.end)

    def check_killed(self, run, n):
        self.assertEqual(run.returncode, -signal.SIGKILL)

    @unittest.skipIf(faults.SANITIZED, "a killed program has no more to tell a sanitizer")
    def test_train_killed(self):
        self.each_call_of_training("kill", self.check_killed, self.training.tried)

    @unittest.skipIf(faults.SANITIZED, "likewise")
    def test_train_killed_in_a_write(self):
        writes = [n for n in self.training.tried if self.training.calls[n - 1][0] == "write"]
        self.each_call_of_training("half", self.check_killed, writes)

    def train_fails(self, kind, reason):
        """Of the writes to one file the first and the last fail: between them lies one for each tensor."""
        calls, tried = self.training.calls, self.training.tried

        def check(run, n):
            if run.returncode == 0 and n > len(calls) - 2:
                return  # what is left to do needs no room; the closing of the lock does not matter
            self.assertEqual(run.returncode, 1)
            message = run.stderr.decode().splitlines()[-1]
            self.assertIn(reason, message)
            if kind == "broken":
                self.assertIn(calls[n - 1][1].rsplit("/")[-1].removeprefix("."), message)

        first = {calls[n - 1]: n for n in reversed(tried)}
        last = {calls[n - 1]: n for n in tried}
        self.each_call_of_training(kind, check, sorted({*first.values(), *last.values()}))

    def test_train_on_a_full_disk(self):
        self.train_fails("full", ROOM)

    def test_train_on_a_broken_disk(self):
        self.train_fails("broken", BROKEN)

    # ---- One trainer at a time ---------------------------------------------------------------------------------------

    def test_second_trainer(self):
        folder = self.inputs.folder()
        words = f"train --data {self.text} --out run --save-every 1 {DENSE_MODEL} --steps "
        long = [NSA, *words.split(), "1000000"]
        first = subprocess.Popen(long, cwd=folder, env=faults.ENVIRONMENT, stderr=subprocess.DEVNULL)
        while not any((folder / "run").glob("step-*")):
            self.assertIsNone(first.poll())
            time.sleep(0.01)
        second = nsa(folder, words + "1000000 --resume")
        first.kill()
        first.wait()
        self.assertEqual(second.returncode, 1)
        self.assertEqual(second.stderr.decode(), "nsa: run: another nsa train writes its checkpoints there\n")
        self.assertEqual(nsa(folder, words + "1").returncode, 2)  # no lock is left, but a checkpoint
        step = max(int(path.name.removeprefix("step-")) for path in (folder / "run").glob("step-*"))
        succeeds(folder, words + f"{step + 1} --resume")

    # ---- Files in place of others ------------------------------------------------------------------------------------

    def with_old(self, names):
        folder = self.inputs.folder()
        for name in names:
            (folder / name).write_bytes(b"old")
        return folder

    def each_call_of(self, words, names):
        """words: a command that writes these files, in this order."""
        folder = self.with_old(names)
        calls = calls_of(folder, words)
        new = tree(folder)
        self.assertEqual(list(new), sorted(names))
        for kind, n in [(kind, n) for kind in ("kill", "half", "full", "broken") for n in range(1, len(calls) + 1)]:
            if kind == "half" and calls[n - 1][0] != "write":
                continue
            with self.subTest(kind=kind, n=n, call=calls[n - 1]):
                folder = self.with_old(names)
                run = nsa(folder, words, faults.FAIL_FILE, NSA_FAULT_KIND=kind, NSA_FAULT_AT=n)
                files = tree(folder)
                for name in names:
                    self.assertIn(files.pop(name), (b"old", new[name]))
                if kind in ("kill", "half"):
                    self.assertEqual(run.returncode, -signal.SIGKILL)
                    self.assertLessEqual(set(files), {name + ".part" for name in names})
                    succeeds(folder, words)
                    self.assertEqual(tree(folder), new)
                elif run.returncode != 0 or kind == "broken":
                    self.assertEqual(run.returncode, 1)
                    self.assertEqual(files, {})
                    message = run.stderr.decode().splitlines()[-1]
                    self.assertIn(ROOM if kind == "full" else BROKEN, message)
                    self.assertTrue(any(name in message for name in names), message)

    def test_eval(self):
        self.each_call_of(f"eval --model {self.inputs.path}/model --data {self.text} --tokens 100 --threads 1 --needle "
                          "--depths 1 --trials 1 --lengths 64 --out needle.svg", ["needle.svg"])

    def test_map(self):
        self.each_call_of(f"map --model {self.inputs.path}/model --data {self.text} --out map.svg", ["map.svg"])

    def test_losses(self):
        self.each_call_of(f"losses --log {self.inputs.path}/model.jsonl --out losses.svg --json losses.json",
                          ["losses.svg", "losses.json"])

    def test_links_and_devices(self):
        folder = self.inputs.folder()
        words = f"map --model {self.inputs.path}/model --data {self.text} --out "
        (folder / "real.svg").write_bytes(b"old")
        (folder / "link.svg").symlink_to("real.svg")
        succeeds(folder, words + "link.svg")
        self.assertTrue((folder / "link.svg").is_symlink())
        self.assertTrue((folder / "real.svg").read_bytes().startswith(b"<?xml"))
        (folder / "null.svg").symlink_to("/dev/null")
        succeeds(folder, words + "null.svg")
        (folder / "full.png").symlink_to("/dev/full")
        train = f"train --data {self.text} --out run --log /dev/full --steps 1 {DENSE_MODEL}"
        for command, name in (words + "full.png", "full.png"), (train, "/dev/full"):
            run = nsa(folder, command)
            self.assertEqual(run.returncode, 1)
            self.assertIn(f"{name}: cannot write: {ROOM}", run.stderr.decode())
        self.assertTrue(os.path.samefile(folder / "full.png", "/dev/full"))

    # ---- Standard output ---------------------------------------------------------------------------------------------

    def printing(self, path):
        model = f"--model {path}/model --threads 1"
        yield "info"
        yield "--version"
        yield "--help"
        yield "map --help"
        yield f"generate {model} --prompt the --tokens 20"
        yield f"eval {model} --data {path}/text.txt --tokens 100"
        yield f"losses --log {path}/model.jsonl"
        yield "bench --quick --lengths 65 --heads-q 2 --d-qk 8 --d-v 8 --threads 1"
        yield f"train --data {path}/text.txt --out run --steps 1 {NSA_MODEL}"

    def test_standard_output(self):
        """Full from the start; and a file that may hold half of the output."""
        for words in self.printing(self.inputs.path):
            size = len(succeeds(self.inputs.folder(), words).stdout)

            def half_of_it():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

            for out, limit in (("/dev/full", None), ("out.txt", half_of_it)):
                with self.subTest(words=words, out=out):
                    folder = self.inputs.folder()
                    if limit is not None and words.startswith("train"):
                        continue  # its checkpoint is larger
                    with open(folder / out, "w") as stdout:
                        run = subprocess.run([NSA, *words.split()], cwd=folder, env=faults.ENVIRONMENT, timeout=60,
                                             stdout=stdout, stderr=subprocess.PIPE, preexec_fn=limit)
                    self.assertEqual(run.returncode, 1)
                    self.assertIn("nsa: standard output: cannot be written", run.stderr.decode().splitlines()[-1])


if __name__ == "__main__":
    main()
