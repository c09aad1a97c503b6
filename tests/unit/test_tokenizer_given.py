"""Given SIDs and given embeddings: what is read of the ads, what they become, and the encoder of new ads."""

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from export.encoder import contents_of, write_encoder
from indexer.encode.bundle_encoder import open_encoder
from indexer.encode.given import SidEncoder, VectorEncoder
from indexer.encode.settings import GRAPH
from indexer.store.generations import add_generation
from indexer.store.index_store import IndexStore
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError
from training.preset.preset import Preset
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import kinds
from training.tokenizer.__main__ import run
from training.tokenizer.columns import check_readable, given_sids, given_vectors
from training.tokenizer.contents import contents_of as read_contents
from training.tokenizer.embedders import embedder_of
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.storage import TokenizerError
from training.tokenizer.tokenizer import Tokenizer

VECTORS = TokenizerConfig(embedding="given", codebook_sizes=(8, 4), hash_size=16, kmeans_iterations=3)
SIDS = TokenizerConfig(sids="given", given_sizes=(None, 9))


def ads(count=80, *, dim=6, numbers=("price", "age"), seed=0):
    random = np.random.default_rng(seed)
    columns = {name: random.exponential(30, count).tolist() for name in numbers}
    for values in columns.values():
        values[3] = None
    vectors = random.standard_normal((count, dim)).astype(np.float32)
    vectors[5] = 0
    return pl.DataFrame(
        {
            "ad_id": np.arange(count),
            "account_id": ["a"] * count,
            "conversion_type": ["b"] * count,
            "text": [""] * count,
            "created_at": [0] * count,
            **({"embedding": vectors.tolist()} if dim else {}),
            **columns,
        }
    )


def with_sids(table, *, sizes=(5, 4), seed=0):
    random = np.random.default_rng(seed)
    return table.with_columns(
        pl.Series(f"sid_{level}", random.integers(0, size, table.height)) for level, size in enumerate(sizes)
    )


def plain_vector(vector, numbers, *, known):
    """The formula of `GivenVectors` for one ad in plain Python; `known` are the columns it was fitted on."""
    length = sum(float(v) ** 2 for v in vector) ** 0.5
    x = [float(v) / length if length else 0.0 for v in vector]
    for number, column in zip(numbers, known, strict=True):
        present = [n for n in column if n is not None]
        mean = sum(present) / len(present)
        std = (sum((n - mean) ** 2 for n in present) / len(present)) ** 0.5
        standard = 0.0 if number is None else (number - mean) / (std or 1.0)
        x.append(max(-3.0, min(3.0, standard)) / 3.0 / len(known) ** 0.5)
    return x


def test_embeddings_have_length_one_and_numbers_are_standardised():
    table = ads()
    tokenizer = Tokenizer.fit(table, VECTORS, numeric_columns=("price", "age"))
    vectors, names = table["embedding"].to_list(), ("price", "age")
    known = [table[name].to_list() for name in names]
    rows = list(zip(*known, strict=True))
    wanted = [plain_vector(v, n, known=known) for v, n in zip(vectors, rows, strict=True)]
    content, _ = read_contents(table, VECTORS, numeric_columns=names)
    np.testing.assert_allclose(tokenizer.embedder.embed(content), np.array(wanted), atol=1e-6)
    assert len(np.unique(tokenizer.encode(table)[:, :2], axis=0)) > 10


def test_an_embedding_that_is_left_out_is_zero_beside_other_parts_and_refused_alone():
    table = ads().with_columns(
        embedding=pl.Series([None if i in (0, 9) else [1.0, i, 2.0] for i in range(80)]),
        text=pl.Series([f"tea milk {i % 20}" for i in range(80)]),
    )
    found = given_vectors(table, missing_is_zero=True)
    assert found[[0, 9]].tolist() == [[0, 0, 0]] * 2
    assert found[8].tolist() == [1, 8, 2]
    both = TokenizerConfig(embedding=("words", "given"), codebook_sizes=(8, 4), hash_size=16, min_df=1)
    assert Tokenizer.fit(table, both).encode(table).shape == (80, 3)
    with pytest.raises(
        ValueError, match="row 0, column embedding: expected 3 numbers as in other rows, got None"
    ):
        Tokenizer.fit(table, VECTORS)
    empty = table.with_columns(embedding=pl.Series([[]] * 80, dtype=pl.List(pl.Float32)))
    with pytest.raises(ValueError, match="expected lists of numbers, got none with a number"):
        check_readable(empty, VECTORS, numeric_columns=())


