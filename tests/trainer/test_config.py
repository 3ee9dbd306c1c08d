import os
import random
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.trainer.command_line import configuration
from trainer import config
from trainer.errors import ConfigError


def refused(*overrides: str, config_dir: Path | None = None) -> str:
    """The message with which overrides are refused."""
    with pytest.raises(ConfigError) as caught:
        config.load(overrides, config_dir)
    return str(caught.value)


def test_defaults():
    job = config.load([])
    assert job.choices["loss"] == "softmax_crossentropy"
    assert job.choices["data"] == "digits"
    assert job.config.trainer.epochs == 30
    assert job.config.gradient.mode == "analytic"
    assert job.config.loss._target_ == "losses.softmax_crossentropy.SoftmaxCrossentropy"
    assert "hydra" not in job.config
    assert job.run_dir.parts[0] == "outputs"
    assert not job.run_dir.exists()


def test_choices_and_keys_are_taken():
    overrides = [
        "loss=huber",
        "loss.delta=2",
        "data=diabetes",
        "data.batch_size=64",
        "model=linear",
        "optimizer=sgd",
        "gradient=auto",
        "seed=7",
    ]
    job = config.load(overrides)
    assert job.overrides == tuple(overrides)
    assert (job.config.loss.delta, job.config.data.batch_size, job.config.gradient.mode, job.config.seed) == (2, 64, "auto", 7)
    assert {group: job.choices[group] for group in ("loss", "data", "model", "optimizer")} == {
        "loss": "huber",
        "data": "diabetes",
        "model": "linear",
        "optimizer": "sgd",
    }


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_plus_makes_no_difference_to_a_key_that_exists(prefix):
    assert config.load([f"{prefix}trainer.log_every=3"]).config.trainer.log_every == 3


@pytest.mark.slow
def test_every_shipped_choice_is_valid_and_adds_no_key_to_another(tmp_path):
    groups = config.groups(config.config_dirs(None))
    groups["experiment"] = ["none"]  # the others choose a loss and set its keys; tests/test_experiments.py loads each
    table, path = ["++data.path=mine", "++data.target=y"], ["++data.path=mine"]
    required = {"csv": table, "npz": table, "npy": path, "image_folder": path}
    for number in range(max(map(len, groups.values()))):
        chosen = {group: choices[number % len(choices)] for group, choices in groups.items()}
        extra = required.get(chosen["data"], [])
        assert config.load([*(f"{group}={choice}" for group, choice in chosen.items()), *extra], tmp_path).choices == chosen


def test_parts_of_files_are_no_choices():
    assert "_base" not in config.groups(config.config_dirs(None))["data"]
    assert "there is no such data" in refused("data=_base")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=nope"], ["loss=nope", "stable_mse"]),
        (["loss=huberr"], ["did you mean huber?"]),
        (["trainer.every=3"], ["did you mean trainer.log_every or trainer.eval_every?"]),
        (["optimizer.rate=0.1"], ["did you mean optimizer.learning_rate?"]),
        (["loss=focal"], ["did you mean binary_focal or categorical_focal?"]),
        (["precision=float16"], ["did you mean mixed_float16?"]),
        (["losss=mse"], ["losss", "did you mean loss?"]),
        (["loss=huber", "loss.dleta=1"], ["loss.dleta", "did you mean loss.delta?"]),
        (["loss=mse", "+loss.delt=1"], ["loss.delt", "loss=mse"]),
        (["loss=mse", "++loss.delt=1"], ["loss.delt"]),
        (["trainer.steps=three"], ["trainer.steps=three", "a whole number >= 1", "trainer.steps=1"]),
        (["trainer.steps=2.5"], ["trainer.steps=2.5", "a whole number"]),
        (["+trainer.stpes=3"], ["trainer.stpes", "did you mean trainer.steps?"]),
        (["++trainer.early_stopping.patence=3"], ["did you mean trainer.early_stopping.patience?"]),
        (["x=[1"], ["x=[1", "close the bracket", """'x="[1"'"""]),
        (["trainer=3"], ["trainer is a section", "steps"]),
        (["trainer.compile=grpah"], ["did you mean trainer.compile=graph?"]),
        (["data.standardize=maybe"], ["true or false"]),
        (["model.hidden=[a]"], ["model.hidden=[a]", "[128,128]"]),
        (["model.hidden=64"], ["must be a list"]),
        (["loss=huber", "loss.delta=big"], ["loss.delta=big", "a number", "loss.delta=1"]),
        (["~trainer.steps"], ["can't be deleted"]),
        (["loss@model=mse"], ["type loss=mse"]),
        (["seed"], ["KEY=VALUE"]),
        (["seed=1,2"], ["-m"]),
        (["loss=null"], ["there is no such loss"]),
        (["data=csv", "data.target=y"], ["data.path is required"]),
        (["seed=${nope}"], ["seed", "nope"]),
        (["data=csv", "data.path=${oc.env:SURELY_NOT_SET}", "data.target=y"], ["data.path", "SURELY_NOT_SET"]),
    ],
)
def test_mistakes_are_named(overrides, words):
    message = refused(*overrides)
    assert [word for word in words if word not in message] == []


