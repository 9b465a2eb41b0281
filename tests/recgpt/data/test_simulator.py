"""The simulated log: its constants, its files, and that its truth is the truth."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from recgpt.data import world
from recgpt.data.catalogue import make_catalogue
from recgpt.data.simulator import Simulation, SimulatorConfig, open_simulation, simulate
from recgpt.errors import ConfigError, RecGPTError
from recgpt.metrics import ndcg_gain, target_ranks
from recgpt.retrieval import RECOMMENDERS, make_block


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, object]:
    folder = tmp_path_factory.mktemp("simulator") / "tiny"
    return simulate(SimulatorConfig.preset("tiny"), folder), folder


def histories(simulation: Simulation) -> list[np.ndarray]:
    return np.split(simulation.log.item, np.flatnonzero(np.diff(simulation.log.user)) + 1)


def ndcg(scores: np.ndarray, sequences: list[np.ndarray], back: int) -> float:
    """Mean NDCG@10 of the event ``back`` from the end; seen removed, target kept."""
    scores = scores.copy()
    rows = np.arange(len(sequences))
    target = np.array([items[-back] for items in sequences])
    own = scores[rows, target].copy()
    for row, items in enumerate(sequences):
        scores[row, items[:-back]] = -np.inf
    scores[rows, target] = own
    return float(ndcg_gain(target_ranks(scores, target)[0], 10).mean())


class TestTruth:
    def test_oracle_is_a_distribution_over_all_items(self, tiny):
        simulation, _ = tiny
        scores = simulation.oracle_scores(np.arange(300), "test")
        assert scores.shape == (300, 200)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=1), 1, rtol=1e-5)

    @pytest.mark.parametrize(("part", "back"), [("valid", 2), ("test", 1)])
    def test_oracle_gives_the_event_the_probability_it_was_drawn_with(self, tiny, part, back):
        simulation, _ = tiny
        scores = simulation.oracle_scores(np.arange(300), part)
        last = np.array([items[-back] for items in histories(simulation)])
        ends = np.searchsorted(simulation.log.user, np.arange(300), side="right")
        drawn = simulation.log.p_exposure[ends - back]
        np.testing.assert_allclose(np.exp(scores[np.arange(300), last]), drawn, rtol=1e-3)

    def test_mean_log_probability_equals_the_entropy(self, tiny):
        # What is drawn with the stated probabilities has E log p = -entropy.
        simulation, _ = tiny
        scores = simulation.oracle_scores(np.arange(300), "test").astype(np.float64)
        ends = np.searchsorted(simulation.log.user, np.arange(300), side="right")
        log_p = np.log(simulation.log.p_exposure[ends - 1].astype(np.float64))
        entropy = -(np.exp(scores) * scores).sum(axis=1)
        gap = log_p + entropy
        assert abs(gap.mean()) < 4 * gap.std() / 300**0.5

    @pytest.mark.parametrize(("outcome", "p"), [("click", "p_click"), ("like", "p_like")])
    def test_outcomes_happen_as_often_as_stated(self, tiny, outcome, p):
        log = tiny[0].log
        happened, stated = getattr(log, outcome), getattr(log, p)
        order = np.argsort(stated)
        for tenth in np.array_split(order, 10):
            mean = stated[tenth].mean()
            error = (mean * (1 - mean) / len(tenth)) ** 0.5
            assert abs(happened[tenth].mean() - mean) < 4 * error + 1e-3

    def test_seconds_watched_have_the_stated_mean(self, tiny):
        log = tiny[0].log
        gap = log.watch_seconds - log.mean_watch_seconds
        assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5

    def test_a_like_needs_a_click(self, tiny):
        log = tiny[0].log
        assert (log.like <= log.click).all()
        assert (log.p_like < log.p_click).all()

    def test_the_oracle_beats_what_counts(self, tiny):
        simulation, _ = tiny
        sequences = histories(simulation)
        oracle = ndcg(simulation.oracle_scores(np.arange(300), "test"), sequences, 1)
        for recommender in RECOMMENDERS.values():
            fitted = recommender().fit([make_block([items[:-2] for items in sequences])], 200)
            counted = ndcg(fitted.score(make_block([items[:-1] for items in sequences])), sequences, 1)
            assert oracle > 1.3 * counted

    def test_unknown_part_and_user_are_refused(self, tiny):
        with pytest.raises(RecGPTError, match="part: 'train' has no oracle"):
            tiny[0].oracle_scores([0], "train")
        with pytest.raises(RecGPTError, match="user: 'nobody' is not simulated"):
            tiny[0].user_rows(["nobody"])


class TestWorld:
    def test_probabilities_by_hand(self):
        # One open series with weight ln 2: c = rate (1 - 1/2) = .3, all of it on item 1.
        config = SimulatorConfig(n_items=20, continue_rate=0.6)
        weight = np.array([[np.log(2), 0]], dtype=np.float32)
        assert world.continue_probability(config, weight)[0] == pytest.approx(0.3)

    def test_a_click_opens_the_next_part_and_showing_it_closes_it(self, tiny):
        simulation, _ = tiny
        config, catalogue = simulation.config, simulation.catalogue
        one = world.World(config, catalogue, np.ones((1, config.n_interests, 16), np.float32))
        first = int(np.flatnonzero(catalogue.successor >= 0)[0])
        yes, no = np.array([True]), np.array([False])
        one.learn(np.array([first]), no, no)
        assert (one.state().open_item == -1).all()
        one.learn(np.array([first]), yes, yes)
        following = catalogue.successor[first]
        assert one.state().open_item[0].tolist().count(following) == 1
        assert one.state().open_weight.sum() == pytest.approx(config.same_session * config.like_weight)
        one.learn(np.array([following]), no, no)
        assert (one.state().open_item == -1).all()
        assert one.state().open_weight.sum() == 0

    def test_cutting_users_into_chunks_changes_nothing(self, tiny, monkeypatch):
        whole = tiny[0].log
        monkeypatch.setattr(world, "_CHUNK", 37)
        parts = world.generate(tiny[0].config, tiny[0].catalogue)[0]
        np.testing.assert_array_equal(parts.item[:200], whole.item[:200])
        np.testing.assert_array_equal(parts.time_ms, whole.time_ms)

    def test_shortest_above_longest_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="min_events: 9 is above max_events 5"):
            simulate(SimulatorConfig(min_events=9, max_events=5), tmp_path / "log")
        assert not (tmp_path / "log").exists()

    def test_only_a_simulation_is_written_over(self, tmp_path):
        config = SimulatorConfig.preset("tiny").model_copy(update={"n_users": 20})
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letters").write_text("x")
        with pytest.raises(ConfigError, match="mine: is not empty and holds no truth/states.npz"):
            simulate(config, tmp_path / "mine")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letters"]
        with pytest.raises(ConfigError, match="^out: .*letters is a file, not a folder"):
            simulate(config, tmp_path / "mine" / "letters")
        simulate(config, tmp_path / "log")
        simulate(config.model_copy(update={"n_users": 21}), tmp_path / "log")
        assert open_simulation(tmp_path / "log").config.n_users == 21

    def test_unknown_size_is_refused(self):
        with pytest.raises(ConfigError, match="size: 'huge'"):
            SimulatorConfig.preset("huge")


class TestFiles:
    def test_a_folder_opens_as_the_same_simulation(self, tiny):
        simulation, folder = tiny
        again = open_simulation(folder)
        np.testing.assert_array_equal(
            again.oracle_scores(np.arange(40), "valid"),
            simulation.oracle_scores(np.arange(40), "valid"),
        )
        for name, values in vars(simulation.log).items():
            np.testing.assert_array_equal(getattr(again.log, name), values)

    def test_columns(self, tiny):
        simulation, folder = tiny
        events = pq.read_table(folder / "events.parquet")
        types = {field.name: str(field.type) for field in events.schema}
        assert types == {
            "user": "string",
            "item": "int64",
            "time": "int64",
            "device": "string",
            "click": "int8",
            "like": "int8",
            "watch_seconds": "float",
        }
        items = pq.read_table(folder / "items.parquet")
        assert items.column_names == ["item", "category", "title", "embedding"]
        assert items["item"].to_pylist() == simulation.item_ids.tolist()
        assert len(set(simulation.item_ids.tolist())) == 200
        assert len(set(items["title"].to_pylist())) > 100

    def test_a_folder_without_truth_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="holds no simulation"):
            open_simulation(tmp_path)

    def test_times_ascend_within_a_user(self, tiny):
        log = tiny[0].log
        same = log.user[1:] == log.user[:-1]
        assert (np.diff(log.time_ms)[same] >= 1_000).all()
        assert log.time_ms.min() >= world.START_MS


class TestConstants:
    """Golden values: a change of the world must be meant, and the README measured again."""

    def test_tiny_log(self, tiny):
        simulation, _ = tiny
        log = simulation.log
        assert len(log.item) == 9_077
        first = [2613911, 6193577, 3074836, 4719819, 7370250, 9850133, 1402799, 4970802]
        assert simulation.item_ids[log.item[:8]].tolist() == first
        assert log.time_ms[:3].tolist() == [1767271235900, 1767271304525, 1767520498477]
        assert log.click[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 0]
        assert simulation.catalogue.titles[log.item[1]] == "The Silver Orchard, part 15"
        # The last bits of a product may differ between machines and turn a draw: hence tolerances.
        assert log.click.mean() == pytest.approx(0.353, abs=0.005)
        assert log.like.mean() == pytest.approx(0.048, abs=0.003)
        assert log.watch_seconds.mean() == pytest.approx(38.6, abs=1)
        devices = np.bincount(log.device) / len(log.device)
        np.testing.assert_allclose(devices, [0.504, 0.192, 0.305], atol=0.002)

    def test_small_is_the_default_and_looks_like_a_log(self):
        config = SimulatorConfig.preset("small")
        assert config == SimulatorConfig()
        few = SimulatorConfig(n_users=400)
        log = simulate_log(few)
        counts = np.sort(np.bincount(log.item, minlength=few.n_items))[::-1]
        assert 0.07 < counts[:10].sum() / len(log.item) < 0.15
        repeats = 1 - len(np.unique(log.user * few.n_items + log.item)) / len(log.item)
        assert repeats < 0.01
        assert 0.4 < log.click.mean() < 0.6
        assert 0.03 < log.like.mean() < 0.1


def simulate_log(config: SimulatorConfig) -> world.Log:
    rng = np.random.Generator(np.random.PCG64([config.seed, 0]))
    catalogue = make_catalogue(
        rng,
        config.n_items,
        config.n_categories,
        config.series_length,
        config.latent_dim,
        config.content_dim,
        config.content_noise,
        config.popularity_scale,
    )
    return world.generate(config, catalogue)[0]


def test_titles_are_distinct_and_successors_are_the_next_part():
    config = SimulatorConfig()
    rng = np.random.Generator(np.random.PCG64([0, 0]))
    catalogue = make_catalogue(rng, config.n_items, 25, 16, 16, 32, 0.15, 2.1)
    assert len(set(catalogue.titles)) == config.n_items
    for row in np.flatnonzero(catalogue.successor >= 0):
        series, part = catalogue.titles[row].rsplit(", part ", 1)
        following = catalogue.titles[catalogue.successor[row]]
        assert following == f"{series}, part {int(part) + 1}"