def test_equal_numbers_have_a_deviation_of_one():
    table = ads(8, dim=0, numbers=()).with_columns(price=pl.lit(0.1))  # their plain deviation is 1.4e-17
    table = table[:3]
    content, _ = read_contents(table, VECTORS, numeric_columns=("price",))
    embedder = embedder_of(VECTORS).fit(content, VECTORS)
    other, _ = read_contents(table.with_columns(price=pl.lit(0.4)), VECTORS, numeric_columns=("price",))
    np.testing.assert_allclose(embedder.embed(content), 0, atol=1e-9)
    np.testing.assert_allclose(
        embedder.embed(other), 0.1, atol=1e-6
    )  # 0.3 deviations of 1, through 3 sqrt(1)


def test_a_refit_to_texts_does_not_depend_on_the_order_of_rows():
    """Ads of one text have several older codes when those were made from embeddings."""
    table = ads().with_columns(text=pl.Series([f"tea milk {i % 20} {i % 7}" for i in range(80)]))
    older = Tokenizer.fit(table, VECTORS, numeric_columns=("price", "age"))
    config = TokenizerConfig(embedding="tfidf_svd", codebook_sizes=(8, 4), hash_size=16, min_df=1)
    table = table.with_columns(text=pl.Series([f"tea milk {i % 20}" for i in range(80)]))
    orders = [np.random.default_rng(seed).permutation(80) for seed in range(4)]
    assert len({Tokenizer.fit(table[order], config, older=older).tokenizer_id for order in orders}) == 1


@pytest.mark.parametrize(
    ("embedding", "sids", "fits"),
    [
        ("bag", "learnt", False),
        ("given", "given", False),
        ("given", "learnt", True),
        (["given"], "learnt", True),
    ],
)
def test_embedding_columns_that_no_part_reads_are_refused(embedding, sids, fits):
    """Of one modality too, which leaves no trace in the tokenizer."""
    content = {
        "data": {"source": "parquet", "path": "x", "embedding_columns": {"image": 4}},
        "tokenizer": {"embedding": embedding, "sids": sids},
    }
    if fits:
        assert Preset.model_validate(content).tokenizer.reads_given
        return
    with pytest.raises(
        ValidationError, match=r"data.embedding_columns \['image'\]: expected tokenizer.embedding"
    ):
        Preset.model_validate(content)


def without_sids(table):
    return table.with_columns(created_at=pl.lit(0, pl.Int64), text=pl.lit("tea"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop("created_at"),
            r"ads.parquet: expected columns .* missing \['created_at'\]",
        ),
        (
            lambda table: table.with_columns(created_at=pl.lit("now")),
            "ads.parquet, column created_at: expected integers, got String",
        ),
        (
            lambda table: table.with_columns(pl.when(pl.col("ad_id") != 3).then("ad_id").alias("ad_id")),
            "ads.parquet, column ad_id: expected no null, got one in row 3",
        ),
        (lambda table: table.with_columns(text=pl.lit(7)), "ads, column text: expected texts, got Int32"),
        (lambda table: table.drop("account_id"), r"ads: expected columns .* missing \['account_id'\]"),
    ],
)
def test_tables_of_another_shape_are_refused_with_their_place(change, message, tmp_path):
    change(without_sids(ads())).write_parquet(tmp_path / "ads.parquet")
    (tmp_path / "split.json").write_text('{"train_end": 1}')
    config = TokenizerConfig(embedding="tfidf_svd", codebook_sizes=(8, 4), hash_size=16, min_df=1)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path, out_dir=tmp_path / "out")


@pytest.mark.parametrize("split", ["[1]", "{", '{"train_end": "1"}', '{"train_end": true}'])
def test_a_split_that_is_none_is_refused(split, tmp_path):
    ads().with_columns(created_at=pl.lit(0)).write_parquet(tmp_path / "ads.parquet")
    (tmp_path / "split.json").write_text(split)
    with pytest.raises(ValueError, match=r"split.json: expected train_end in unix seconds"):
        run(VECTORS, tmp_path, out_dir=tmp_path / "out")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "ads.parquet").write_bytes(b"no table")
    (tmp_path / "split.json").write_text('{"train_end": 1}')
    with pytest.raises(ValueError, match=r"ads.parquet: expected a table in Parquet"):
        run(VECTORS, tmp_path, out_dir=tmp_path / "out")