@pytest.mark.fault
@pytest.mark.parametrize(
    "override",
    [
        "optimizer.learning_rate=nan",
        "optimizer.learning_rate=-1",
        "optimizer.learning_rate=0",
        "optimizer.learning_rate=1e400",
        "optimizer.learning_rate=true",
        "optimizer.beta_1=inf",
        "data.batch_size=0",
        "data.batch_size=-3",
        "data.eval_fraction=1",
        "data.eval_fraction=nan",
        "trainer.steps=0",
        "trainer.epochs=0",
        "trainer.epochs=nan",
        "trainer.clip_norm=0",
        "trainer.ema_decay=1",
        "seed=-1",
        "seed=4294967296",
        "checkpoint.keep=0",
        "strategy.num_devices=0",
        "data.class_weight=even",
    ],
)
def test_limits(override):
    key = override.partition("=")[0]
    message = refused(override)
    assert message.startswith(f"{key}=")
    assert "must be" in message


def test_limits_hold_for_what_an_environment_variable_gives(monkeypatch):
    monkeypatch.setenv("STEPS", "0")
    assert "trainer.steps=0: must be" in refused("trainer.steps=${oc.env:STEPS}")
    monkeypatch.setenv("STEPS", "12")
    assert config.load(["trainer.steps=${oc.env:STEPS}"]).config.trainer.steps == 12


@pytest.mark.parametrize(
    "argument", ["clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "gradient_accumulation_steps", "loss_scale_factor"]
)
def test_what_the_loop_does_is_refused_of_the_optimizer(argument):
    message = refused(f"+optimizer.{argument}=1")
    assert message.startswith(f"optimizer.{argument}=1 is refused")
    assert argument in ("loss_scale_factor", "gradient_accumulation_steps") or "type trainer." in message


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        ([], None, 30),
        (["trainer.steps=100"], 100, None),
        (["trainer.epochs=2"], None, 2),
        (["trainer={steps: 9}"], 9, None),
        (["trainer.steps=100", "trainer.epochs=null"], 100, None),
        (["debug=smoke"], 10, None),
        (["debug=smoke", "trainer.epochs=2"], None, 2),
        (["debug=smoke", "trainer.steps=3"], 3, None),
    ],
)
def test_steps_or_epochs(overrides, steps, epochs):
    trainer = config.load(overrides).config.trainer
    assert (trainer.steps, trainer.epochs) == (steps, epochs)


def test_steps_and_epochs_together_or_neither():
    assert "type one of the two" in refused("trainer.steps=5", "trainer.epochs=2")
    assert "both null" in refused("trainer.epochs=null")


def test_steps_and_epochs_both_set_in_a_file(tmp_path):
    files = configuration(tmp_path, experiment__both="# @package _global_\ntrainer: {steps: 5}\n")
    assert "both set in configuration files" in refused("experiment=both", config_dir=files)
    assert config.load(["experiment=both", "trainer.steps=7"], files).config.trainer.epochs is None


@pytest.mark.parametrize("value", ["a=b.csv", "größe.csv", "a(b.csv"])
def test_what_trips_the_grammar_is_shown_quoted(value):
    message = refused("data=csv", f"data.path={value}", "data.target=y")
    quoted = f'data.path="{value}"'
    assert f"'{quoted}'" in message
    assert config.load(["data=csv", quoted, "data.target=y"]).config.data.path == value


