from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from expunge import cli, pipeline
from expunge._core.rng import temp_seed
from expunge.demo import digits as demos
from expunge.demo.noise import NoisyDataset
from expunge.models.zoo import convnet
from expunge.records import Decision, Flag
from expunge.specs import load_spec
from oracles_digits import contents, noisy
from oracles_results import make_baseline, make_result
from oracles_specs import merged, save_npz, write_spec

pytestmark = pytest.mark.usefixtures("few_trees")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """``expunge …`` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        code = ended.value.code
        return Said(int(code or 0), found.out, found.err)

    return run


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a tiny network, few epochs and one control."""

    def network(seed: int) -> object:
        with temp_seed(seed, "network"):
            return convnet(classes=10, channels=1, widths=(4, 8), hidden=16, convolutions=1)

    def small_dataset(**settings: object) -> NoisyDataset:
        made, rows = whole(**settings), np.arange(200)
        truth = made.truth
        return NoisyDataset(
            made.train.subset(rows),
            made.test.subset(rows),
            replace(
                truth,
                labels=truth.labels[rows],
                label_fault=truth.label_fault[rows],
                input_fault=truth.input_fault[rows],
            ),
        )

    whole = demos.noisy_digits_dataset
    settings = {"baselines": ("finetune-only",), "overrides": {"tune": {"epochs": 1}}}
    monkeypatch.setattr(demos, "TRAINING", replace(demos.TRAINING, epochs=3))
    monkeypatch.setattr(demos, "digits_network", network)
    monkeypatch.setattr(demos, "noisy_digits_dataset", small_dataset)
    monkeypatch.setattr(demos, "run_demo", partial(demos.run_demo, **settings))


# ------------------------------------------------------------------------------ demo


@pytest.mark.usefixtures("quick_demo")
def test_the_demo_prints_a_table_and_where_the_report_lies(call):
    said = call("demo")
    assert said.code == 0, said.err
    folder = Path("runs/demo-default-symmetric-labels-0.4-0")
    assert (folder / "report.html").is_file()
    assert f"report: {folder}/report.html" in said.out
    for part in ("accuracy", "seconds", "parameters", "finetune-only"):
        assert part in said.out
    assert "Against the true labels" in said.out
    assert {p.name for p in Path().iterdir()} == {"runs"}
    assert call("demo").code == 0  # read again
    assert call("demo", "--overwrite").code == 0


def test_nothing_of_a_result_is_cut_where_there_is_no_terminal(capsys):
    name = "a-control-with-a-name-that-is-longer-than-the-names-of-ours"
    flag = Flag("some-code", "A sentence that goes on for longer than eighty columns. " * 3 + "So.")
    result = make_result(baselines={name: make_baseline(0.7, -0.189)}, flags=(flag,))
    cli.results.print_result(result)
    said = capsys.readouterr().out
    for part in (name, "parameters", "70.0 (65.0–75.0)", "-18.9 (-22.9…-14.9)", flag.message):
        assert part in said


@pytest.mark.usefixtures("quick_demo")
def test_the_demo_s_json_is_result_json_and_nothing_else(call, tmp_path):
    said = call(
        "demo", "--json", "--noise", "pair", "--rate", 0.2, "--kind", "both", "--seed", 3,
        "--out", tmp_path / "run", "--recipe", "rlap",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found == json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["recipe"], found["seed"]) == ("rlap", 3)
    assert found["seconds"]["train"] > 0
    assert "Against the true labels" in said.err


@pytest.mark.usefixtures("quick_demo")
def test_bad_numbers_for_the_demo(call):
    said = call("demo", "--rate", 1.5)
    assert said.code == 1
    assert "the noise rate must lie in [0, 1), not 1.5" in said.err
    assert list(Path().iterdir()) == []
    for wrong in (("--rate", "many"), ("--noise", "odd"), ("--kind", "all"), ("--wrong",)):
        assert call("demo", *wrong).code == 2


# ------------------------------------------------------------------------------ spec files