def test_given_sids_have_their_id_from_sids_and_sizes_alone():
    table = with_sids(ads())
    ids = {
        kinds.fit(table, SIDS.model_copy(update=unread), train_end=0).tokenizer_id
        for unread in ({}, {"seed": 5}, {"embedding": "minilm"}, {"codebook_sizes": (4, 4)}, {"hash_size": 8})
    }
    assert len(ids) == 1
    larger = SIDS.model_copy(update={"given_sizes": (8, 9)})
    assert kinds.fit(table, larger, train_end=0).tokenizer_id not in ids


@pytest.fixture(scope="module", params=[(6, ("price", "age")), (6, ()), (0, ("price",))], ids=str)
def pair(request, tmp_path_factory):
    """A tokenizer of given vectors, numbers, or both, its encoder, and the folder of that."""
    dim, numbers = request.param
    tokenizer = Tokenizer.fit(ads(dim=dim, numbers=numbers), VECTORS, numeric_columns=numbers)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(tokenizer, folder)
    return tokenizer, open_encoder(folder), folder


@given(seed=st.integers(0, 10_000), exponent=st.integers(-30, 30))
@settings(max_examples=40, deadline=None)
def test_encoder_equals_the_tokenizer(pair, seed, exponent):
    tokenizer, encoder, _ = pair
    table = ads(40, dim=tokenizer.embedder.dim, numbers=tokenizer.numeric_columns, seed=seed)
    if "embedding" in table.columns:
        table = table.with_columns(pl.col("embedding").list.eval(pl.element() * 10.0**exponent))
    contents = contents_of(table)
    wanted = tokenizer.encode(table)
    np.testing.assert_array_equal(encoder.encode(table["ad_id"].to_numpy(), contents), wanted)
    alone = encoder.encode(table["ad_id"].to_numpy()[7:8], contents[7:8])
    np.testing.assert_array_equal(alone, wanted[7:8])


def test_vector_inside_the_graph_is_the_tokenizers_bit_for_bit(pair):
    """Codes would hide a small error of the formula: a look at the float32 vector before the grid."""
    tokenizer, encoder, folder = pair
    graph = onnx.load(str(folder / GRAPH))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    table = ads(500, dim=tokenizer.embedder.dim, numbers=tokenizer.numeric_columns, seed=3)
    content, _ = read_contents(table, VECTORS, numeric_columns=tokenizer.numeric_columns)
    (vectors,) = session.run(["given"], encoder._given.inputs(contents_of(table)))
    np.testing.assert_array_equal(vectors, tokenizer.embedder.embed(content))


def test_columns_and_a_list_are_the_same_embedding_in_any_order_of_rows():
    table = ads()
    wide = table.drop("embedding").with_columns(
        pl.Series(f"embedding_{i}", [v[i] for v in table["embedding"].to_list()]) for i in reversed(range(6))
    )
    np.testing.assert_array_equal(given_vectors(wide), given_vectors(table))
    one = Tokenizer.fit(table, VECTORS, numeric_columns=("price",))
    other = Tokenizer.fit(wide[::-1], VECTORS, numeric_columns=("price",))
    assert one.tokenizer_id == other.tokenizer_id


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"embedding": [[1.0, 2.0]] * 79 + [[1.0]]}, "row 79, column embedding: expected 2 numbers .* got 1"),
        ({"embedding": [[1.0, 2.0]] * 79 + [None]}, "row 79, column embedding: expected 2 numbers"),
        ({"embedding": [[1.0, 2.0]] * 79 + [[1.0, None]]}, "row 79, embedding: expected finite numbers"),
        ({"embedding": [[1.0, 2.0]] * 79 + [[1.0, 1e39]]}, "row 79, embedding: expected finite numbers"),
        ({"embedding": ["x"] * 80}, "expected lists of numbers, got String"),
        ({"embedding_0": [1.0] * 80}, "expected either embedding or embedding_0"),
    ],
)
def test_wrong_embeddings_are_refused(change, expected):
    table = ads().with_columns(pl.Series(name, values, strict=False) for name, values in change.items())
    with pytest.raises(ValueError, match=expected):
        check_readable(table, VECTORS, numeric_columns=())


