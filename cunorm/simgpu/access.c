/* What every access to memory is checked for, in one pass over its lanes where NumPy takes several.
 *
 * Arrays are contiguous. Addresses are uint64, indices int64, stamps and the records of them int32 or
 * int64. An operand that may be shared by all lanes has one element then. Each function answers
 * whether all is as it usually is; where not, NumPy finds out what is wrong, and says so.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MOST 4 /* arrays that a function takes */

/* Take the arrays among the arguments, the first `writable` of them to write to; None has no bytes. */
static int take(PyObject *const *args, Py_buffer *view, int count, int writable)
{
    for (int at = 0; at < count; at++) {
        memset(&view[at], 0, sizeof view[at]);
        if (args[at] == Py_None)
            continue;
        if (PyObject_GetBuffer(args[at], &view[at], at < writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) {
            while (at--)
                PyBuffer_Release(&view[at]);
            return -1;
        }
    }
    return 0;
}

/* Give them back; `good` is 1 or 0 for an answer, -1 for lanes outside of an array. */
static PyObject *answer(Py_buffer *view, int count, int good)
{
    while (count--)
        PyBuffer_Release(&view[count]);
    if (good < 0)
        PyErr_SetString(PyExc_IndexError, "an index outside of the array");
    return good < 0 ? NULL : PyBool_FromLong(good);
}

static int expected(Py_ssize_t count, Py_ssize_t wanted, const char *form)
{
    if (count == wanted)
        return 0;
    PyErr_SetString(PyExc_TypeError, form);
    return -1;
}

static PyObject *place(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Py_buffer view[MOST];
    if (expected(count, 8, "place(index, addresses, pieces, stride, base, first, end, width)"))
        return NULL;
    uint64_t number[5];
    for (int at = 0; at < 5; at++)
        number[at] = PyLong_AsUnsignedLongLong(args[3 + at]);
    if (PyErr_Occurred() || take(args, view, 3, 1))
        return NULL;
    uint64_t stride = number[0], base = number[1], first = number[2], end = number[3];
    uint64_t width = number[4], bad = 0;
    Py_ssize_t n = view[0].len / 8, each = view[1].len == 8 ? 0 : 1, own = view[2].len == 8 ? 0 : 1;
    int64_t *index = view[0].buf;
    const uint64_t *addresses = view[1].buf;
    const int64_t *pieces = view[2].buf;
    if ((each && view[1].len != view[0].len) || (pieces && own && view[2].len != view[0].len))
        return answer(view, 3, -1);
    if (end < width || first > end - width)
        return answer(view, 3, 0);
    int shift = __builtin_ctzll(width);
    uint64_t room = end - width - first;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint64_t offset = addresses[i * each] - base;
        /* An address below the first one wraps to an offset past the end. */
        bad |= (offset - first > room) | (offset & (width - 1));
        if (pieces)
            offset += (uint64_t)pieces[i * own] * stride;
        index[i] = (int64_t)(offset >> shift);
    }
    return answer(view, 3, !bad);
}

#define OUTSIDE(at) ((uint64_t)index[at] >= length)

#define RECORDS(T) \
    static int apart_##T(const T *last, uint64_t length, const int64_t *index, const T *stamps, \
                         Py_ssize_t n, T party, T floor) \
    { \
        for (Py_ssize_t i = 0; i < n; i++) { \
            if (OUTSIDE(i)) \
                return -1; \
            T earlier = last[index[i]]; \
            if (earlier > floor && (earlier ^ stamps[i]) & party) \
                return 0; \
        } \
        return 1; \
    } \
    static int put_##T(T *last, uint64_t length, const int64_t *index, const T *stamps, \
                       Py_ssize_t n, T party) \
    { \
        int alone = 1; \
        for (Py_ssize_t i = 0; i < n; i++) \
            if (OUTSIDE(i)) \
                return -1; \
        for (Py_ssize_t i = 0; i < n; i++) \
            last[index[i]] = stamps[i]; \
        for (Py_ssize_t i = 0; i < n; i++) \
            alone &= !((last[index[i]] ^ stamps[i]) & party); \
        return alone; \
    } \
    static int shift_##T(T *last, T *other, uint64_t length, const int64_t *index, \
                         const T *stamps, Py_ssize_t n, T party) \
    { \
        for (Py_ssize_t i = 0; i < n; i++) { \
            if (OUTSIDE(i)) \
                return -1; \
            T earlier = last[index[i]]; \
            if (earlier && (earlier ^ stamps[i]) & party) { \
                if (!other) \
                    return 0; \
                other[index[i]] = earlier; \
            } \
        } \
        for (Py_ssize_t i = 0; i < n; i++) \
            last[index[i]] = stamps[i]; \
        for (Py_ssize_t i = 0; i < n; i++) \
            if ((last[index[i]] ^ stamps[i]) & party) { \
                if (!other) \
                    return 0; \
                other[index[i]] = stamps[i]; \
            } \
        return 1; \
    }

RECORDS(int32_t)
RECORDS(int64_t)

