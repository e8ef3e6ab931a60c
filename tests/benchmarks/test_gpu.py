# SPDX-License-Identifier: Apache-2.0
"""What is to be measured on a GPU runs without one, in small."""

import json
import subprocess
import sys


def test_it_says_a_figure_a_line_and_measures_what_it_compares_in_one_run() -> None:
    sizes = ["--tiny", "--device", "cpu", "--turns", "1", "--only", "step", "--only", "swarm"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *sizes], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["what"] for each in said[:4]] == ["machine", "step", "step", "copy"]
    assert all(each["over_floor"] > 0 for each in said[1:3])
    speeds = {
        each["case"]: each["steps_per_s"] for each in said if each["what"] == "swarm" and each["workers"] == 4
    }
    [faster] = [each["faster"] for each in said if each["what"] == "stacked over one by one"]
    assert abs(faster - speeds["stacked"] / speeds["one by one"]) < 0.01
