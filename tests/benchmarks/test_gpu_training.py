"""The GPU benchmark runs from end to end, on the CPU with a small model."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import gpu_training


def test_smoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--seconds", "0.2", "--backends", "sdpa", "xformers"]
    monkeypatch.setattr(sys, "argv", ["gpu_training", *words])
    gpu_training.main()
    told = json.loads(capsys.readouterr().out)
    for kind in ("full", "mixed"):
        found = told[f"sdpa, {kind}"]
        assert found["tokens_per_second"] > 0
        assert 0 < found["share_of_ceiling"] < 1
        # 2 layers of 12 x 32 x 32 weights, 6 FLOPs each; scores, two maps and the loss come on top
        assert found["flops_per_token"] > 6 * 2 * 12 * 32 * 32
        if not torch.cuda.is_available():
            assert "needs a CUDA GPU" in told[f"xformers, {kind}"]["not_measured"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_training"])
    with pytest.raises(SystemExit) as caught:
        gpu_training.main()
    assert caught.value.code == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
