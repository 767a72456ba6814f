"""The commands of docs/deployment.md for workers with data of their own, as real processes; and mistakes in them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def images(root: Path, clients: dict[str, int]) -> None:
    """Dim pictures of the healthy and bright ones of the ill, for each client as many of both."""
    rng = np.random.default_rng(len(clients))
    for client, count in clients.items():
        for label, light in (("healthy", 60), ("ill", 160)):
            for part, number in (("train", count), ("test", 3)):
                folder = root / part / client / label
                folder.mkdir(parents=True)
                for i in range(number):
                    pixels = rng.integers(light, light + 60, (8, 8), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")


def test_the_commands_of_the_page_end_in_the_model_of_all_data_in_one_place(
    tmp_path, page_commands, start, finish, secret
):
    images(tmp_path / "hospital_a", {"ann": 9, "cyd": 14})
    images(tmp_path / "hospital_b", {"bob": 11, "dan": 6})
    for hospital in ("hospital_a", "hospital_b"):
        shutil.copytree(tmp_path / hospital, tmp_path / "union", dirs_exist_ok=True)
    server, *workers = page_commands("Data that stay where they are")
    assert all(words[:3] == ["python", "-m", "fedsim"] for words in (server, *workers))
    common = ["trainer=serial", "server.evaluate_every=1"]
    of_server = [word for word in server[3:] if word.partition("=")[0].split(".")[0] in ("model", "server")]
    alone = start(
        tmp_path, *of_server, *common, "data=folders", "data.root=union",
        f"hydra.run.dir={tmp_path}/alone",
    )  # fmt: skip
    running = start(tmp_path, *server[3:], *common, f"hydra.run.dir={tmp_path}/run")
    nodes = [start(tmp_path, *words[3:], f"hydra.run.dir={tmp_path}/w{i}") for i, words in enumerate(workers)]
    out = finish(running)
    for node in nodes:
        finish(node)
    finish(alone)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "alone")]
    assert models[0] == models[1]
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert (last["evaluated_workers"], last["declined_workers"], last["evaluated_clients"]) == ("1", "1", "2")
    assert float(last["test_accuracy"]) > 0.9
    assert "remote (remote), 4 clients with" in out
    assert not (tmp_path / "run" / "clients.csv").exists()


MISTAKES = {
    "no server": (["data=remote"], "data=remote has no sample here: set role=server"),
    "state": (["role=server", "data=remote", "algorithm=scaffold"], "scaffold does more: choose another algorithm"),
    "median": (["role=server", "data=remote", "aggregator=median"], "data=remote averages what workers send"),
    "groups": (["role=server", "data=remote", "server.group_rounds=2"], "data=remote has no groups of clients"),
    "shape": (["role=server", "data=remote", "data.num_classes=2"], "these options need a value: data.input_shape"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(fedsim, monkeypatch, name):
    arguments, message = MISTAKES[name]
    monkeypatch.setenv("FEDSIM_SECRET", "0123456789abcdef")
    shape = [] if name == "shape" else ["data.input_shape=[4]", "data.num_classes=2"]
    done = fedsim(*arguments, *shape, "model=logistic")
    assert done.code == 1
    assert message in done.err.splitlines()[-1], done.err
