"""Evaluation, comparison, export and recommendations on a small trained run, against slow references."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.evaluation import MAX_BLOCK, Block, compare, evaluate, model_scorer, rank_users
from recgpt.export import export
from recgpt.recommend import recommend_user
from recgpt.runs import TrainedRun
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log

LENGTHS = [1, 2, 3, 4, 30, 45, 7, 8, 9, 12, *(4 + i % 17 for i in range(100))]
SMALL = {"dim": 16, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = {
        "data": write_log(folder / "log", LENGTHS),
        "model": SMALL,
        "run": {"steps": 6, "dir": str(folder / "first")},
    }
    load_stage("pretrain")(config)
    return folder / "first"


def slow_ranks(run: Path, split: str) -> list[int]:
    """One user at a time through the chunk path and Python's own sorting."""
    trained = TrainedRun.open(run)
    users, prepared, model = trained.prepared.users, trained.prepared, trained.model
    history, target = (
        (users.test_history, users.test_target) if split == "test" else (users.valid_history, users.valid_target)
    )
    vectors, ranks = model.catalogue, []
    for row in range(len(users)):
        if target[row] < 0:
            continue
        first = int(users.offset[row])
        state = model.encode(prepared.events(first, first + int(history[row])))
        wanted = int(prepared.item_rows(first + int(target[row]), first + int(target[row]) + 1)[0])
        seen = set(prepared.item_rows(first, first + int(history[row])).tolist()) - {wanted}
        scores = (vectors @ state.embedding).tolist()
        ranks.append(1 + sum(scores[i] >= scores[wanted] for i in range(len(scores)) if i != wanted and i not in seen))
    return ranks


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_equals_one_user_at_a_time(run: Path, split: str) -> None:
    result = evaluate(run, split, ks=(3, 10))
    ranks = slow_ranks(run, split)
    assert result["users"] == len(ranks) == 108  # users of one or two events have no target
    assert result["model"]["recall@3"] == pytest.approx(np.mean([r <= 3 for r in ranks]))
    assert result["model"]["ndcg@10"] == pytest.approx(np.mean([1 / math.log2(1 + r) if r <= 10 else 0 for r in ranks]))
    assert result["model"]["mrr"] == pytest.approx(np.mean([1 / r for r in ranks]))
    assert {"popularity", "item_knn", "markov", "paired", "protocol"} <= set(result)
    assert result["protocol"]["trained_on"] == "train"
    assert json.loads((run / "eval" / f"{split}.json").read_text()) == result


def test_only_readings_of_the_test_part_are_logged(run: Path) -> None:
    def readings() -> int:
        path = run / "test_reads.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    before = readings()
    evaluate(run, "valid")
    assert readings() == before
    evaluate(run, "test")
    assert readings() == before + 1


def test_blocks_of_users_change_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(run, "test")
    monkeypatch.setattr("recgpt.evaluation.MAX_BLOCK", 7)
    pieces = evaluate(run, "test")
    for name in ("model", "popularity", "item_knn", "markov"):
        assert pieces[name] == pytest.approx(whole[name], abs=1e-12)


def test_compare_pairs_users(run: Path, tmp_path: Path) -> None:
    evaluate(run, "test")
    same = compare(run, run)
    assert same["second_minus_first"]["ndcg@10"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ConfigError, match="run `recgpt evaluate"):
        compare(run, tmp_path)


def test_bad_arguments_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split: 'train'; choose valid or test"):
        evaluate(run, "train")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="k: .*at least 1"):
        evaluate(run, "test", ks=(0,))
    with pytest.raises(ConfigError, match="no run folder"):
        evaluate(tmp_path)


def test_cut_offs_default_to_ten_and_fifty(run: Path) -> None:
    result = evaluate(run, "valid")
    assert [name for name in result["model"] if name.startswith("recall@")] == ["recall@10", "recall@50"]


@pytest.fixture(scope="module")
def ranker_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker")
    config = {
        "data": write_log(folder / "log", LENGTHS) | {"impressions": {}},
        "model": SMALL,
        "tasks": {"outcomes": ["click"]},
        "run": {"steps": 4, "dir": str(folder / "run")},
    }
    load_stage("finetune")(config)
    return folder / "run"


