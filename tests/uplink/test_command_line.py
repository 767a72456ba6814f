"""Transforms, aggregators and attacks by their names on the command line."""

import json

import pytest

TINY = ["+experiment=debug", "data.num_clients=12", "server.num_rounds=2", "evaluate.clients=false"]


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_private_run_tells_its_epsilon(fedsim):
    pytest.importorskip("dp_accounting")
    done = fedsim(*TINY, "transforms=[clip,gaussian]", "transforms.clip.max_norm=0.3", "sampler=poisson")
    assert done.code == 0, done.err
    metrics = rows(done.directory)
    summary = json.loads((done.directory / "summary.json").read_text())
    assert 0 < metrics[0]["epsilon"] < metrics[1]["epsilon"]
    assert summary["privacy"]["epsilon"] == metrics[1]["epsilon"]
    assert summary["privacy"]["sampling"] == "poisson"
    assert summary["privacy"]["neighbours"] == "a client added or removed"
    assert summary["transforms"] == ["clip", "gaussian"]


def test_the_list_is_the_order(fedsim, tmp_path):
    found = []
    for name, transforms in (("a", "[clip,top_k]"), ("b", "[top_k,clip]")):
        done = fedsim(*TINY, f"transforms={transforms}", "transforms.clip.max_norm=0.1", directory=tmp_path / name)
        assert done.code == 0, done.err
        found.append((done.directory / "model.safetensors").read_bytes())
        assert done.directory.joinpath("client_state", f"transform.{'ba'.index(name)}.top_k.rows").exists()
    assert found[0] != found[1]


def test_a_resumed_run_remembers_what_was_not_sent(fedsim, tmp_path):
    arguments = [a for a in TINY if "num_rounds" not in a]
    arguments += ["transforms=[adaptive_clip,top_k,qsgd]", "attack=gaussian", "aggregator=median"]
    whole = fedsim(*arguments, "server.num_rounds=4", directory=tmp_path / "whole")
    half = fedsim(*arguments, "server.num_rounds=2", directory=tmp_path / "half")
    more = fedsim(*arguments, "server.num_rounds=4", f"checkpoint.resume={half.directory}")
    assert more.code == 0, more.err
    models = [(d.directory / "model.safetensors").read_bytes() for d in (whole, half)]
    assert models[0] == models[1]
    same = [[{k: v for k, v in r.items() if "seconds" not in k and "memory" not in k} for r in rows(d.directory)]
            for d in (whole, half)]  # fmt: skip
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transforms=[gaussian]"], "transforms=[gaussian]: gaussian needs clip or adaptive_clip"),
        (["transforms=[clp]"], "transforms=clp does not exist; did you mean clip? there is adaptive_clip, clip"),
        (["aggregator=bulyan", "aggregator.num_attackers=1"], "needs at least 4 f + 3 = 7 updates a round, got 5"),
        (["aggregator=medan"], "aggregator=medan does not exist; did you mean median"),
        (["attack=sign_flop"], "did you mean sign_flip?"),
        (["transforms=[clip]", "transforms.clip.max_nrm=1"], "did you mean transforms.clip.max_norm"),
        (["sampler=fixed"], "sampler=fixed needs sampler.cohorts"),
    ],
)
def test_a_mistake_is_one_line_that_helps(fedsim, arguments, message):
    done = fedsim(*TINY, *arguments)
    errors = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert len(errors) == 1, done.err
    assert message in errors[0]
