"""Every allocation of memory by the command, its language model, libnsa and cJSON fails in turn.

Then nsa exits 1 and says that memory is short, or does all the same what it would have done; it loses no block of
memory, and leaves files as they were. A loop allocates in one place thousands of times: of all calls with the same
stack the first, the second and the last fail. At the second, every allocation after it fails as well.
"""
import re
import unittest

import faults
from faults import DENSE_MODEL, nsa, tree
from runner import main

OURS = "nsa libnsa.so libcjson.so"
CAIRO = "libcairo.so libpixman libpng"


def without_numbers(text):
    """For what prints times."""
    return re.sub(rb" +", b" ", re.sub(rb"\d+(\.\d+)?(e[-+]\d+)?", b"#", text))


def without_cpu(text):
    return re.sub(rb"(?m)^cpu  .*$", b"", text)


def live(report):
    """The blocks that the program did not free; without a fault: standard output's buffer."""
    return {line for line in report.read_text().splitlines() if line.startswith("live ")}


def calls_by_stack(report):
    by_stack = {}
    for n, line in enumerate((line for line in report.read_text().splitlines() if line.startswith("call ")), 1):
        by_stack.setdefault(line, []).append(n)
    return by_stack.values()


def chosen(by_stack):
    """(variable, number): which call fails."""
    for calls in by_stack:
        if faults.EVERY:
            yield from (("NSA_FAULT_AT", n) for n in calls)
            yield from (("NSA_FAULT_FROM", n) for n in calls)
        else:
            yield from {("NSA_FAULT_AT", calls[0]), ("NSA_FAULT_FROM", calls[:2][-1]), ("NSA_FAULT_AT", calls[-1])}


class Alloc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.inputs = faults.Inputs()
        cls.report = cls.inputs.root / "report"

    @classmethod
    def tearDownClass(cls):
        cls.inputs.remove()

    def start(self, old):
        """A folder with the files that the command will replace."""
        folder = self.inputs.folder()
        for name in old:
            (folder / name).write_bytes(b"old")
        return folder

    def run_with(self, words, old, modules, **fault):
        folder = self.start(old)
        self.report.unlink(missing_ok=True)
        run = nsa(folder, words, faults.FAIL_ALLOC, NSA_FAULT_MODULES=modules, NSA_FAULT_REPORT=self.report, **fault)
        return run, tree(folder)

    def survey(self, words, old, modules):
        """What happens without a fault, and the allocations by their stacks."""
        run, files = self.run_with(words, old, modules)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run, files, calls_by_stack(self.report)

    def check_left(self, files, whole):
        """After a failure a file is the old one or the whole new one; of training, checkpoints and lines are whole. The
        next training removes .step-N."""
        for name, data in files.items():
            if name.startswith("run/step-"):
                folder = name.rsplit("/", 1)[0]
                self.assertEqual({f.rsplit("/", 1)[1] for f in files if f.startswith(folder + "/")},
                                 {"config.json", "model.safetensors", "optimizer.safetensors"})
                self.assertEqual(len(data), len(whole["run/step-2/" + name.rsplit("/", 1)[1]]))
            elif name == "run.jsonl":
                self.assertTrue(whole[name].startswith(data))
            elif not name.startswith("run/."):
                self.assertIn(data, (b"old", whole[name]), name)

    def each_allocation(self, words, old=(), choose=chosen, of_output=bytes):
        """of_output: what of the output is the same in every run."""
        good, whole, by_stack = self.survey(words, old, OURS)
        kept = live(self.report)
        faults_tried = list(choose(by_stack))
        self.assertGreater(len(faults_tried), 0)
        for variable, n in faults_tried:
            with self.subTest(**{variable: n}):
                run, files = self.run_with(words, old, OURS, **{variable: n})
                error = run.stderr.decode()
                self.assertIn(run.returncode, (0, 1), error)
                if run.returncode == 1:
                    self.assertRegex(error.splitlines()[-1], "^nsa: .*memory")
                    self.check_left(files, whole)
                else:
                    self.assertEqual(of_output(run.stdout), of_output(good.stdout))
                    self.assertEqual(files, whole)
                self.assertLessEqual(live(self.report), kept)

    def test_info(self):
        """Without memory to read /proc the CPU is unknown."""
        self.each_allocation("info", of_output=without_cpu)

    def test_train(self):
        words = f"train --data {self.inputs.path}/text.txt --out run --log run.jsonl --save-every 1 {DENSE_MODEL}"
        self.each_allocation(words + " --steps 2", of_output=without_numbers)

    def test_generate(self):
        self.each_allocation(f"generate --model {self.inputs.path}/model --prompt the --tokens 20 --threads 1")

    def test_eval(self):
        path = self.inputs.path
        self.each_allocation(f"eval --model {path}/model --data {path}/text.txt --tokens 100 --threads 1 --needle "
                             "--depths 1 --trials 1 --lengths 64")

    def test_losses(self):
        log = f"{self.inputs.path}/model.jsonl"
        self.each_allocation(f"losses --log {log} --json losses.json", ["losses.json"])

    def test_map(self):
        path = self.inputs.path
        self.each_allocation(f"map --model {path}/model --data {path}/text.txt --out map.svg", ["map.svg"])

    @unittest.skipIf(faults.SANITIZED, "its measurements take seconds there")
    def test_bench(self):
        """Its measurements take a while, so one stack in three has one try."""
        def some(by_stack):
            return [("NSA_FAULT_AT", calls[0]) for calls in list(by_stack)[::3]]
        self.each_allocation("bench --quick --lengths 65 --heads-q 2 --d-qk 8 --d-v 8 --threads 1", choose=some,
                             of_output=without_numbers)

    def test_cairo(self):
        """cairo does not always live through a failure, nor tell of it; but the file is the old one or a whole one."""
        path = self.inputs.path
        words, old = f"map --model {path}/model --data {path}/text.txt --out map.png", ["map.png"]
        _, _, by_stack = self.survey(words, old, CAIRO)
        for calls in by_stack:
            _, files = self.run_with(words, old, CAIRO, NSA_FAULT_AT=calls[0])
            picture = files.pop("map.png")
            self.assertEqual(files, {})
            if picture != b"old":
                self.assertTrue(picture.startswith(b"\x89PNG\r\n\x1a\n") and picture.endswith(b"IEND\xaeB`\x82"))


if __name__ == "__main__":
    main()