def test_a_fine_tuned_run_is_evaluated_on_impressions(ranker_run: Path) -> None:
    """Through the real run: its labels from the log itself, its item rates counted by hand."""
    result = evaluate(ranker_run, "valid")
    prepared = TrainedRun.open(ranker_run).prepared
    users, sums, counts, labels = prepared.users, np.zeros(40), np.zeros(40), []
    for row in range(len(users)):
        first, end = int(users.offset[row]), int(users.offset[row] + users.n_events[row])
        items, clicks = prepared.item_rows(first, end), prepared.events(first, end).outcomes["click"]
        for position, (item, click) in enumerate(zip(items, clicks, strict=True)):
            if users.valid_target[row] < 0 or position < users.train_end[row]:
                sums[item] += np.nan_to_num(click)
                counts[item] += not np.isnan(click)
            elif position < users.test_target[row]:
                labels.append((item, click))
    assert result["rows"] == len(labels)
    known = [(item, click) for item, click in labels if not np.isnan(click)]
    assert result["outcomes"]["click"]["rows"] == len(known)
    m, rate = result["protocol"]["item_popularity"]["click"]["m"], sums.sum() / counts.sum()
    loss = [
        -math.log(p if click else 1 - p) for p, click in (((sums[i] + m * rate) / (counts[i] + m), c) for i, c in known)
    ]
    assert result["item_popularity"]["click"]["logloss"] == pytest.approx(np.mean(loss))
    assert json.loads((ranker_run / "eval" / "valid.json").read_text()) == result
    assert not (ranker_run / "test_reads.jsonl").exists()
    evaluate(ranker_run)
    [line] = (ranker_run / "test_reads.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"time", "fingerprint", "auc"}


def test_a_fine_tuned_run_has_no_cut_offs(ranker_run: Path) -> None:
    with pytest.raises(
        ConfigError, match="^k: .* is a fine-tuned run, which is evaluated on impressions; leave it out"
    ):
        evaluate(ranker_run, ks=(10,))
    with pytest.raises(ConfigError, match="^extra: .* is a fine-tuned run"):
        evaluate(ranker_run, extra={"oracle": lambda block: np.zeros((len(block.users), 40), np.float32)})
    with pytest.raises(ConfigError, match="^precision: .* is a fine-tuned run"):
        evaluate(ranker_run, precision="bf16")


def test_only_runs_of_one_kind_are_compared(run: Path, ranker_run: Path) -> None:
    evaluate(run, "valid")
    evaluate(ranker_run, "valid")
    with pytest.raises(ConfigError, match="was evaluated on impressions and the other on next items"):
        compare(run, ranker_run, "valid")
    same = compare(ranker_run, ranker_run, "valid")["second_minus_first"]["click"]
    assert same["logloss"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def exported(out: Path, what: str) -> dict[str, list]:
    tables = [pq.read_table(path) for path in sorted((out / what).glob("part-*.parquet"))]
    return {name: sum((table[name].to_pylist() for table in tables), []) for name in tables[0].column_names}


def test_exported_vectors_reproduce_recommend(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten best of every user by a dot product of exported vectors, in `recommend`'s order."""
    monkeypatch.setattr("recgpt.export.PART", 37)
    manifest = export(run, tmp_path / "out")
    users, items = exported(tmp_path / "out", "users"), exported(tmp_path / "out", "items")
    assert (manifest["n_users"], manifest["n_items"]) == (len(users["user"]), len(items["item"])) == (len(LENGTHS), 40)
    n_events = dict(zip(users["user"], users["n_events"], strict=True))
    assert n_events == {f"user {i}": n for i, n in enumerate(LENGTHS)}
    vectors, trained = np.array(items["embedding"], np.float32), TrainedRun.open(run)
    prepared, compared = trained.prepared, 0
    for user, embedding in zip(users["user"], users["embedding"], strict=True):
        offset = int(prepared.users.offset[prepared.find_user(user)])
        events = prepared.events(offset, offset + n_events[user])
        best = [item for item, _ in trained.model.recommend(trained.model.encode(events), 10)]
        seen = set(prepared.item_rows(offset, offset + n_events[user]).tolist())
        scores = vectors @ np.array(embedding, np.float32)
        assert best == [items["item"][i] for i in np.argsort(-scores, kind="stable") if i not in seen][:10]
        compared += len(best) == 10
    assert compared >= 100
    found = recommend_user(run, "user 5", 10)
    assert found["state"]["events"] == LENGTHS[5]
    assert found["model"] == trained.model.fingerprint


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_ids_survive_from_log_to_export_unchanged(kind: str, tmp_path: Path) -> None:
    """The largest and smallest integers, neighbours that a float cannot tell apart, and strings of many scripts."""
    if kind == "integers":
        users, kinds = [2**63 - 1, 2**63 - 2, -(2**63), -1, 0], pa.int64()
        ids = [2**53 + 1, 2**53, 2**63 - 1, -(2**63), -7]
    else:
        users, kinds = ["\u0645\u0631\u062d\u0628\u0627", "\u952e", "cle\u0301", "cl\u00e9", "007"], pa.string()
        ids = ["\U0001f5dd", " leading space", "a,b", 'quote"d', "\u043a\u043b\u044e\u0447"]
    rows = [(user, ids[(u + t) % 5], t) for u, user in enumerate(users) for t in range(6)]
    log = pa.table(
        {
            "u": pa.array([r[0] for r in rows], kinds),
            "i": pa.array([r[1] for r in rows], kinds),
            "t": [r[2] for r in rows],
        }
    )
    pq.write_table(log, tmp_path / "log.parquet")
    data = {"events": str(tmp_path / "log.parquet"), "user": "u", "item": "i", "order": "t"}
    data["prepared"] = str(tmp_path / "prepared")
    load_stage("pretrain")({"data": data, "model": SMALL, "run": {"steps": 2, "dir": str(tmp_path / "run")}})
    export(tmp_path / "run", tmp_path / "out")
    assert sorted(exported(tmp_path / "out", "users")["user"]) == sorted(users)
    assert sorted(exported(tmp_path / "out", "items")["item"]) == sorted(ids)
    for user in users:
        found = recommend_user(tmp_path / "run", str(user), 3)
        assert found["state"]["events"] == 6


def test_a_killed_export_goes_on_with_the_missing_parts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recgpt.export.PART", 20)
    whole, out = tmp_path / "whole", tmp_path / "out"
    export(run, whole)
    calls = []

    def dying(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr("recgpt.export.atomic_write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            export(run, out)
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert len(kept) == 4
    export(run, out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for what in ("users", "items"):
        assert exported(out, what) == exported(whole, what)


def test_an_export_is_not_mixed_with_another(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", users=False)
    with pytest.raises(ConfigError, match=r"holds another export \(users: False there, True here\)"):
        export(run, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no export; choose another --out"):
        export(run, tmp_path / "mine")


def test_users_in_bfloat16_are_near_those_in_float32(run: Path, tmp_path: Path) -> None:
    manifests = [export(run, tmp_path / name, precision=name) for name in ("fp32", "bf16")]
    assert [manifest["precision"] for manifest in manifests] == ["fp32", "bf16"]
    exact, near = (np.array(exported(tmp_path / name, "users")["embedding"]) for name in ("fp32", "bf16"))
    assert 1e-5 < np.abs(exact - near).max() < 2e-2
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-5)
    assert exported(tmp_path / "fp32", "items") == exported(tmp_path / "bf16", "items")

    with pytest.raises(ConfigError, match=r"holds another export \(precision: fp32 there, bf16 here\)"):
        export(run, tmp_path / "fp32", precision="bf16")
    manifest = tmp_path / "fp32" / "manifest.json"
    told = json.loads(manifest.read_text())
    del told["precision"], told["want"]  # as written before there was a choice
    manifest.write_text(json.dumps(told))
    assert export(run, tmp_path / "fp32") == {"precision": "fp32", "want": {}} | told

    plain, rough = evaluate(run), evaluate(run, precision="bf16")
    assert (plain["protocol"].pop("precision"), rough["protocol"].pop("precision")) == ("fp32", "bf16")
    assert rough["model"]["ndcg@10"] == pytest.approx(plain["model"]["ndcg@10"], abs=0.05)
    assert rough["markov"] == plain["markov"]


def test_a_wrong_precision_is_told_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    wrong: Any = "fp16"
    for call in (lambda: export(run, tmp_path / "out", precision=wrong), lambda: evaluate(run, precision=wrong)):
        with pytest.raises(ConfigError, match="precision: 'fp16'; choose fp32 or bf16"):
            call()
    with pytest.raises(ConfigError, match="precision: bf16 is of users' vectors, and none are asked for"):
        export(run, tmp_path / "out", users=False, precision="bf16")
    assert not (tmp_path / "out").exists()


def test_runs_that_were_evaluated_in_two_precisions_are_not_compared(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "rough")
    evaluate(run)
    evaluate(tmp_path / "rough", precision="bf16")
    with pytest.raises(ConfigError, match="evaluated in fp32 and bf16"):
        compare(run, tmp_path / "rough")


@pytest.mark.parametrize("rows", [MAX_BLOCK, 7])
def test_ranks_do_not_depend_on_the_number_of_cores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("recgpt.evaluation.RANKED_BLOCK", rows)
    monkeypatch.setattr("recgpt.api.BLOCK_POSITIONS", 40)
    trained = TrainedRun.open(run)
    weight = torch.nn.Parameter(torch.ones(()))

    def with_gradient(block: Block) -> np.ndarray:
        return (weight * torch.from_numpy(scorer(block))).numpy()  # refused where gradients are on

    found = {}
    for threads in (1, 3):
        torch.set_num_threads(threads)
        scorer = model_scorer(trained.model)
        rankings, protocol = rank_users(trained.prepared, "test", {"model": scorer, "same": with_gradient}, (5,))
        export(run, tmp_path / str(threads), items=False)
        found[threads] = [ranking.rank().tolist() for ranking in rankings.values()], protocol
        assert torch.get_num_threads() == threads
    assert found[1] == found[3]
    assert exported(tmp_path / "1", "users") == exported(tmp_path / "3", "users")


def test_an_error_of_a_scorer_is_raised_and_leaves_torch_as_it_was(run: Path) -> None:
    def broken(block: Block) -> np.ndarray:
        raise RuntimeError("no oracle here")

    torch.set_num_threads(3)
    with pytest.raises(RuntimeError, match="no oracle here"):
        rank_users(TrainedRun.open(run).prepared, "test", {"oracle": broken}, (5,))
    assert torch.get_num_threads() == 3


def test_as_of_leaves_out_later_events(run: Path, tmp_path: Path) -> None:
    prepared: Prepared = TrainedRun.open(run).prepared
    moment = 1_600_500_000
    export(run, tmp_path / "out", items=False, as_of=str(moment))
    users = exported(tmp_path / "out", "users")
    for user, n_events, last_time in zip(users["user"], users["n_events"], users["last_time"], strict=True):
        row = prepared.find_user(user)
        first = int(prepared.users.offset[row])
        time = prepared.events(first, first + int(prepared.users.n_events[row])).time
        assert n_events == (time < moment * 10**6).sum()
        known = None if last_time is None else round(last_time.timestamp()) * 10**6
        assert known == (time[n_events - 1] if n_events else None)


def test_unknown_user_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="user 'nobody' is not in the log"):
        recommend_user(run, "nobody", 5)


def small_run(folder: Path, lengths: list[int], **run: object) -> tuple[dict, Path]:
    config = {
        "data": write_log(folder / "log", lengths, n_items=12),
        "model": SMALL,
        "run": {"steps": 2, "dir": str(folder / "run")} | run,
    }
    load_stage("pretrain")(config)
    return config, folder / "run"


def test_a_run_is_bound_to_its_log(tmp_path: Path) -> None:
    """One more event of a known item is another log: no resume, no "finished", no evaluation under the old run."""
    config, run = small_run(tmp_path, [9, 9, 9])
    before = evaluate(run)
    log = pq.read_table(tmp_path / "log" / "events.parquet")
    pq.write_table(pa.concat_tables([log, log.slice(0, 1)]), tmp_path / "log" / "events.parquet")
    assert evaluate(run) == before  # the prepared log of the run is still there
    with pytest.raises(ConfigError, match=r"holds a run of another config \(run\.log: \w+ there, \w+ here\)"):
        load_stage("pretrain")(config)
    with pytest.raises(ConfigError, match="the log has changed since this run was trained"):
        evaluate(run)
    load_stage("pretrain")(config, fresh=True)
    assert evaluate(run)["users"] == 3


def test_a_finished_export_of_a_changed_log_is_refused(tmp_path: Path) -> None:
    config, run = small_run(tmp_path, [9, 9, 9])
    first = export(run, tmp_path / "out")
    assert export(run, tmp_path / "out") == first
    write_log(tmp_path / "log", [9, 9, 10], n_items=12)
    load_stage("pretrain")(config, fresh=True)
    with pytest.raises(ConfigError, match="holds another export"):
        export(run, tmp_path / "out")


def test_a_bad_moment_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2024-13-01"):
        export(run, tmp_path / "out", as_of="2024-13-01")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--out: .* is a file"):
        export(run, tmp_path / "file")


def test_a_run_holds_the_items_of_its_log(run: Path) -> None:
    model, log = RecGPT.from_pretrained(run), pq.read_table(run.parent / "log" / "events.parquet")
    assert sorted(model.items.ids.to_pylist()) == sorted(set(log["item"].to_pylist()))
