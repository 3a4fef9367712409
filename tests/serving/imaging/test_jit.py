import numba
import numpy as np

from serving.imaging.jit import compiled, read_only


def double(values):
    return values * 2


def test_without_a_folder_for_the_cache_the_loop_still_compiles(monkeypatch):
    njit = numba.njit

    def read_only_container(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", read_only_container)
    loop = compiled(double)
    assert loop(np.arange(3)).tolist() == [0, 2, 4]
    assert loop.targetoptions["nogil"]


def test_read_only_makes_one_kind_of_array():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for view in (array, array.T, array[:, ::2], read_only(array)):
        fixed = read_only(view)
        assert np.array_equal(fixed, view)
        assert numba.typeof(fixed) == numba.typeof(read_only(array))
    assert array.flags.writeable