/* Whether indices, stamps and records have as many elements as they must; their count and width. */
static int fits(const Py_buffer *last, const Py_buffer *index, const Py_buffer *stamps,
                Py_ssize_t *n, Py_ssize_t *item)
{
    *n = index->len / 8;
    *item = *n ? stamps->len / *n : 8;
    return (*item == 4 || *item == 8) && stamps->len == *n * *item && last->len % *item == 0;
}

static PyObject *ordered(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Py_buffer view[MOST];
    Py_ssize_t n, item;
    if (expected(count, 5, "ordered(last, index, stamps, party, floor)"))
        return NULL;
    int64_t party = PyLong_AsLongLong(args[3]), floor = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred() || take(args, view, 3, 0))
        return NULL;
    if (!fits(&view[0], &view[1], &view[2], &n, &item))
        return answer(view, 3, -1);
    int good = item == 4 ? apart_int32_t(view[0].buf, (uint64_t)view[0].len / 4, view[1].buf,
                                         view[2].buf, n, (int32_t)party, (int32_t)floor)
                         : apart_int64_t(view[0].buf, (uint64_t)view[0].len / 8, view[1].buf,
                                         view[2].buf, n, party, floor);
    return answer(view, 3, good);
}

static PyObject *put(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Py_buffer view[MOST];
    Py_ssize_t n, item;
    if (expected(count, 4, "put(last, index, stamps, party)"))
        return NULL;
    int64_t party = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred() || take(args, view, 3, 1))
        return NULL;
    if (!fits(&view[0], &view[1], &view[2], &n, &item))
        return answer(view, 3, -1);
    int good = item == 4 ? put_int32_t(view[0].buf, (uint64_t)view[0].len / 4, view[1].buf,
                                       view[2].buf, n, (int32_t)party)
                         : put_int64_t(view[0].buf, (uint64_t)view[0].len / 8, view[1].buf,
                                       view[2].buf, n, party);
    return answer(view, 3, good);
}

static PyObject *shift(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Py_buffer view[MOST];
    Py_ssize_t n, item;
    if (expected(count, 5, "shift(last, other, index, stamps, party)"))
        return NULL;
    int64_t party = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred() || take(args, view, 4, 2))
        return NULL;
    if (!fits(&view[0], &view[2], &view[3], &n, &item) ||
        (view[1].buf && view[1].len != view[0].len))
        return answer(view, 4, -1);
    int good = item == 4 ? shift_int32_t(view[0].buf, view[1].buf, (uint64_t)view[0].len / 4,
                                         view[2].buf, view[3].buf, n, (int32_t)party)
                         : shift_int64_t(view[0].buf, view[1].buf, (uint64_t)view[0].len / 8,
                                         view[2].buf, view[3].buf, n, party);
    return answer(view, 4, good);
}

/* Read (or write) units of a map of bytes, of which a written one is 255. */
#define UNITS(T) \
    for (Py_ssize_t i = 0; i < n; i++) { \
        T unit, all; \
        memset(&all, 255, sizeof all); \
        if (OUTSIDE(i)) \
            return -1; \
        if (write) \
            memcpy(map + index[i] * (Py_ssize_t)sizeof all, &all, sizeof all); \
        else { \
            memcpy(&unit, map + index[i] * (Py_ssize_t)sizeof unit, sizeof unit); \
            good &= !memcmp(&unit, &all, sizeof all); \
        } \
    }

typedef struct { uint64_t low, high; } Sixteen;

static int units(char *map, uint64_t length, const int64_t *index, Py_ssize_t n, long width, int write)
{
    int good = 1;
    length /= (uint64_t)width;
    switch (width) {
    case 1: UNITS(uint8_t) break;
    case 2: UNITS(uint16_t) break;
    case 4: UNITS(uint32_t) break;
    case 8: UNITS(uint64_t) break;
    default: UNITS(Sixteen) break;
    }
    return good;
}

static PyObject *mapped(PyObject *const *args, Py_ssize_t count, int write, const char *form)
{
    Py_buffer view[MOST];
    if (expected(count, 3, form))
        return NULL;
    long width = PyLong_AsLong(args[2]);
    if (PyErr_Occurred() || take(args, view, 2, write))
        return NULL;
    if (width != 1 && width != 2 && width != 4 && width != 8 && width != 16)
        return answer(view, 2, -1);
    int good = units(view[0].buf, (uint64_t)view[0].len, view[1].buf, view[1].len / 8, width, write);
    return answer(view, 2, good);
}

static PyObject *written(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    return mapped(args, count, 0, "written(map, index, width)");
}

static PyObject *mark(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    return mapped(args, count, 1, "mark(map, index, width)");
}

#define METHOD(NAME, DOC) {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, DOC}
static PyMethodDef methods[] = {
    METHOD(place, "Where accesses lie in one memory, if all are in it and at multiples of `width`."),
    METHOD(ordered, "Whether no earlier stamp above the floor is another party's."),
    METHOD(put, "Put stamps there; whether no two parties put one at the same place."),
    METHOD(shift, "Put stamps there, and another party's last in `other`; False without that."),
    METHOD(written, "Whether every byte of these units is marked as written."),
    METHOD(mark, "Mark units as written."),
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_access", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__access(void)
{
    return PyModule_Create(&definition);
}