def test_repair_prints_a_table_and_json_is_result_json(call, tmp_path):
    spec = write_spec(tmp_path)
    said = call("repair", spec)
    assert said.code == 0, said.err
    assert "report: runs/spec/report.html" in said.out
    assert "of 200 training samples; noise rate" in said.out
    kept = json.loads(Path("runs/spec/result.json").read_text())["decision"]["action"] == "keep"
    assert (f"expunge export {spec} " in said.out) == kept
    assert f"expunge clean {spec} --out corrected.parquet" in said.out
    said = call("repair", spec, "--json")
    assert json.loads(said.out) == json.loads(Path("runs/spec/result.json").read_text())
    assert said.code == 0
    said = call("repair", spec, "--recipe", "finetune-only", "--seed", "4", "--out", "o", "--json")
    found = json.loads(said.out)
    assert (found["recipe"], found["seed"], found["run"]) == ("finetune-only", 4, "o")


@pytest.mark.parametrize(("later", "epochs"), [(None, 1), ([1, 2], 4)])
def test_a_better_network_is_made_by_the_command_that_is_printed(
    call, tmp_path, monkeypatch, later, epochs
):
    rounds = {"rounds": {"epochs": later}} if later else {}
    repair, spec = pipeline.repair, write_spec(tmp_path, rounds)
    better = Decision("retrain", "it is better", recipe="retrain-filtered")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "repair", lambda *a, **k: replace(repair(*a, **k), decision=better))
        said = call("repair", spec).out
    line = next(line for line in said.splitlines() if "--recipe" in line)
    assert call(*shlex.split(line.partition("#")[0])[1:]).code == 0
    found = json.loads(Path("runs/spec-retrain-filtered/result.json").read_text())
    assert found["recipe"] == "retrain-filtered"
    header = json.loads(Path("runs/spec-retrain-filtered/run.json").read_text())
    assert header["settings"]["tune"]["epochs"] == epochs


def test_the_json_has_the_keys_that_others_rely_on(call, tmp_path):
    found = json.loads(call("repair", write_spec(tmp_path), "--json").out)
    interval = {"value", "low", "high"}
    assert found["before"]["accuracy"].keys() == found["after"]["accuracy"].keys()
    assert found["after"]["accuracy"].keys() == interval | {"n"}
    assert found["baselines"]["no-op"].keys() >= {"accuracy", "seconds"}
    assert found["partition"]["noise_rate"].keys() == interval
    assert isinstance(found["partition"]["flagged"], int)
    assert found["pruning"].keys() >= {
        "requested",
        "granted",
        "parameters_before",
        "parameters_after",
    }
    assert found["seconds"].keys() >= {"score", "partition", "rank", "prune", "tune"}
    assert all(flag.keys() == {"code", "message"} for flag in found["flags"])
    assert Path(found["run"]).is_dir()


def test_only_strict_turns_red_flags_into_exit_code_3(call, tmp_path, monkeypatch):
    flag = Flag("random-baseline-as-good", "It was no worse.")
    repair, spec = pipeline.repair, write_spec(tmp_path)
    for flags, strict, code in (((flag,), True, 3), ((flag,), False, 0), ((), True, 0)):
        found = partial(lambda *a, flags, **k: replace(repair(*a, **k), flags=flags), flags=flags)
        monkeypatch.setattr(pipeline, "repair", found)
        said = call("repair", spec, *(["--strict"] if strict else []))
        assert said.code == code
        assert ("random-baseline-as-good" in said.out) == bool(flags)


