"""What the driver does for a kernel: printf, against the C library's own, and assertions."""

import ctypes
import sys

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu


def launch(body, block=1, grid=1, *arguments):
    parameters = ", ".join(f"const char* a{index}" for index in range(len(arguments)))
    code = f'extern "C" __global__ void k({parameters}) {{ {body} }}'
    cupy.RawKernel(code, "k")((grid,), (block,), arguments)


INTEGERS = [
    "%d|%i", "%5d|%-5d", "%05d|%+d", "% d|%+5d", "%.3d|%8.5d", "%-8.5d|%08.5d", "%u|%x", "%X|%o",
    "%#x|%#X", "%#06x|%hd", "%hhd|%hu", "%hhu|%hx", "%c|%5c",
]  # fmt: skip
FLOATS = ["%f|%e", "%g|%G", "%.0f|%.f", "%10.3f|%-10.3f|", "%+.2e|%010.2f", "%#.0f|% g", "%E|%F"]


def in_c(form, kind, values):
    """Return what the C library prints."""
    library, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(1000)
    count = library.snprintf(buffer, 1000, form.encode(), *map(kind, values))
    return buffer.raw[:count].decode()


needs_c = pytest.mark.skipif(sys.platform == "win32", reason="the C library has another name there")


@needs_c
@pytest.mark.parametrize("form", INTEGERS)
def test_integers_are_printed_as_c_prints_them(form, capsys):
    values = [(1, 0), (-1, 7), (65, 90), (2**31 - 1, -(2**31)), (300, -300)]
    if "c" in form:
        values = [(65, 90)]
    for pair in values:
        launch(f'printf("{form}", {pair[0]}, {pair[1] + 1} - 1);')
        assert capsys.readouterr().out == in_c(form, ctypes.c_int, pair)


@needs_c
@pytest.mark.parametrize("form", ["%ld|%lld", "%lu|%llx", "%zu|%jd", "%20ld|%-20lld|"])
def test_long_integers_are_printed_as_c_prints_them(form, capsys):
    for pair in [(1, 0), (-1, 2**40), (2**63 - 1, -(2**63) + 1)]:
        launch(f'printf("{form}", {pair[0]}ll, {pair[1]}ll);')
        assert capsys.readouterr().out == in_c(form, ctypes.c_longlong, pair)


@needs_c
@pytest.mark.parametrize("form", FLOATS)
def test_floats_are_printed_as_c_prints_them(form, capsys):
    for pair in [(0.0, 1.0), (-2.5, 1e-7), (123456789.125, 6.02214076e23)]:
        launch(f'printf("{form}", {pair[0]}, {pair[1]});')
        assert capsys.readouterr().out == in_c(form, ctypes.c_double, pair)
    launch(f'printf("{form}", 1 / 0.0, -1 / 0.0);')
    assert capsys.readouterr().out == in_c(form, ctypes.c_double, [np.inf, -np.inf])


def test_strings_come_from_every_memory(capsys):
    array = cupy.asarray(np.frombuffer(b"d\xc3\xa9vice\0", np.uint8))
    launch(
        """char own[3] = {'m', (char)('a' + threadIdx.x), 0};
        __shared__ char block[2]; block[0] = 'S'; block[1] = 0; __syncthreads();
        printf("%s %5s|%-5s|%.2s %s %p\\n", a0, own, "lit", "long", block, (void*)0);""",
        2, 1, array,
    )  # fmt: skip
    assert capsys.readouterr().out == "".join(
        f"dévice {own:>5}|lit  |lo S (nil)\n" for own in ("ma", "mb")
    )


def test_arguments_are_aligned_and_stars_are_read(capsys):
    launch("""printf("%d %f %c %lld %hd %%|%*d|%-*.*f|\\n",
              1, 2.5, 'x', 1ll << 40, (short)-3, 5, 42, 8, 2, 3.14159);""")
    assert capsys.readouterr().out == "1 2.500000 x 1099511627776 -3 %|   42|3.14    |\n"


def test_output_is_by_block_and_thread_at_the_end_of_the_launch(capsys):
    launch(
        """for (int i = 0; i < 2; i++) if (threadIdx.x != 1)
            printf("%d.%d.%d ", blockIdx.x, threadIdx.x, i);""",
        3, 700,
    )  # fmt: skip
    expected = [f"{b}.{t}.{i}" for b in range(700) for t in (0, 2) for i in range(2)]
    assert capsys.readouterr().out.split() == expected


def test_printf_returns_the_number_of_its_arguments(capsys):
    launch('int n = printf("%d %d", 1, 2); printf(" %d %d", n, printf("!"));')
    assert capsys.readouterr().out == "1 2! 2 0"


def test_a_graph_prints_each_time_it_runs(capsys):
    kernel = cupy.RawKernel('extern "C" __global__ void k() { printf("once\\n"); }', "k")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        kernel((1,), (1,), ())
        graph = stream.end_capture()
        assert capsys.readouterr().out == ""
        graph.launch()
        graph.launch()
    assert capsys.readouterr().out == "once\nonce\n"


def test_what_was_printed_before_a_fault_is_shown(capsys):
    with pytest.raises(simgpu.Trap):
        launch('printf("here\\n"); __trap();')
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize("form", ["%a", "%n", "%#o", "%Lf", "%y"])
def test_a_conversion_that_is_not_known_is_refused(form):
    with pytest.raises(simgpu.UnknownInstruction, match="printf's conversion") as raised:
        launch(f'printf("{form}", 1.0);')
    assert raised.value.place.kernel == "k"


def test_a_string_that_is_no_address_is_a_fault():
    with pytest.raises(simgpu.OutOfBounds, match="0x10"):
        launch('printf("%s", (const char*)16);')


def test_a_failed_assertion_says_what_it_asserted():
    with pytest.raises(simgpu.Trap, match=r"assertion `threadIdx.x < 3` failed in") as raised:
        launch("assert(threadIdx.x < 3);", 5)
    assert raised.value.place.thread == (3, 0, 0)
