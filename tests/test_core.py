"""What enters the library (numbers, points, devices); how work is cut into blocks and threads."""
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from amtutorial.core import (
    as_patterns,
    as_points,
    by_rows,
    check_count,
    check_number,
    check_positive,
    check_seed,
    device_of,
    map_blocks,
    match_rows,
    one_thread,
    pick_device,
)

POINTS = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
ARRAY = POINTS.numpy()
same = torch.testing.assert_close


# Numbers


@pytest.mark.parametrize("n", [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3])])
def test_counts(n):
    assert check_count(n, "K") == 3 and type(check_count(n, "K")) is int


COUNTS = {
    0: "ValueError: K must be at least 1, not 0",
    -3: "ValueError: K must be at least 1, not -3",
    2.5: "TypeError: K must be a whole number, not float 2.5",
    3.0: "TypeError: K must be a whole number, not float 3.0",
    "many": "TypeError: K must be a whole number, not str 'many'",
    True: "TypeError: K must be a whole number, not bool True",
    None: "TypeError: K must be a whole number, not NoneType None",
}


@pytest.mark.parametrize("n", COUNTS, ids=repr)
def test_counts_refused(n):
    assert refused(check_count, n, "K") == COUNTS[n]


def test_counts_with_bounds():
    assert check_count(2, "n", most=2, least=2) == 2
    assert refused(check_count, 3, "n", most=2) == (
        "ValueError: n must be between 1 and 2 inclusive, not 3"
    )
    assert refused(check_count, 1, "n", least=2) == "ValueError: n must be at least 2, not 1"
    assert "between 1 and 60,000 inclusive, not 70,000" in refused(
        check_count, 70_000, "n", most=60_000
    )


def test_seeds():
    assert check_seed(0) == 0 and check_seed(2**32 - 1) == 2**32 - 1
    for bad in (-1, 2**32, 1.5, "9", None, True):
        assert " seed must be " in refused(check_seed, bad)
    np.random.RandomState(2**32 - 1)  # both accept the largest
    torch.Generator().manual_seed(2**32 - 1)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5])]
)
def test_one_number(value):
    assert check_number(value, "t", 1) == 0.5 and type(check_number(value, "t")) is float


def test_a_whole_number_is_a_number():
    for two in (2, np.int64(2), torch.tensor(2)):
        assert check_number(two, "sigma") == 2 and type(check_number(two, "sigma")) is float


def test_numbers_keep_their_digits():
    "A Python number does not pass through single precision."
    assert check_number(0.1, "t") == 0.1
    assert check_positive([0.1, 0.2], "t").tolist() == [0.1, 0.2]


def test_tensors_of_numbers_stay_what_they_are():
    t = torch.rand(5, requires_grad=True) + 0.1
    assert check_positive(t, "t") is t


def test_arrays_of_numbers_in_any_layout():
    falling = np.linspace(0.1, 1, 4)[::-1]
    assert check_positive(falling, "t").tolist() == falling.tolist()
    assert check_positive(falling.astype(">f4"), "t").tolist() == falling.astype("f4").tolist()
    assert check_positive(np.broadcast_to(0.5, 3), "t").tolist() == [0.5] * 3


@pytest.mark.parametrize("bad", [0, 0.0, -1, math.nan, math.inf, -math.inf, torch.tensor(0.0)])
def test_numbers_not_above_zero(bad):
    assert refused(check_number, bad, "sigma").startswith(
        "ValueError: sigma must be finite and above 0, not "
    )


def test_numbers_above_the_largest():
    assert check_number(1.0, "t", 1) == 1
    assert refused(check_number, 1.5, "t", 1) == "ValueError: t must lie in (0, 1], not 1.5"
    assert refused(check_positive, torch.tensor([0.5, 2.0]), "t", 1) == (
        "ValueError: t must lie in (0, 1], not 0.5 to 2"
    )
    assert "not nan" in refused(check_positive, torch.tensor([0.5, math.nan]), "t", 1)


@pytest.mark.parametrize(
    "bad",
    ["1", b"1", None, True, 1j, {}, [], "cold", np.array("1"), torch.zeros(0), torch.tensor(True)]
    + [torch.tensor(1j), np.array([None]), [[1], [1, 2]]],
    ids=repr,
)
def test_numbers_of_the_wrong_kind(bad):
    message = refused(check_number, bad, "beta")
    assert message.startswith("TypeError: beta must ") and "\n" not in message.split(", not ")[0]