def test_the_stages_are_commands_that_repair_goes_on_from(call, tmp_path):
    spec = write_spec(tmp_path)
    for stage, key in (
        ("score", None),
        ("partition", "flagged"),
        ("rank", None),
        ("prune", "granted"),
        ("tune", None),
    ):
        said = call(stage, spec, "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert found["run"] == "runs/spec"
        assert key is None or f'"{key}"' in said.out
        text = call(stage, spec)
        assert text.code == 0
        assert "run: " in text.out
        number = ["score", "partition", "rank", "prune", "tune"].index(stage) + 1
        folders = sorted(p.name for p in Path("runs/spec").iterdir() if p.is_dir())
        assert len(folders) == number
        assert folders[-1] == f"{number}-{stage}"
    before = contents(Path("runs/spec"))
    assert call("repair", spec).code == 0
    assert {k: v for k, v in before.items() if k != "log.jsonl"}.items() <= contents(
        Path("runs/spec")
    ).items()


def test_check_lists_problems_and_ends_with_1(call, tmp_path):
    said = call("check", write_spec(tmp_path))
    assert said.code == 0
    assert "no problems" in said.out
    bad = write_spec(tmp_path, {"recipe": "defualt", "baselines": ["no-oop"]}, name="bad")
    said = call("check", bad)
    assert said.code == 1
    assert said.out.count("✗") == 2
    assert "2 problem(s)" in said.out
    said = call("check", bad, "--json")
    assert said.code == 1
    assert len(json.loads(said.out)["problems"]) == 2
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------ reading runs


def test_report_and_compare_read_finished_runs(call, tmp_path):
    for recipe in ("default", "finetune-only"):
        folder = Path("runs") / recipe
        assert call("repair", write_spec(tmp_path), "--recipe", recipe, "--out", folder).code == 0
    spec = write_spec(tmp_path, {"out": "runs/default"})
    before = contents(tmp_path)
    said = call("report", "runs/default")
    assert said.code == 0
    assert call("report", spec).out == said.out
    assert Path("runs/default/report.md").read_text() in said.out
    assert "page: runs/default/report.html" in said.out
    result = json.loads(Path("runs/default/result.json").read_text())
    assert json.loads(call("report", "runs/default", "--json").out) == result
    said = call("compare", "runs/default", "runs/finetune-only")
    assert said.code == 0
    assert all(part in said.out for part in ("runs/default", "finetune-only", "gain"))
    found = json.loads(call("compare", "runs/default", "runs/finetune-only", "--json").out)
    assert found["runs/default"] == result
    assert contents(tmp_path) == before


def test_commands_name_what_a_spec_says_otherwise_than_when_its_run_was_made(call, tmp_path):
    quick = {"recipe": "instant", "baselines": [], "out": "former"}
    quick["data"] = {"validation": None, "held_out": {"path": "test.npz"}}
    assert call("repair", write_spec(tmp_path, quick)).code == 0
    Path("former").rename("moved")
    held_out = (tmp_path / "test.npz").rename(tmp_path / "aside.npz")  # it is not read again
    moved = quick | {"out": "moved"}
    spec = write_spec(tmp_path, moved)
    for command in (("export", "--out", "a"), ("clean", "--out", "a.csv"), ("report", "--json")):
        said = call(command[0], spec, *command[1:])
        assert (said.code, said.err) == (0, ""), command
    assert json.loads(said.out)["run"] == "moved"
    said = call("report", "moved")
    assert "page: moved/report.html" in said.out
    assert not any("former" in said.out + p.read_text() for p in Path("moved").glob("report.*"))

    def says(changes, command, *options):
        return call(command, write_spec(tmp_path, merged(moved, changes)), *options)

    def changed(line):
        return f"the spec has changed since moved was made; what differs:\n  {line}\n  fix: undo"

    recipe = {"recipe": "default"}, 'recipe: was "instant", is "default"'
    model = {"model": {"arguments": {"hidden": 24}}}, "model.arguments.hidden: was 48, is 24"
    data = {"data": {"train": {"max_rows": 99}}}, "data.train.max_rows: was null, is 99"
    for changes, line in (recipe, model, data):
        said = says(changes, "report")
        assert (said.code, line in said.err) == (0, True), said.err
    for changes, line in (recipe, model):
        said = says(changes, "clean", "--out", "a.csv", "--overwrite")
        assert (said.code, line in said.err) == (0, True), said.err
    said = says(recipe[0], "export", "--out", "b")
    assert (said.code, changed(recipe[1]) in said.err) == (0, True), said.err
    said = says(model[0], "export", "--out", "c")
    assert (said.code, said.err.count(model[1])) == (1, 1)
    assert "moved: has another model than the spec names" in said.err
    assert "fix: undo the change, or run `expunge repair" in said.err
    for command, message in (("clean", "no longer have 101"), ("export", "other training data")):
        said = says(data[0], command, "--out", "c.csv")
        assert (said.code, message in said.err) == (1, True), said.err
    said = says(recipe[0], "report")
    step = shlex.split(said.err.split("`")[1])[1:]
    held_out.rename(tmp_path / "test.npz")
    assert recipe[1] in call(*step).err
    assert "needs --overwrite or another folder" in said.err
    assert call(*step, "--overwrite").code == 0


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_without_a_result_is_an_error(call, command):
    said = call(command, "nowhere")
    assert (said.code, said.out) == (1, "")
    assert "nowhere: holds no finished run" in said.err


# ------------------------------------------------------------------------------ lists


def test_list_names_everything_that_can_be_named(call):
    said = call("list")
    assert said.code == 0
    found = json.loads(call("list", "--json").out)
    assert found.keys() == cli.results.REGISTRIES.keys()
    for kind in cli.results.REGISTRIES:
        registry = cli.results._registry(kind)
        assert list(found[kind]) == registry.names()
        for name, described in found[kind].items():
            assert described["summary"], (kind, name)
            assert name in said.out
    assert list(json.loads(call("list", "recipes", "--json").out)) == ["recipes"]
    said = call("list", "recipies")
    assert said.code == 2
    assert "recipies" in said.err


# ------------------------------------------------------------------------------ errors and streams


def test_our_errors_are_one_message_without_traceback(call, tmp_path):
    for changes, message in (
        ({"data": {"train": {"path": "missing.npz"}}}, "missing.npz"),
        ({"recipe": "defualt"}, "did you mean 'default'?"),
        ({"prune": {"fraction": 2.0}}, "prune.fraction must lie in [0, 1], not 2.0"),
    ):
        said = call("repair", write_spec(tmp_path, changes))
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith("error: ")
        assert said.err.count("error: ") == 1
        assert message in said.err
        assert "Traceback" not in said.err
    assert not Path("runs").exists()


def test_long_messages_are_not_broken_into_lines(call, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-very-long-name-" * 6
    said = call("repair", f"{name}.toml")
    assert f"{name}.toml: there is no such spec file" in said.err


def test_a_changed_repair_in_the_same_folder_is_refused_and_fresh_does_it(call, tmp_path):
    spec = write_spec(tmp_path)
    assert call("repair", spec).code == 0
    before = contents(tmp_path)
    said = call("repair", spec, "--seed", "1")
    assert said.code == 1
    assert "seed: was 0, is 1" in said.err
    assert "another folder: --out FOLDER; or discard what is there: --overwrite\n" in said.err
    assert contents(tmp_path) == before
    assert call("repair", spec, "--seed", "1", "--overwrite").code == 0


@pytest.mark.parametrize(
    "arguments", [["repari"], ["repair"], ["repair", "s.toml", "--sed", "3"], ["check", "a", "b"]]
)
def test_wrong_usage_ends_with_2(call, arguments):
    said = call(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "Usage" in said.err


def test_progress_goes_to_stderr_and_results_to_stdout(tmp_path):
    """As a user starts it: a process of its own."""
    spec = write_spec(tmp_path)
    command = [sys.executable, "-m", "expunge", "repair", str(spec), "--json"]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "runs" / "spec" / "result.json").read_text())
    assert json.loads(found.stdout) == result
    assert "Traceback" not in found.stderr


def test_one_process_of_many_prints(call, tmp_path, monkeypatch):
    spec = write_spec(tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert call("check", spec) == Said(0, "", "")
    monkeypatch.setenv("RANK", "0")
    assert "no problems" in call("check", spec).out


def test_a_spec_of_other_data_is_refused_by_name(call, tmp_path):
    spec = write_spec(tmp_path)
    assert call("score", spec).code == 0
    save_npz(tmp_path / "train.npz", noisy(200, rate=0.2))
    said = call("repair", spec)
    assert said.code == 1
    assert "train.labels" in said.err
    assert "train.inputs" not in said.err


# ------------------------------------------------------------------------------ forget


def test_samples_that_a_file_names_are_forgotten(call, tmp_path):
    spec = write_spec(tmp_path / "job")
    named = noisy(200).ids[3:23]
    (tmp_path / "ids.txt").write_text("\ufeff" + "\n".join(map(str, named)) + "\n\n")
    said = call("forget", spec, "--ids", tmp_path / "ids.txt", "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["partition"]["flagged"] == found["audit"]["samples"] == len(named)
    text = call("forget", spec, "--ids", tmp_path / "ids.txt", "--out", tmp_path / "run").out
    assert "given labels of flagged samples that the model reproduces" in text
    step = text.splitlines()[-1].removeprefix("next: expunge ")
    assert call(*shlex.split(step), "--out", tmp_path / "exported").code == 0


def test_samples_like_those_in_the_file_are_found(call, tmp_path):
    spec = write_spec(tmp_path / "job")
    named = noisy(200).ids[3:7]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, named)))
    said = call("forget", spec, "--ids", tmp_path / "ids.txt", "--find-more")
    assert (said.code, said.out) == (1, "")
    assert "4 of 200 samples are named" in said.err
    assert "name 5 samples or more" in said.err


