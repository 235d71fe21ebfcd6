"""What the fault tests share: small inputs, the command run with a fault planted, and what it leaves behind."""
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

NSA = os.environ["NSA_COMMAND"]
FAIL_ALLOC, FAIL_FILE = os.environ["NSA_FAIL_ALLOC"], os.environ["NSA_FAIL_FILE"]  # see fail_alloc.c, fail_file.c
EVERY = "NSA_FAULT_EVERY" in os.environ  # by hand: no allocation is left out
SANITIZED = os.environ.get("NSA_SANITIZE", "") != ""

NSA_MODEL = ("--context 64 --layers 1 --d-model 16 --heads 2 --kv-heads 1 --head-dim 8 --d-ff 16 --gate-hidden 4 "
             "--phi-hidden 8 --win 8 --slc-topk 3 --batch 4 --warmup 1 --threads 1")
DENSE_MODEL = NSA_MODEL + " --attention dense"

# Where fsync costs nothing; the order of the calls is what is tested.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MALLOC_PERTURB_": "165",  # glibc: memory that was freed, or not yet written, holds this
    "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:exitcode=99",  # leaks are counted here
}


def new_folder():
    return Path(tempfile.mkdtemp(prefix="nsa-faults-", dir=MEMORY))


def nsa(folder, words, preload=None, **environment):
    """Runs the command in a folder. environment: NSA_FAULT_..., for the library that is preloaded."""
    if preload is not None:
        environment["LD_PRELOAD"] = preload
    environment = {name: str(value) for name, value in environment.items()}
    return subprocess.run([NSA, *words.split()], cwd=folder, env={**ENVIRONMENT, **environment}, timeout=60,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def succeeds(folder, words, preload=None, **environment):
    run = nsa(folder, words, preload, **environment)
    assert run.returncode == 0, f"nsa {words}: exits {run.returncode}: {run.stderr.decode()}"
    return run


def tree(folder):
    """Every file in the folder and its bytes; of a training log, without the speeds."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: re.sub(rb',"tokens_per_s":[0-9.]+', b"", data) if name.endswith(".jsonl") else data
            for name, data in files.items()}


def make_inputs(folder):
    """text.txt, model/step-2 and its log model.jsonl: what the commands read."""
    words = "the king went unto his house and said behold water".split()
    draw = random.Random(1)
    text = "".join(draw.choice(words) + (".\n" if i % 9 == 8 else " ") for i in range(1500))
    (folder / "text.txt").write_text(text)
    succeeds(folder, f"train --data text.txt --out model --log model.jsonl --steps 2 {NSA_MODEL}")
    return folder


class Inputs:
    """The inputs, and folders that start as copies of another; for unittest's setUpClass and tearDownClass."""

    def __init__(self):
        self.root = new_folder()
        self.path = self.root / "inputs"
        self.path.mkdir()
        make_inputs(self.path)

    def folder(self, like=None):
        path = self.root / "run"
        shutil.rmtree(path, ignore_errors=True)
        if like is None:
            path.mkdir()
        else:
            shutil.copytree(like, path)
        return path

    def remove(self):
        shutil.rmtree(self.root)
