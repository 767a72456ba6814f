"""bench/memory_time.py at its smallest: it runs, its three modes agree, and its report has the promised shape."""

import json

import pytest

TOO_MANY = 10**10  # clients: 8 TB of images


@pytest.mark.slow  # two imports of PyTorch, one in the program and one in the process that its modes fork from
def test_memory_time(run, tmp_path):
    options = f"--model logistic --cohorts 3 {TOO_MANY} --rounds 2 --samples-per-client 6 --batch-size 4 --device cpu"
    done = run("memory_time.py", options)
    assert "does not fit (needs" in done.stdout

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["benchmark"] == "memory_time"
    assert report["command"].startswith("python bench/memory_time.py --model logistic --cohorts 3 ")
    assert report["device"] == "cpu"
    assert report["settings"]["rounds"] == 2
    assert {"cpu", "cores", "memory_gib"} <= report["machine"].keys()
    assert {"fedsim", "torch", "numpy", "python", "threads"} <= report["versions"].keys()

    small, huge = report["results"][:3], report["results"][3:]
    assert [r["mode"] for r in small] == [r["mode"] for r in huge] == ["naive", "kept", "online"]
    assert all(r.keys() == small[0].keys() for r in huge)
    for result in small:
        assert (result["clients"], result["status"], result["detail"]) == (3, "ok", None)
        assert result["num_parameters"] == 784 * 62 + 62  # logistic regression on 28 x 28 pixels, 62 classes
        assert len(result["seconds"]) == 2
        assert result["seconds_per_round"] == result["seconds"][1] > 0
        assert result["peak_bytes"] >= 0
        # Agreement says something only if training has moved the model.
        assert result["difference"] < 1e-5 < 1e-3 < result["moved"]
    for result in huge:
        assert (result["clients"], result["status"]) == (TOO_MANY, "does not fit")
        assert result["detail"].startswith("needs ")
        assert result["seconds"] is result["peak_bytes"] is result["difference"] is None
