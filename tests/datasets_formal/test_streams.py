import numpy as np

from datasets_formal.streams import RowStreams, advance, word


def test_words_are_those_of_splitmix64() -> None:
    # The first outputs of the generator's published C code for the state 1234567.
    stream = RowStreams(np.array([1234567], dtype=np.uint64))
    assert stream.words(3).tolist() == [[6457827717110365317, 3203168211198807973, 9817491932198370423]]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    together = RowStreams.keyed("key", np.arange(10))
    alone = RowStreams.keyed("key", np.array([7]))
    assert np.array_equal(together.bits(100)[7], alone.bits(100)[0])
    fresh = together.bits(64, np.array([7, 9]))
    assert np.array_equal(fresh[0], alone.bits(64)[0])
    assert np.array_equal(together.integers(5, 7)[7], alone.integers(5, 7)[0])


def test_reserved_words_are_read_in_any_order() -> None:
    streams, same = RowStreams.keyed("key", np.arange(3)), RowStreams.keyed("key", np.arange(3))
    counters, words = streams.reserve(4), same.words(4)
    assert np.array_equal(word(counters), words[:, 0])
    assert np.array_equal(word(advance(counters, 3)), words[:, 3])
    assert word(advance(counters[[2, 0]], np.array([3, 1]))).tolist() == [words[2, 3], words[0, 1]]
    assert np.array_equal(streams.words(2), same.words(2))


def test_keys_and_seeds_separate_streams() -> None:
    words = [RowStreams.keyed(key, np.arange(50)).words(4) for key in ("a", "b")]
    words.append(RowStreams.seeded(np.random.default_rng(0), 50).words(4))
    assert len(np.unique(np.concatenate(words))) == 600


def test_symbols_are_integers() -> None:
    one, other = RowStreams.keyed("key", np.arange(50)), RowStreams.keyed("key", np.arange(50))
    for high in (2, 3, 120, 2**15):
        assert np.array_equal(one.symbols(high, 99), other.integers(high, 99))


def test_integers_and_bits_are_even() -> None:
    streams = RowStreams.keyed("even", np.arange(2000))
    for high in (2, 3, 5, 10):
        counts = np.bincount(streams.integers(high, 100).reshape(-1), minlength=high)
        expected = 200_000 / high
        assert ((counts - expected) ** 2 / expected).sum() < 40
    bits = streams.bits(1000)
    assert set(np.unique(bits)) == {0, 1}
    assert abs(bits.mean() - 0.5) < 0.002