def test_samples_that_were_held_out_need_not_be_forgotten(call, tmp_path):
    trained = {"model": {"weights": None}, "train": {"epochs": 1}, "hold_out": 0.2}
    spec = write_spec(tmp_path / "job", trained)
    loaded = load_spec(spec)
    unseen, seen = map(str, loaded.held_out.ids[:3]), map(str, loaded.train.ids[:2])
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(unseen))
    said = call("forget", spec, "--ids", ids)
    assert (said.code, said.out) == (1, "")
    assert "the model has not seen any of these samples" in said.err
    ids.write_text(ids.read_text() + "\n" + "\n".join(seen))
    said = call("forget", spec, "--ids", ids, "--json", "--overwrite")
    assert said.code == 0, said.err
    assert "3 of these samples were held out" in said.err
    assert json.loads(said.out)["audit"]["samples"] == 2


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("out", [None, "kept/mine"])
def test_a_repair_and_a_deletion_of_one_spec_lie_in_two_folders(call, tmp_path, out, trained):
    own = {"model": {"weights": None}, "train": {"epochs": 1}} if trained else {}
    spec = write_spec(tmp_path / "job", {"out": out, **own})
    (tmp_path / "ids.txt").write_text("\n".join(map(str, noisy(200).ids[:5])))
    folder = Path(out or "runs/spec")
    for arguments, run in (
        (("repair", spec), folder),
        (
            ("forget", spec, "--ids", tmp_path / "ids.txt"),
            folder.with_name(f"{folder.name}-forget"),
        ),
    ):
        said = call(*arguments)
        assert said.code == 0, said.err
        assert f"report: {run / 'report.html'}" in said.out
        assert (run / "0-train").exists() == (trained and run == folder)  # once for both
    assert (folder / "result.json").is_file()