def test_several_numbers_are_not_one():
    assert refused(check_number, [0.1, 0.2], "t") == "TypeError: t must be one number, not 2"


@pytest.mark.parametrize(
    "bad", [torch.tensor(3.5), torch.tensor([1, 2]), np.array([1, 2]), torch.tensor(True), 1j]
)
def test_arrays_are_no_counts(bad):
    said = refused(check_count, bad, "K")
    assert said.startswith(f"TypeError: K must be a whole number, not {type(bad).__name__} ")


@pytest.mark.parametrize("bad", [np.bool_(True), np.array([True]), [True], torch.ones(99) > 0])
def test_truths_are_no_numbers(bad):
    said = refused(check_positive, bad, "t")
    assert said.startswith("TypeError: t must hold real numbers, not ")
    assert "\n" not in said and len(said) < 110


def test_a_gradient_is_not_lost_in_silence():
    assert refused(check_number, torch.tensor(0.5, requires_grad=True), "sigma") == (
        "TypeError: sigma must be a plain number, not a tensor that needs a gradient"
    )


# Points


class Labelled(Dataset):
    "Points with labels, one by one."

    def __len__(self):
        return len(POINTS)

    def __getitem__(self, i):
        return POINTS[i], i


class Plain(Labelled):
    "Points alone."

    def __getitem__(self, i):
        return POINTS[i]


class Strided(Labelled):
    "A data set of NumPy points with a label in a list."

    def __getitem__(self, i):
        return [ARRAY[i], "a label"]


class Stream(IterableDataset):
    "Labelled points, one after the other."

    def __iter__(self):
        return iter(Labelled()[i] for i in range(3))


def loader(data, **options):
    return DataLoader(data, batch_size=2, **options)


SOURCES = {
    "tensor": POINTS,
    "lists": POINTS.tolist(),
    "tuples": tuple(map(tuple, POINTS.tolist())),
    "lists of whole numbers": POINTS.int().tolist(),
    "list of tensors": list(POINTS),
    "list of arrays": list(ARRAY),
    "tuple of arrays": tuple(ARRAY),
    "list of labelled points": [(point, 1) for point in POINTS],
    "generator": (point for point in POINTS),
    "parameter": torch.nn.Parameter(POINTS.clone()),
    "sparse": POINTS.to_sparse(),
    "not contiguous": POINTS.T.contiguous().T,
    "array": ARRAY,
    "Fortran order": np.asfortranarray(ARRAY),
    "negative strides": np.ascontiguousarray(ARRAY[::-1, ::-1])[::-1, ::-1],
    "every second row": np.repeat(ARRAY, 2, 0)[::2],
    "read only": np.broadcast_to(ARRAY, ARRAY.shape),
    "table": pd.DataFrame(ARRAY, columns=["x", "y"]),
    "table of two types": pd.DataFrame(dict(x=ARRAY[:, 0], y=ARRAY[:, 1].astype(int))),
    "data set": Plain(),
    "labelled data set": Labelled(),
    "labels in lists": Strided(),
    "tensors": TensorDataset(POINTS),
    "tensors and labels": TensorDataset(POINTS, torch.zeros(3)),
    "part of a data set": Subset(Labelled(), [0, 1, 2]),
    "loader": loader(Plain()),
    "loader of labelled points": loader(Labelled(), shuffle=True),
    "stream": Stream(),
    "loader of a stream": loader(Stream()),
    "loader of tensors": loader(TensorDataset(POINTS, torch.zeros(3)), drop_last=True),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SOURCES)
def test_points_of_all_kinds(kind):
    "Everything that holds the three points gives them, in their order, and without a warning."
    p = as_points(SOURCES[kind], d=2, batch=True)
    assert p.is_floating_point() and p.layout == torch.strided
    same(p.float(), POINTS, rtol=0, atol=0)


DTYPES = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8".split()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_type_and_byte_order(dtype, order):
    p = as_points(ARRAY.astype(order + dtype))
    assert p.dtype == (torch.float64 if dtype == "f8" else torch.float32)
    assert p.tolist() == POINTS.tolist()


TENSORS = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"


@pytest.mark.parametrize("dtype", TENSORS.split() + ["float8_e4m3fn", "float8_e5m2"])
def test_tensors_of_any_type(dtype):
    p = as_points(POINTS.to(getattr(torch, dtype)))
    assert p.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    same(p.float(), POINTS, rtol=0, atol=0 if "float8" not in dtype else 0.5)


