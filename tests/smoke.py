"""The wheel without extras: imported, asked for help, and a small repair run (`make package`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import expunge


def main() -> None:
    command = Path(sys.executable).with_name("expunge")
    for words in (["--help"], ["list", "recipes"]):
        subprocess.run([command, *words], check=True, stdout=subprocess.DEVNULL)
    x = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    y[:60] = 1 - y[:60]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    train, test = (x[:200], y[:200]), (x[200:], y[200:])
    result = expunge.repair(model, train, test, overrides={"tune": {"epochs": 1}}, baselines=())
    print(repr(result))
    print(f"expunge {expunge.__version__}: the wheel works without extras")


if __name__ == "__main__":
    main()