def test_a_file_that_names_a_stranger_is_an_error(call, tmp_path):
    spec = write_spec(tmp_path / "job")
    (tmp_path / "ids.txt").write_text("1000\n77\n")
    said = call("forget", spec, "--ids", tmp_path / "ids.txt")
    assert (said.code, said.out) == (1, "")
    assert "no training sample has the id 77" in said.err
    assert call("forget", spec, "--ids", tmp_path / "none.txt").code == 2


@pytest.mark.parametrize(
    ("named", "options", "message"),
    [
        ([], (), "no id is given"),
        ([77], (), "no training sample has the id 77"),
        (noisy(200).ids, (), "would be left"),
        (noisy(200).ids[:4], ("--find-more",), "name 5 samples or more"),
    ],
)
def test_ids_are_examined_before_a_training(call, tmp_path, named, options, message):
    spec = write_spec(tmp_path / "job", {"model": {"weights": None}, "train": {"epochs": 1}})
    (tmp_path / "ids.txt").write_text("\n".join(map(str, named)))
    said = call("forget", spec, "--ids", tmp_path / "ids.txt", *options)
    assert (said.code, said.out) == (1, "")
    assert message in said.err
    assert not Path("runs").exists()


def test_a_model_of_other_settings_than_the_repairs_is_trained_in_a_folder_of_its_own(
    call, tmp_path
):
    spec = write_spec(tmp_path / "job", {"model": {"weights": None}, "train": {"epochs": 1}})
    assert call("repair", spec).code == 0
    (tmp_path / "ids.txt").write_text("\n".join(map(str, noisy(200).ids[:5])))
    command = ("forget", spec, "--ids", tmp_path / "ids.txt", "--seed", 5, "--overwrite")
    said = call(*command)
    assert (said.code, said.out) == (1, "")
    assert "seed: was 0, is 5" in said.err
    assert "fix: undo the change, or name another folder, in which a model is trained" in said.err
    assert "--out FOLDER" in said.err
    assert call(*command, "--out", "own").code == 0


def test_a_file_of_ids_that_is_no_text_is_an_error(call, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"1000\n\xff\xfe\n")
    said = call("forget", write_spec(tmp_path / "job"), "--ids", tmp_path / "ids.txt")
    assert (said.code, said.out) == (1, "")
    assert "ids.txt: is not UTF-8 text: invalid start byte at byte 5" in said.err