@pytest.mark.parametrize(
    ("config", "drop", "numeric", "expected"),
    [
        (VECTORS, ["embedding"], (), "expected a column embedding, or columns embedding_0"),
        (VECTORS, [], ("colour",), "column colour: expected numbers, got no such column"),
        (TokenizerConfig(), [], ("price",), r"\['price'\]: expected tokenizer.embedding: given"),
        (TokenizerConfig(), [], (), "expected texts for tokenizer.embedding: bag, got none"),
        (SIDS, [], (), "expected the columns sid_0, sid_1 of the 2 levels .* got none"),
    ],
)
def test_a_tokenizer_that_cannot_read_the_ads_says_which_column_it_wants(config, drop, numeric, expected):
    with pytest.raises(ValueError, match=expected):
        check_readable(ads().drop(drop), config, numeric_columns=numeric)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("sid_1", 9, "row 4, column sid_1: expected a code 0..8, got 9"),
        ("sid_0", -1, "row 4, column sid_0: expected a code 0..1048575, got -1"),
        ("sid_0", None, "row 4, column sid_0: expected a code .* got None"),
        ("sid_2", 0, "expected the columns sid_0, sid_1 of the 2 levels .* got sid_0, sid_1, sid_2"),
    ],
)
def test_wrong_sids_are_refused(column, value, expected):
    table = with_sids(ads())
    old = table[column] if column in table.columns else pl.Series([0] * table.height)
    values = [value if row == 4 else code for row, code in enumerate(old)]
    with pytest.raises(ValueError, match=expected):
        given_sids(table.with_columns(pl.Series(column, values)), SIDS.given_sizes)


def test_sids_are_taken_as_they_are_and_an_ad_keeps_its_own(tmp_path):
    table = with_sids(ads())
    tokenizer = kinds.fit(table[::-1], SIDS, train_end=-1)
    wanted = table.select("sid_0", "sid_1").to_numpy()
    np.testing.assert_array_equal(tokenizer.encode(table), wanted)
    assert tokenizer.level_sizes == (5, 9)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = kinds.load(tmp_path / "tokenizer")
    assert (loaded.tokenizer_id, loaded.level_sizes) == (tokenizer.tokenizer_id, (5, 9))
    assert kinds.is_made_with(loaded, SIDS, numeric_columns=())
    assert not kinds.is_made_with(loaded, TokenizerConfig(), numeric_columns=())
    other = kinds.fit(with_sids(ads(), seed=1), SIDS, train_end=0)
    assert other.tokenizer_id != tokenizer.tokenizer_id
    newer = pl.concat([table, table[:1].with_columns(ad_id=pl.lit(500, pl.Int64))])
    np.testing.assert_array_equal(loaded.encode(newer)[-1], wanted[0])
    moved = table.with_columns(sid_0=pl.when(pl.col("ad_id") == 7).then(0).otherwise("sid_0"))
    if moved["sid_0"][7] == table["sid_0"][7]:
        moved = moved.with_columns(sid_0=pl.when(pl.col("ad_id") == 7).then(1).otherwise("sid_0"))
    with pytest.raises(ValueError, match="ad 7: expected the SID .* that it had"):
        loaded.encode(moved)
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path / "tokenizer")


def test_the_tokenize_step_of_given_sids_takes_ads_of_any_day_and_goes_on_with_newer_ones(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text('{"train_end": -5}')
    table = with_sids(ads())
    table.write_parquet(tmp_path / "data" / "ads.parquet")
    run(SIDS, tmp_path / "data", out_dir=tmp_path / "out")
    newer = pl.concat([table, table[:1].with_columns(ad_id=pl.lit(500, pl.Int64))])
    newer.write_parquet(tmp_path / "data" / "ads.parquet")
    run(SIDS, tmp_path / "data", out_dir=tmp_path / "out", keep=True)
    sids = pl.read_parquet(tmp_path / "out" / "sids.parquet")
    assert sids.height == 81
    with pytest.raises(ValueError, match="tokenizer.sids given -> learnt"):
        run(VECTORS, tmp_path / "data", out_dir=tmp_path / "out", keep=True)


def test_an_index_never_fills_a_generation_of_given_sids_from_old_events(tmp_path):
    tokenizer = GivenSids.fit(with_sids(ads()), SIDS)
    write_encoder(tokenizer, tmp_path / "encoder")
    encoder = open_encoder(tmp_path / "encoder")
    assert isinstance(encoder, SidEncoder)
    assert not (tmp_path / "encoder" / GRAPH).exists()
    with IndexStore(tmp_path / "index") as store:
        with pytest.raises(IndexStoreError, match="come with the tables; run `make index`"):
            add_generation(store.file, encoder)
        assert not store.meta.generations


def test_an_encoder_of_another_kind_is_refused(tmp_path):
    write_encoder(GivenSids.fit(with_sids(ads()), SIDS), tmp_path / "encoder")
    with pytest.raises(BundleError, match="expected format_version 1 and analysis given_vectors, got 1 and"):
        VectorEncoder(tmp_path / "encoder")