@pytest.mark.fault
@pytest.mark.parametrize("override", ["loss=../../evil", "loss=/etc/passwd", "loss='a\0b'", "experiment=../loss/mse"])
def test_a_choice_stays_in_its_folder(override):
    assert "is refused" in refused(override)


@pytest.mark.fault
@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=../x",
        "hydra.run.dir=a/../b",
        "hydra.run.dir='a\0b'",
        "hydra.run.dir=null",
        "hydra.run.dir=''",
        "hydra.run.dir=outputs/${seed",
        "hydra.run.dir=5",
    ],
)
def test_run_directories_that_are_no_plain_path(override):
    assert "hydra.run.dir" in refused(override)


def test_run_directories(tmp_path, monkeypatch):
    assert config.load([f"hydra.run.dir={tmp_path}/x"]).run_dir == tmp_path / "x"
    assert config.load(["hydra.run.dir=a/${loss._target_}-${seed}", "seed=3", "loss=mse"]).run_dir == Path("a/losses.mse.MSE-3")
    assert config.load(["hydra.run.dir='größe b'"]).run_dir == Path("größe b")
    monkeypatch.setenv("HOME", "/home/me")
    assert config.load(["hydra.run.dir='~/runs'"]).run_dir == Path("/home/me/runs")


@pytest.mark.fault
def test_a_secret_names_no_directory(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    assert "hunter2" not in refused("hydra.run.dir=outputs/${oc.env:MY_TOKEN}")
    through_a_key = refused("data=csv", "data.path=${oc.env:MY_TOKEN}", "data.target=y", "hydra.run.dir=outputs/${data.path}")
    assert "hunter2" not in through_a_key
    job = config.load(["data=csv", "data.path=${oc.env:MY_TOKEN}", "data.target=y"])
    assert "hunter2" not in OmegaConf.to_yaml(job.config)


@pytest.mark.parametrize(
    "override",
    [
        "hydra/launcher=joblib",
        "hydra/sweeper=optuna",
        "hydra.job.chdir=true",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.mode=MULTIRUN",
        "hydra.searchpath=[/tmp]",
        "++hydra.launcher._target_=os.system",
    ],
)
def test_of_hydra_only_directories_are_read(override):
    assert f"{override} is refused" in refused(override)


def test_a_folder_of_ones_own_adds_choices(tmp_path):
    files = configuration(
        tmp_path, loss__mine="_target_: my_package.Mine\nscale: 1.0\n", data__small="defaults: [digits, _self_]\nbatch_size: 4\n"
    )
    job = config.load(["loss=mine", "loss.scale=2", "data=small", "optimizer=sgd", "trust=[my_package]"], files)
    assert (job.config.loss.scale, job.config.data.batch_size, job.trust) == (2, 4, ("my_package",))
    assert "did you mean loss.scale?" in refused("loss=mine", "loss.scael=2", "trust=[my_package]", config_dir=files)
    assert "trust=[my_package]" in refused("loss=mine", config_dir=files)


def test_a_class_of_ones_own_may_take_further_keys(tmp_path):
    files = configuration(tmp_path, loss__mine="_target_: my_package.Mine\n")
    assert config.load(["loss=mine", "+loss.power=2", "trust=[my_package]"], files).config.loss.power == 2
    assert "type +loss.power=" in refused("loss=mine", "loss.power=2", "trust=[my_package]", config_dir=files)


def test_shared_data_keys_need_no_line_in_a_file_of_ones_own(tmp_path):
    files = configuration(tmp_path, data__mine="_target_: my_package.Rows\n")
    job = config.load(["data=mine", "data.batch_size=8", "trust=[my_package]"], files)
    assert (job.config.data.batch_size, job.config.data.split_seed) == (8, 0)


def test_a_file_of_ones_own_comes_before_the_shipped_one(tmp_path):
    files = configuration(tmp_path, loss__huber="_target_: losses.huber.Huber\ndelta: 5.0\n")
    assert config.load(["loss=huber"], files).config.loss.delta == 5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("trainer: {stpes: 3}", "set in a configuration file"),
        ("hydra: {launcher: {_target_: os.system}}", "hydra/launcher"),
        ("hydra: {callbacks: {x: {_target_: os.system}}}", "callbacks.x._target_"),
        ("hydra: {run: {dir: a/../../b}}", "hydra.run.dir"),
        ("trust: [my_package]", "command line"),
        ("trust: ${seed}", "command line"),
        ("trainer: [1", "can't be composed"),
        ("- 1", "can't be composed"),
        ("trainer: 3", "trainer is a section"),
        ("loss: {_target_: os.system}", "is refused"),
        ('resume: "a\\0b"', "NUL"),
    ],
)
def test_mistakes_in_files(tmp_path, text, word):
    files = configuration(tmp_path, experiment__bad=f"# @package _global_\n{text}\n")
    assert word in refused("experiment=bad", config_dir=files)