def test_a_good_tensor_is_not_copied():
    assert as_points(POINTS) is POINTS
    single = torch.tensor([3.0])
    assert as_points(single) is single  # one point in one dimension


def test_gradients_go_through():
    x = torch.randn(3, 2, dtype=torch.float16, requires_grad=True)
    as_points(x).sum().backward()
    assert x.grad.tolist() == torch.ones(3, 2).tolist()


def test_the_given_array_is_left_alone():
    big = ARRAY.astype(">i4")
    as_points(big).add_(1)
    assert (big == ARRAY).all()


class Items(Dataset):
    "A data set whose item `i` is f(i)."

    def __init__(self, f):
        self.f = f

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.f(i)


class Counted(IterableDataset):
    "A stream that knows its length."

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(POINTS)


def objects(items):
    "An array of objects, one for each item."
    array = np.empty(len(items), object)
    array[:] = items
    return array


LINE, LABELS = POINTS[:, 0], torch.tensor([7.0, 8.0, 9.0])
# Of one-dimensional points the label is no coordinate (denoising-diffusion-pytorch 301)
ON_A_LINE = {
    "tensors and labels": TensorDataset(LINE, LABELS),
    "tensors and whole labels": TensorDataset(LINE, LABELS.long()),
    "tensors": TensorDataset(LINE),
    "loader": loader(TensorDataset(LINE, LABELS)),
    "part": Subset(TensorDataset(LINE, LABELS), [0, 1, 2]),
    "loader of a line": loader(LINE),
    "loader of an array": loader(LINE.numpy()),
    "loader of pairs": loader([(LINE[i], 7) for i in range(3)]),
    "pairs": [(LINE[i], LABELS[i]) for i in range(3)],
    "arrays and labels": Items(lambda i: (LINE.numpy()[i : i + 1], i)),
    "numbers": Items(lambda i: LINE[i].item()),
    "points of one coordinate": [torch.tensor([a]) for a in LINE.tolist()],
}


@pytest.mark.parametrize("kind", ON_A_LINE)
def test_a_label_is_no_coordinate(kind):
    assert as_points(ON_A_LINE[kind], batch=True).tolist() == [[0.0], [2.0], [4.0]]


# Pandas, arrays of objects, other byte orders (pytorch 51112, 92680, 110285)
MORE = {
    "objects": ARRAY.astype(object),
    "arrays in an array": objects(list(ARRAY)),
    "tensors in an array": objects(list(POINTS)),
    "longer than double": ARRAY.astype(np.longdouble),
    "rows of another byte order": list(ARRAY.astype(">f4")),
    "nothing masked": np.ma.masked_array(ARRAY),
    "table of objects": pd.DataFrame(ARRAY).astype(object),
    "table that may have holes": pd.DataFrame(ARRAY).convert_dtypes(),
    "column of points": pd.Series(list(ARRAY)),
    "rows of a table": [pd.Series(row) for row in ARRAY],
    "lists with labels": Items(lambda i: (POINTS[i].tolist(), "label")),
    "items of one": list(TensorDataset(POINTS)),
    "pairs in a loader": loader([(point, 1) for point in POINTS]),
    "tensor in a loader": loader(POINTS),
    "lists in a loader": loader(POINTS.tolist()),
    "lists of tensors": [list(point) for point in POINTS],
    "stream with a length": Counted(),
    "tensors of two types": [POINTS[0].double(), POINTS[1], POINTS[2]],
}


@pytest.mark.parametrize("kind", MORE)
def test_points_in_other_coats(kind):
    p = as_points(MORE[kind], d=2, batch=True)
    assert p.is_floating_point() and p.tolist() == POINTS.tolist()


def test_lists_of_lists_of_tensors_lose_none():
    pairs = [[POINTS[0], POINTS[1]], [POINTS[1], POINTS[2]]]
    assert as_points(pairs).tolist() == [POINTS[:2].tolist(), POINTS[1:].tolist()]


def test_gradients_go_through_lists():
    points = [torch.tensor([a], requires_grad=True) for a in (1.0, 2.0)]
    as_points(points).sum().backward()
    assert all(p.grad.item() == 1 for p in points)


MASKED = "some values are masked; fill them or leave them out"
# What is masked, labelled in an unclear way, or no number does not slip in
UNCLEAR = {
    "dicts": (Items(lambda i: dict(x=POINTS[i], y=i)), "hand over one entry of the dict (x, y)"),
    "list of dicts": ([dict(x=point) for point in POINTS], "hand over one entry of the dict (x)"),
    "number and label": (Items(lambda i: (0.5, i)), "must be tensors, arrays or (point, label)"),
    "bare coordinates": (Items(lambda i: (0.5, 1.5)), "must be tensors, arrays or (point, label)"),
    "masked": (np.ma.masked_array(ARRAY, ARRAY > 4), MASKED),
    "masked rows": (list(np.ma.masked_array(ARRAY, ARRAY > 4)), MASKED),
    "one masked number": ([[1.0, np.ma.masked]], MASKED),
    "true among numbers": ([[True, 2.0]], "true or false is no number"),
    "truths in a table": (pd.DataFrame(dict(x=[1.0], y=[True])), "true or false is no number"),
    "objects with a hole": (np.array([[1, None]]), "not ndarray"),
    "texts of numbers": (np.array([["1", "2"]], object), "not ndarray"),
    "named columns": (np.zeros(2, [("x", "f4"), ("y", "f4")]), "not ndarray"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_unclear_points_refused(kind):
    value, why = UNCLEAR[kind]
    said = refused(as_points, value, "patterns")
    assert said.startswith("TypeError: patterns must be a tensor or an array of numbers, not ")
    assert why in said and "\n" not in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_no_ordinary_ones():
    masked = torch.masked.MaskedTensor(POINTS, POINTS > 1)
    nested = torch.nested.nested_tensor([LINE, LINE[:2]])
    for bad in masked, nested, torch.quantize_per_tensor(POINTS, 0.1, 0, torch.quint8):
        said = refused(as_points, bad)
        assert said.startswith("TypeError: x must be a tensor or an array of numbers, not ")
        assert said.endswith("it is no ordinary tensor (masked, meta, nested or quantized)")


BAD = {
    "ragged": ([[1, 2], [3]], "TypeError: x must be a tensor or an array of numbers, not list"),
    "ragged arrays": ([ARRAY[0], ARRAY[0, :1]], "TypeError: x must be a tensor or an array"),
    "text": ("circle", "TypeError: x must be a tensor or an array of numbers, not str"),
    "bytes": (b"circle", "TypeError: x must be a tensor or an array of numbers, not bytes"),
    "texts": ([["a", "b"]], "TypeError: x must be a tensor or an array of numbers, not list"),
    "array of text": (np.array([["a"]]), "TypeError: x must be a tensor or an array of numbers"),
    "objects": (np.array([[1, None]]), "TypeError: x must be a tensor or an array of numbers"),
    "dates": (np.array([["2020-01-01"]], "M8[D]"), "TypeError: x must be a tensor or an array"),
    "names in a table": (pd.DataFrame([["a", 1]]), "TypeError: x must be a tensor or an array"),
    "nothing": (None, "TypeError: x must be a tensor or an array of numbers, not NoneType"),
    "dict": ({"x": POINTS}, "TypeError: x must be a tensor or an array of numbers, not dict"),
    "meta": (POINTS.to("meta"), "TypeError: x must be a tensor or an array of numbers, not Tensor"),
    "complex": (POINTS.cfloat(), "TypeError: x must hold real numbers, not torch.complex64"),
    "booleans": (POINTS > 1, "TypeError: x must hold real numbers, not torch.bool"),
    "array of booleans": (ARRAY > 1, "TypeError: x must hold real numbers, not torch.bool"),
    "NaN": ([[0, math.nan]], "ValueError: x must be finite, but 1 of its 2 values are NaN or inf"),
    "hole in a table": (
        pd.DataFrame(dict(x=[1.0, None], y=[1, 2])),
        "ValueError: x must be finite, but 1 of its 4 values are NaN",
    ),
    "hole in a table that may have some": (
        pd.DataFrame(dict(x=[1.5, None])).convert_dtypes(),
        "ValueError: x must be finite, but 1 of its 2 values are NaN",
    ),
    "infinite": (POINTS / 0, "ValueError: x must be finite, but 6 of its 6 values are NaN or"),
    "number": (1.0, "ValueError: x must hold at least one point (..., d), not shape ()"),
    "empty": ([], "ValueError: x must hold at least one point (..., d), not shape (0,)"),
    "no rows": (POINTS[:0], "ValueError: x must hold at least one point (..., d), not shape (0, "),
    "no columns": (POINTS[:, :0], "ValueError: x must hold at least one point (..., d), not shape"),
    "empty data set": (TensorDataset(POINTS[:0]), "ValueError: x must hold at least one point"),
}


@pytest.mark.parametrize("kind", BAD)
def test_points_refused(kind):
    value, message = BAD[kind]
    said = refused(as_points, value)
    assert said.startswith(message) and "\n" not in said


def test_the_cause_is_kept():
    with pytest.raises(TypeError) as e:
        as_points([[1, 2], [3]])
    assert "expected sequence of length 2" in str(e.value.__cause__)


def test_points_of_the_wrong_shape():
    assert as_points(torch.zeros(4, 5, 2), d=2).shape == (4, 5, 2)
    assert refused(as_points, torch.zeros(4, 3), "samples", d=2) == (
        "ValueError: samples must have 2 coordinates on its last axis, not shape (4, 3)"
    )
    assert refused(as_points, torch.zeros(2, 2, 2), batch=True) == (
        "ValueError: x must have shape (B, d), not (2, 2, 2)"
    )
    assert refused(as_points, torch.zeros(2), batch=True)


def test_patterns():
    assert as_patterns(POINTS) is POINTS
    for bad in (torch.zeros(0, 2), [[0.0, math.nan]], torch.zeros(3, 2, 2), "circle", POINTS[0]):
        assert " patterns must " in refused(as_patterns, bad)
    assert refused(as_patterns, POINTS, d=3) == (
        "ValueError: patterns must have 3 coordinates on its last axis, not shape (3, 2)"
    )


# Rows


def test_rows_match():
    x, xi, t = match_rows(POINTS.double().expand(4, 3, 2), POINTS, torch.tensor(0.5), "t")
    assert x.shape == (12, 2) and t.tolist() == [[0.5]] * 12
    assert xi.dtype == t.dtype == torch.float64 and xi.tolist() == POINTS.tolist()
    *_, t = match_rows(POINTS.expand(4, 3, 2), POINTS, torch.rand(3), "t")
    assert torch.equal(t[:3], t[3:6])  # a number for each column of points
    x, _, t = match_rows(POINTS[0], POINTS, torch.tensor(2), "t")
    assert x.shape == (1, 2) and t.tolist() == [[2.0]] and t.dtype == x.dtype


def test_rows_that_misfit():
    assert refused(match_rows, POINTS, POINTS, torch.rand(4), "beta") == (
        "ValueError: beta of shape (4,) does not fit points of shape (3, 2)"
    )
    assert " x must have 2 coordinates" in refused(
        match_rows, torch.zeros(3, 5), POINTS, torch.tensor(1.0), "t"
    )
    assert " patterns must have shape" in refused(
        match_rows, POINTS, POINTS[0], torch.tensor(1.0), "t"
    )


# Blocks


def table(x, v, xi):
    "A function of rows with a table inside."
    return torch.logsumexp(-(x[:, None] - xi).square().sum(-1) / v, 1)


def blocked(x, v, xi, limit=30):
    return by_rows(lambda x, v: table(x, v, xi), xi, x, v, limit=limit)


@pytest.fixture
def rows():
    "Fifty points, fifty numbers, seven memories, in double precision."
    g = torch.Generator().manual_seed(0)
    on = dict(generator=g, dtype=torch.float64)
    return torch.randn(50, 3, **on), 0.5 + torch.rand(50, 1, **on), torch.randn(7, 3, **on)


@pytest.mark.parametrize("limit", [1, 6, 7, 30, 349, 350, 10**6, None])
def test_blocks_give_the_same_values(rows, limit):
    "Down to one row for each block, where the limit is below the number of memories."
    assert torch.equal(blocked(*rows, limit), table(*rows))


def test_blocks_of_vectors(rows):
    x, v, xi = rows
    read_out = lambda x, v: torch.softmax(-(x @ xi.T) / v, 1) @ xi
    same(by_rows(read_out, xi, x, v, limit=30), read_out(x, v), rtol=1e-13, atol=1e-13)


def largest_table(n, K, d, **options):
    "The most entries that a table had, and the number of tables."
    sizes = []

    def f(x):
        sizes.append(len(x) * K)
        return x[:, 0]

    by_rows(f, torch.zeros(K, d), torch.zeros(n, d), **options)
    return max(sizes), len(sizes)


def test_memory_is_bounded():
    assert largest_table(100_000, 100, 2) == (131_000, 77)  # 2**17 and less
    assert largest_table(2000, 60_000, 2)[0] <= 2**17
    assert largest_table(3000, 100, 64)[0] <= 2**20
    assert largest_table(600, 60_000, 64) == (256 * 60_000, 3)  # matrix products want 256 rows
    assert largest_table(5, 10, 2, limit=3) == (10, 5)  # a row is the least
    assert largest_table(5, 10, 2) == (50, 1)


def kept_for_gradients(f, *inputs):
    "Bytes that autograd keeps for the way back, besides the inputs."
    kept, known = {}, {t.untyped_storage().data_ptr() for t in inputs}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f(*inputs)
    return sum(n for place, n in kept.items() if place not in known)


def test_memory_is_bounded_with_gradients():
    "The whole table is 8 MB. Blocks keep nothing but what they were given."
    inputs = torch.randn(1000, 2), torch.ones(1000, 1), torch.randn(2000, 2)
    for i in range(3):
        one = [a.clone().requires_grad_(i == k) for k, a in enumerate(inputs)]
        whole = kept_for_gradients(table, *one)
        assert whole > 8e6
        assert kept_for_gradients(lambda *a: blocked(*a, limit=2**14), *one) < whole / 100


@pytest.mark.parametrize("wanted", ["x", "v", "xi", "x v xi"])
def test_gradients_across_blocks(rows, wanted):
    "By points, numbers and memories, first and second, against the direct computation."
    names = dict(zip(("x", "v", "xi"), rows))
    inputs = [names[n].requires_grad_() for n in wanted.split()]

    def derivatives(f):
        out = f(*rows)
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return out, *first, *second

    for a, b in zip(derivatives(blocked), derivatives(table)):
        same(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck_across_blocks(rows):
    inputs = [r[:5].clone().requires_grad_() for r in rows]
    assert torch.autograd.gradcheck(lambda *a: blocked(*a, limit=7), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: blocked(*a, limit=7), inputs)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_functional_gradients_across_blocks(rows, argument):
    "torch.func knows no checkpoints; its derivatives agree all the same."
    blocks, whole = (lambda *a, f=f: f(*a).sin().sum() for f in (blocked, table))
    for derivative in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        same(derivative(blocks, argument)(*rows), derivative(whole, argument)(*rows))
    few = rows[0][:5], rows[1][:5], rows[2]
    blocks = lambda *a: blocked(*a, limit=7).sin().sum()
    hessian = torch.func.hessian
    same(hessian(blocks, argument)(*few), hessian(whole, argument)(*few))


def test_an_error_inside_a_block_is_told(rows):
    x, v, xi = rows
    for wanted in (False, True):
        with pytest.raises(RuntimeError, match="must match"):
            by_rows(lambda x: x + torch.ones(1000), xi, x.requires_grad_(wanted), limit=30)


# Threads


SCRIPT = """
import threading, time, torch
from amtutorial.core import map_blocks, one_thread
n = torch.get_num_threads

with one_thread():
    first = n()
print("lazily", first, n())

a, long = torch.randn(700, 700), torch.randn(1_000_000)
with one_thread():
    wall, work = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.7:
        a @ a
        long.exp()
    print("share", (time.process_time() - work) / (time.perf_counter() - wall))

def nested():
    yield n()
    with one_thread():
        yield n()
        with one_thread():
            yield n()
        yield n()
    yield n()
    try:
        with one_thread():
            yield n()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        yield n()
print("nested", *nested())

seen, inside, done = {}, threading.Event(), threading.Event()
def early():
    seen["before"] = n()
    inside.wait()
    seen["during"] = n()
    done.wait()
    seen["after"] = n()
def late():
    seen["late"] = n()
    with one_thread():
        seen["late, within"] = n()
    seen["late, after"] = n()
thread = threading.Thread(target=early)
thread.start()
with one_thread():
    inside.set()
    other = threading.Thread(target=late)
    other.start()
    other.join()
    while "during" not in seen:
        time.sleep(0.01)
    seen["caller"] = n()
done.set()
thread.join()
seen["end"] = n()
names = "before", "caller", "during", "late", "late, within", "late, after", "after", "end"
print("others", *(seen[name] for name in names))

steps = threading.Barrier(2)
def overlap(name, enter, leave):
    for _ in range(enter):
        steps.wait()
    with one_thread():
        steps.wait()
        mine = [n()]
        for _ in range(leave):
            steps.wait()
        mine.append(n())
    steps.wait()
    seen[name] = [*mine, n()]
pair = [threading.Thread(target=overlap, args=a) for a in (("a", 0, 2), ("b", 1, 1))]
for t in pair:
    t.start()
for t in pair:
    t.join()
print("overlapping", *seen["a"], *seen["b"], n())

def f(x, k):
    time.sleep(0.02 * (4 - k)) # the first takes longest
    return x.tolist(), k, n(), bool(torch.tensor(1e-40) * 1 == 0), threading.get_ident()
results = list(map_blocks(f, torch.arange(5).split(1), range(5)))
assert [r[:2] for r in results] == [([k], k) for k in range(5)]
assert {r[2:4] for r in results} == {(1, True)}
threads = {r[4] for r in results}
print("blocks", len(threads), threading.get_ident() in threads, n(), torch.tensor(1e-40).item() > 0)

torch.set_num_threads(2) # now every new thread begins with two
print("chosen", *map_blocks(lambda x: n(), torch.arange(3).split(1)), n())
"""


@pytest.fixture(scope="module")
def two_threads():
    "What the script above prints in a process where PyTorch has two threads."
    env = os.environ | dict(OMP_NUM_THREADS="2")
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_one_thread_and_back(two_threads):
    "Nested, after an error, and where PyTorch has never been asked how many threads it has."
    assert two_threads["lazily"] == "1 2"
    assert two_threads["nested"] == "2 1 1 1 2 1 2"


def test_one_thread_is_one(two_threads):
    "By the processor's clock: one thread cannot work for longer than the wall's clock runs."
    assert float(two_threads["share"]) < 1.1


def test_other_threads_are_untouched(two_threads):
    "One that began before, one that begins within, and the caller's own number."
    assert two_threads["others"] == "2 1 2 2 1 2 2 2"


def test_overlapping_threads(two_threads):
    "Two threads enter and leave in turns: each keeps its own, and finds its own again."
    assert two_threads["overlapping"] == "1 1 2 1 1 2 2"


def test_blocks_side_by_side(two_threads):
    "In order, with their further arguments, each on one thread; the caller keeps its own."
    assert two_threads["blocks"] == "2 False 2 True"
    assert two_threads["chosen"] == "1 1 1 2"


def zero_below_normal():
    return bool(torch.tensor(1e-40) * 1 == 0)


@pytest.mark.parametrize("flush", [False, True])
def test_denormal_numbers(flush):
    "Zero within; afterwards what they were, also after an error and when nested."
    before = zero_below_normal()
    torch.set_flush_denormal(flush)
    try:
        with one_thread():
            assert zero_below_normal()
            with one_thread():
                assert zero_below_normal()
            assert zero_below_normal()
        assert zero_below_normal() == flush
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0
        assert zero_below_normal() == flush
    finally:
        torch.set_flush_denormal(before)


def test_an_error_in_a_block_is_told():
    def f(x):
        if x > 2:
            raise ValueError(f"block {x.item()}")
        return x.item()

    results = map_blocks(f, torch.arange(5).unbind())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="block 3"):
        next(results)
    assert not any(t.name.startswith("ThreadPool") for t in threading.enumerate())


# Devices


def test_devices():
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for bad in ("abacus", "cuda:99", "meta", 3.5, ["cpu"]):
        said = refused(pick_device, bad)
        assert said.startswith(f"ValueError: device {str(bad)!r} is not available here; available:")
        assert "cpu" in said.split("available:")[-1]


def test_where_a_model_lives():
    network, plain = torch.nn.Linear(2, 2), lambda x, t: x
    assert device_of(network) == device_of(network, "cpu") == torch.device("cpu")
    assert device_of(plain, "cpu") == torch.device("cpu") and device_of(plain) == pick_device()
    assert device_of(torch.nn.Identity(), "cpu") == torch.device("cpu")  # no parameters
    assert "cuda:99" in refused(device_of, network, "cuda:99")
    elsewhere = torch.nn.Linear(2, 2, device="meta")
    assert refused(device_of, elsewhere, "cpu") == (
        "ValueError: the model is on meta, not on cpu: move it with model.to('cpu')"
    )