def test_trust_counts_only_as_typed(tmp_path):
    files = configuration(tmp_path, experiment__greedy="# @package _global_\ntrust: [other]\n")
    assert "command line" in refused("experiment=greedy", "trust=[my_package]", config_dir=files)
    assert list(config.load(["trust=[my_package]"]).config.trust) == []


@pytest.mark.fault
def test_a_large_configuration_is_refused_before_it_is_read(tmp_path):
    large = "# @package _global_\n" + "\n".join(f"key{number}: {number}" for number in range(700_000))
    assert len(large) > 10_000_000
    files = configuration(tmp_path, experiment__large=large)
    started = os.times().user
    assert "bytes" in refused("experiment=large", config_dir=files)
    assert "characters" in refused("data.path=" + "x" * 10_000_000)
    assert os.times().user - started < 2


def test_a_missing_folder_is_named(tmp_path):
    assert f"{tmp_path}/none" in refused(config_dir=tmp_path / "none")


def test_an_installed_wheel_brings_its_own_files(tmp_path, monkeypatch):
    package = tmp_path / "site" / "trainer"
    for path in (package / "conf", tmp_path / "site" / "conf"):
        path.mkdir(parents=True)
        (path / "config.yaml").touch()
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    assert config.config_dirs(None) == (package / "conf",)


KEYS = [
    *("seed", "resume", "trust", "loss", "data", "model", "trainer", "trainer.steps", "trainer.epochs", "trainer.clip_norm", "data.path"),
    *("trainer.compile", "trainer.early_stopping", "trainer.early_stopping.patience", "data.batch_size", "optimizer", "data@x", "loss/x"),
    *("optimizer.learning_rate", "optimizer.clipnorm", "loss.delta", "loss._target_", "model.hidden", "model.hidden.0", "schedule", "foo"),
    *("gradient", "gradient.mode", "strategy", "strategy.device", "debug", "experiment", "hydra.run.dir", "hydra.sweep.dir", "hydra"),
    *("hydra/launcher", "checkpoint.keep", "foo.bar", "_target_", "a..b", "größe"),
]
VALUES = [
    *("1", "0", "-1", "2.5", "1e400", "nan", "true", "null", "", "auto", "mse", "huber", "digits", "cnn", "adam", "smoke", "[1,2]", "[a]"),
    *("[", "}", "{steps:3}", "a=b", "a b", "ü", "${seed}", "${nope}", "${", "???", "'x'", '"', "\\", "1,2", "range(1,3)", "../x", "\0"),
    *("losses.mse.MSE", "os.system", "int(x)", "99999999999999999999", "$(x)", "[[[[1]]]]", "{a:1}", "{a:{b:{_target_:os.system}}}"),
]
VALID = [
    "loss=huber",
    "loss=mse",
    "seed=1",
    "trainer.steps=2",
    "data=diabetes",
    "optimizer=sgd",
    "gradient=auto",
    "+debug=smoke",
    "trust=[a]",
]


@pytest.mark.slow
def test_random_command_lines_compose_or_are_refused():
    generator = random.Random(0)
    composed = 0
    for _ in range(300):
        wild = [generator.choice(["", "", "+", "++", "~"]) + generator.choice(KEYS) + "=" + generator.choice(VALUES) for _ in range(2)]
        line = generator.sample(VALID, 2) + wild[: generator.choice([0, 1, 1, 1, 2])]
        try:
            job = config.load(line)
        except ConfigError:
            continue
        composed += 1
        OmegaConf.to_container(job.config, resolve=True)
    assert 50 < composed < 250
