/* CuPy's two tables of C functions, answered by Python.
 *
 * CuPy's extension modules call CUDA through the functions that cupy_backends.cuda.api.runtime and
 * .driver export in `__pyx_capi__`: one capsule a function, whose name is the C signature. Each
 * consumer reads its pointers from there once, when it is imported. This file defines a function of
 * the same signature for each capsule. It boxes its arguments, calls the Python handler bound to it,
 * and unboxes the result; a Python exception comes back as the return value that the Cython
 * declaration reserves for one (`except? -1` and the like). It has to be C because a ctypes callback
 * cannot raise.
 *
 * The tables below are the whole truth about CuPy's interface. Which capsule is replaced, and what
 * happens where one differs, is decided in `_install.py`.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#ifdef __linux__
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

typedef PyObject *object;
typedef PyObject *pointer_attributes;
typedef int CUdevice;
typedef unsigned int cudaMemcpyKind; /* an enumeration without negative values */

#define RUNTIME_OBJECT(name) struct __pyx_obj_13cupy_backends_4cuda_3api_7runtime_##name
RUNTIME_OBJECT(MemPoolProps);

/* How each result type is spelled at the head of a signature. */
#define SPELL_object "PyObject *"
#define SPELL_pointer_attributes \
    "struct __pyx_obj_13cupy_backends_4cuda_3api_7runtime_PointerAttributes *"
#define SPELL_int "int "
#define SPELL_unsigned "unsigned int "
#define SPELL_intptr_t "intptr_t "
#define SPELL_uintmax_t "uintmax_t "
#define SPELL_size_t "size_t "
#define SPELL_float "float "

/* table, result, value returned on an exception, name, argument types as the signature spells them */
#define FUNCTIONS(X) \
    X(runtime, int, -1, driverGetVersion) \
    X(runtime, int, -1, runtimeGetVersion) \
    X(runtime, int, -1, _getCUDAMajorVersion) \
    X(runtime, object, NULL, check_status, int) \
    \
    X(runtime, int, -1, getDevice) \
    X(runtime, int, -1, getDeviceCount) \
    X(runtime, object, NULL, setDevice, int) \
    X(runtime, int, -1, deviceGetAttribute, int, int) \
    X(runtime, object, NULL, getDeviceProperties, int) \
    X(runtime, int, -1, deviceGetByPCIBusId, PyObject *) \
    X(runtime, object, NULL, deviceGetPCIBusId, int) \
    X(runtime, object, NULL, deviceSynchronize) \
    X(runtime, int, -1, deviceCanAccessPeer, int, int) \
    X(runtime, object, NULL, deviceEnablePeerAccess, int) \
    X(runtime, object, NULL, _deviceEnsurePeerAccess, int) \
    X(runtime, size_t, (size_t)-1, deviceGetLimit, int) \
    X(runtime, object, NULL, deviceSetLimit, int, size_t) \
    \
    X(runtime, intptr_t, 0, malloc, size_t) \
    X(runtime, intptr_t, 0, mallocAsync, size_t, intptr_t) \
    X(runtime, intptr_t, 0, mallocFromPoolAsync, size_t, intptr_t, intptr_t) \
    X(runtime, intptr_t, 0, hostAlloc, size_t, unsigned int) \
    X(runtime, object, NULL, hostRegister, intptr_t, size_t, unsigned int) \
    X(runtime, object, NULL, hostUnregister, intptr_t) \
    X(runtime, object, NULL, free, intptr_t) \
    X(runtime, object, NULL, freeHost, intptr_t) \
    X(runtime, object, NULL, freeArray, intptr_t) \
    X(runtime, object, NULL, freeAsync, intptr_t, intptr_t) \
    X(runtime, object, NULL, memGetInfo) \
    X(runtime, pointer_attributes, NULL, pointerGetAttributes, intptr_t) \
    X(runtime, int, -1, pointerGetMemoryType, intptr_t) \
    X(runtime, object, NULL, memPrefetchAsync, intptr_t, size_t, int, intptr_t) \
    X(runtime, object, NULL, memAdvise, intptr_t, size_t, int, int) \
    \
    X(runtime, intptr_t, 0, deviceGetDefaultMemPool, int) \
    X(runtime, intptr_t, 0, deviceGetMemPool, int) \
    X(runtime, object, NULL, deviceSetMemPool, int, intptr_t) \
    X(runtime, intptr_t, 0, memPoolCreate, RUNTIME_OBJECT(MemPoolProps) *) \
    X(runtime, object, NULL, memPoolDestroy, intptr_t) \
    X(runtime, object, NULL, memPoolTrimTo, intptr_t, size_t) \
    X(runtime, object, NULL, memPoolGetAttribute, intptr_t, int) \
    X(runtime, object, NULL, memPoolSetAttribute, intptr_t, int, PyObject *) \
    \
    X(runtime, object, NULL, memcpy, intptr_t, intptr_t, size_t, int) \
    X(runtime, object, NULL, memcpyAsync, intptr_t, intptr_t, size_t, int, intptr_t) \
    X(runtime, object, NULL, memcpyPeer, intptr_t, int, intptr_t, int, size_t) \
    X(runtime, object, NULL, memcpyPeerAsync, intptr_t, int, intptr_t, int, size_t, intptr_t) \
    X(runtime, object, NULL, memcpy2D, intptr_t, size_t, intptr_t, size_t, size_t, size_t, \
      cudaMemcpyKind) \
    X(runtime, object, NULL, memcpy2DAsync, intptr_t, size_t, intptr_t, size_t, size_t, size_t, \
      cudaMemcpyKind, intptr_t) \
    X(runtime, object, NULL, memcpy2DFromArray, intptr_t, size_t, intptr_t, size_t, size_t, \
      size_t, size_t, int) \
    X(runtime, object, NULL, memcpy2DFromArrayAsync, intptr_t, size_t, intptr_t, size_t, size_t, \
      size_t, size_t, int, intptr_t) \
    X(runtime, object, NULL, memcpy2DToArray, intptr_t, size_t, size_t, intptr_t, size_t, size_t, \
      size_t, int) \
    X(runtime, object, NULL, memcpy2DToArrayAsync, intptr_t, size_t, size_t, intptr_t, size_t, \
      size_t, size_t, int, intptr_t) \
    X(runtime, object, NULL, memcpy3D, intptr_t) \
    X(runtime, object, NULL, memcpy3DAsync, intptr_t, intptr_t) \
    X(runtime, object, NULL, memset, intptr_t, int, size_t) \
    X(runtime, object, NULL, memsetAsync, intptr_t, int, size_t, intptr_t) \
    \
    X(runtime, intptr_t, 0, streamCreate) \
    X(runtime, intptr_t, 0, streamCreateWithFlags, unsigned int) \
    X(runtime, intptr_t, 0, streamCreateWithPriority, unsigned int, int) \
    X(runtime, unsigned, 0, streamGetFlags, intptr_t) \
    X(runtime, int, 0, streamGetPriority, intptr_t) \
    X(runtime, object, NULL, streamDestroy, intptr_t) \
    X(runtime, object, NULL, streamSynchronize, intptr_t) \
    X(runtime, object, NULL, streamQuery, intptr_t) \
    X(runtime, object, NULL, launchHostFunc, intptr_t, PyObject *, intptr_t) \
    X(runtime, object, NULL, _launchHostFuncUnmanaged, intptr_t, PyObject *) \
    \
    X(runtime, intptr_t, 0, eventCreate) \
    X(runtime, intptr_t, 0, eventCreateWithFlags, unsigned int) \
    X(runtime, object, NULL, eventDestroy, intptr_t) \
    X(runtime, float, 0, eventElapsedTime, intptr_t, intptr_t) \
    X(runtime, object, NULL, eventQuery, intptr_t) \
    X(runtime, object, NULL, eventRecord, intptr_t, intptr_t) \
    X(runtime, object, NULL, eventSynchronize, intptr_t) \
    \
    X(runtime, intptr_t, 0, streamEndCapture, intptr_t) \
    X(runtime, int, -1, streamIsCapturing, intptr_t) \
    X(runtime, object, NULL, graphDestroy, intptr_t) \
    X(runtime, object, NULL, graphExecDestroy, intptr_t) \
    X(runtime, intptr_t, 0, graphInstantiate, intptr_t) \
    X(runtime, object, NULL, graphLaunch, intptr_t, intptr_t) \
    X(runtime, object, NULL, graphUpload, intptr_t, intptr_t) \
    X(runtime, object, NULL, graphDebugDotPrint, intptr_t, PyObject *, unsigned int) \
    \
    X(runtime, uintmax_t, 0, createTextureObject, intptr_t, intptr_t) \
    X(runtime, object, NULL, destroyTextureObject, uintmax_t) \
    X(runtime, uintmax_t, 0, createSurfaceObject, intptr_t) \
    X(runtime, object, NULL, destroySurfaceObject, uintmax_t) \
    \
    X(runtime, object, NULL, profilerStart) \
    X(runtime, object, NULL, profilerStop) \
    \
    X(driver, object, NULL, get_build_version) \
    X(driver, object, NULL, devicePrimaryCtxRelease, CUdevice) \
    X(driver, intptr_t, 0, ctxGetCurrent) \
    X(driver, object, NULL, ctxSetCurrent, intptr_t) \
    X(driver, intptr_t, 0, ctxCreate, CUdevice) \
    X(driver, object, NULL, ctxDestroy, intptr_t) \
    X(driver, int, -1, ctxGetDevice) \
    X(driver, intptr_t, 0, streamGetCtx, intptr_t) \
    \
    X(driver, intptr_t, 0, linkCreate) \
    X(driver, object, NULL, linkAddData, intptr_t, int, PyObject *, PyObject *) \
    X(driver, object, NULL, linkAddFile, intptr_t, int, PyObject *) \
    X(driver, object, NULL, linkComplete, intptr_t) \
    X(driver, object, NULL, linkDestroy, intptr_t) \
    X(driver, intptr_t, 0, moduleLoad, PyObject *) \
    X(driver, intptr_t, 0, moduleLoadData, PyObject *) \
    X(driver, object, NULL, moduleUnload, intptr_t) \
    X(driver, intptr_t, 0, moduleGetFunction, intptr_t, PyObject *) \
    X(driver, intptr_t, 0, moduleGetGlobal, intptr_t, PyObject *) \
    \
    X(driver, int, -2, funcGetAttribute, int, intptr_t) \
    X(driver, object, NULL, funcSetAttribute, intptr_t, int, int) \
    X(driver, int, -1, occupancyMaxActiveBlocksPerMultiprocessor, intptr_t, int, size_t) \
    X(driver, object, NULL, occupancyMaxPotentialBlockSize, intptr_t, size_t, int) \
    X(driver, object, NULL, launchKernel, intptr_t, unsigned int, unsigned int, unsigned int, \
      unsigned int, unsigned int, unsigned int, unsigned int, intptr_t, intptr_t, intptr_t) \
    X(driver, object, NULL, launchCooperativeKernel, intptr_t, unsigned int, unsigned int, \
      unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, intptr_t, intptr_t)

/* The same, with one optional argument: its type and the default that CuPy declares come after the
 * name. Cython passes it in a structure that also says how many optional arguments were given. */
#define FUNCTIONS_WITH_OPTION(X) \
    X(runtime, intptr_t, 0, mallocManaged, unsigned, 1 /* cudaMemAttachGlobal */, size_t) \
    X(runtime, intptr_t, 0, mallocArray, unsigned, 0, intptr_t, size_t, size_t) \
    X(runtime, intptr_t, 0, malloc3DArray, unsigned, 0, intptr_t, size_t, size_t, size_t) \
    X(runtime, object, NULL, streamAddCallback, unsigned, 0, intptr_t, PyObject *, intptr_t) \
    X(runtime, object, NULL, streamWaitEvent, unsigned, 0, intptr_t, intptr_t) \
    X(runtime, object, NULL, streamBeginCapture, int, 2 /* relaxed */, intptr_t)

/* Plain C functions, never called from Python: `except *`, so that the caller always asks whether
 * an exception is set and the result does not matter. The sizes are those of the CUDA headers; a
 * structure of more than 16 bytes is returned through memory that the caller provides. */
typedef struct { int32_t fields[5]; } cudaChannelFormatDesc;
typedef struct { int64_t fields[8]; } cudaResourceDesc;
typedef struct { int32_t fields[18]; } cudaTextureDesc;
#define STRUCTURE_FUNCTIONS(X) \
    X(runtime, cudaChannelFormatDesc, getChannelDesc, intptr_t) \
    X(runtime, cudaResourceDesc, getTextureObjectResourceDesc, uintmax_t) \
    X(runtime, cudaTextureDesc, getTextureObjectTextureDesc, uintmax_t)

/* --- Python values for C values and back ------------------------------------------------------ */

static PyObject *box_int(int value) { return PyLong_FromLong(value); }
static PyObject *box_unsigned(unsigned value) { return PyLong_FromUnsignedLong(value); }
static PyObject *box_signed_word(intptr_t value) { return PyLong_FromSsize_t(value); }
static PyObject *box_word(size_t value) { return PyLong_FromSize_t(value); }

static PyObject *
box_object(void *value)
{
    PyObject *boxed = value != NULL ? value : Py_None;
    Py_INCREF(boxed);
    return boxed;
}

#define BOX(value) _Generic((value), \
    int: box_int, unsigned: box_unsigned, intptr_t: box_signed_word, size_t: box_word, \
    default: box_object)(value)

/* Each unboxing takes the handler's result over; NULL stands for an exception that is set. */
#define DEFINE_UNBOX(type, convert) \
    static type unbox_##type(PyObject *result, type on_exception) \
    { \
        if (result == NULL) \
            return on_exception; \
        type value = (type)convert(result); \
        Py_DECREF(result); \
        return PyErr_Occurred() ? on_exception : value; \
    }

DEFINE_UNBOX(int, PyLong_AsLong)
DEFINE_UNBOX(unsigned, PyLong_AsUnsignedLong)
DEFINE_UNBOX(intptr_t, PyLong_AsSsize_t)
DEFINE_UNBOX(size_t, PyLong_AsSize_t)
DEFINE_UNBOX(uintmax_t, PyLong_AsUnsignedLongLong)
DEFINE_UNBOX(float, PyFloat_AsDouble)

static PyObject *
unbox_object(PyObject *result, PyObject *on_exception)
{
    return result != NULL ? result : on_exception;
}
#define unbox_pointer_attributes unbox_object

/* --- Lists of types to lists of parameters ---------------------------------------------------- */

#define COUNT(...) COUNT_(0 __VA_OPT__(,) __VA_ARGS__, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define COUNT_(zero, a, b, c, d, e, f, g, h, i, j, k, count, ...) count
#define JOIN(a, b) JOIN_(a, b)
#define JOIN_(a, b) a##b

#define PARAMETERS(...) JOIN(PARAMETERS_, COUNT(__VA_ARGS__))(__VA_ARGS__)
#define PARAMETERS_0()
#define PARAMETERS_1(t) t p1,
#define PARAMETERS_2(t, ...) t p2, PARAMETERS_1(__VA_ARGS__)
#define PARAMETERS_3(t, ...) t p3, PARAMETERS_2(__VA_ARGS__)
#define PARAMETERS_4(t, ...) t p4, PARAMETERS_3(__VA_ARGS__)
#define PARAMETERS_5(t, ...) t p5, PARAMETERS_4(__VA_ARGS__)
#define PARAMETERS_6(t, ...) t p6, PARAMETERS_5(__VA_ARGS__)
#define PARAMETERS_7(t, ...) t p7, PARAMETERS_6(__VA_ARGS__)
#define PARAMETERS_8(t, ...) t p8, PARAMETERS_7(__VA_ARGS__)
#define PARAMETERS_9(t, ...) t p9, PARAMETERS_8(__VA_ARGS__)
#define PARAMETERS_10(t, ...) t p10, PARAMETERS_9(__VA_ARGS__)
#define PARAMETERS_11(t, ...) t p11, PARAMETERS_10(__VA_ARGS__)

#define BOXES(...) JOIN(BOXES_, COUNT(__VA_ARGS__))
#define BOXES_0
#define BOXES_1 BOX(p1),
#define BOXES_2 BOX(p2), BOXES_1
#define BOXES_3 BOX(p3), BOXES_2
#define BOXES_4 BOX(p4), BOXES_3
#define BOXES_5 BOX(p5), BOXES_4
#define BOXES_6 BOX(p6), BOXES_5
#define BOXES_7 BOX(p7), BOXES_6
#define BOXES_8 BOX(p8), BOXES_7
#define BOXES_9 BOX(p9), BOXES_8
#define BOXES_10 BOX(p10), BOXES_9
#define BOXES_11 BOX(p11), BOXES_10

/* --- One slot and one function per row -------------------------------------------------------- */

enum slot {
#define SLOT(table, result, on_exception, name, ...) SLOT_##table##_##name,
    FUNCTIONS(SLOT)
    FUNCTIONS_WITH_OPTION(SLOT)
#undef SLOT
#define SLOT(table, result, name, ...) SLOT_##table##_##name,
    STRUCTURE_FUNCTIONS(SLOT)
#undef SLOT
    SLOTS
};

static PyObject *handlers[SLOTS];
static const char *const names[SLOTS];

/* Calls the handler of `slot`; takes the references in `arguments[1..count]`. `arguments[0]` is
 * room that the callee may use, which saves a bound method from copying its arguments. */
static PyObject *
call(enum slot slot, PyObject **arguments, size_t count)
{
    PyObject *result = NULL;
    int complete = 1;
    for (size_t i = 1; i <= count; i++)
        complete = complete && arguments[i] != NULL;
    if (complete && handlers[slot] == NULL)
        PyErr_Format(PyExc_SystemError, "cunorm.simgpu: no handler for %s", names[slot]);
    else if (complete)
        result = PyObject_Vectorcall(handlers[slot], arguments + 1,
                                     count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    for (size_t i = 1; i <= count; i++)
        Py_XDECREF(arguments[i]);
    return result;
}

#define DEFINE(table, result, on_exception, name, ...) \
    static result table##_##name(PARAMETERS(__VA_ARGS__) int skip_dispatch) \
    { \
        (void)skip_dispatch; \
        PyObject *arguments[] = {NULL, BOXES(__VA_ARGS__)}; \
        return unbox_##result(call(SLOT_##table##_##name, arguments, COUNT(__VA_ARGS__)), \
                              on_exception); \
    }
FUNCTIONS(DEFINE)
#undef DEFINE

#define DEFINE(table, result, on_exception, name, option_type, preset, ...) \
    struct option_##name { int given; option_type value; }; \
    static result table##_##name(PARAMETERS(__VA_ARGS__) int skip_dispatch, \
                                 struct option_##name *option) \
    { \
        (void)skip_dispatch; \
        option_type value = option != NULL && option->given > 0 ? option->value : (preset); \
        PyObject *arguments[] = {NULL, BOXES(__VA_ARGS__) BOX(value)}; \
        return unbox_##result(call(SLOT_##table##_##name, arguments, COUNT(__VA_ARGS__) + 1), \
                              on_exception); \
    }
FUNCTIONS_WITH_OPTION(DEFINE)
#undef DEFINE

#define DEFINE(table, result, name, type) \
    static result table##_##name(type p1) \
    { \
        PyObject *arguments[] = {NULL, BOX(p1)}; \
        PyObject *answer = call(SLOT_##table##_##name, arguments, 1); \
        if (answer != NULL) \
            PyErr_SetString(PyExc_SystemError, #name ": a handler cannot return a structure"); \
        Py_XDECREF(answer); \
        return (result){{0}}; \
    }
STRUCTURE_FUNCTIONS(DEFINE)
#undef DEFINE

/* Asked before every launch for a context of this thread; there is nothing to set up, and answering
 * it here keeps a launch cheap. */
static PyObject *
runtime__ensure_context(void)
{
    Py_RETURN_NONE;
}

static const char *const names[SLOTS] = {
#define NAME(table, result, on_exception, name, ...) #table "." #name,
    FUNCTIONS(NAME)
    FUNCTIONS_WITH_OPTION(NAME)
#undef NAME
#define NAME(table, result, name, ...) #table "." #name,
    STRUCTURE_FUNCTIONS(NAME)
#undef NAME
};

/* --- What Python sees ------------------------------------------------------------------------- */

#define TEXT(...) TEXT_(__VA_ARGS__)
#define TEXT_(...) #__VA_ARGS__
#define SIGNATURE(result, ...) \
    SPELL_##result "(" TEXT(__VA_ARGS__) __VA_OPT__(", ") "int __pyx_skip_dispatch"

static const struct {
    const char *table, *name, *signature;
    void (*function)(void);
} entries[] = {
#define ENTRY(table, result, on_exception, name, ...) \
    {#table, #name, SIGNATURE(result, __VA_ARGS__) ")", (void (*)(void))table##_##name},
    FUNCTIONS(ENTRY)
#undef ENTRY
#define ENTRY(table, result, on_exception, name, option_type, preset, ...) \
    {#table, #name, SIGNATURE(result, __VA_ARGS__) \
     ", struct __pyx_opt_args_13cupy_backends_4cuda_3api_7runtime_" #name \
     " *__pyx_optional_args)", (void (*)(void))table##_##name},
    FUNCTIONS_WITH_OPTION(ENTRY)
#undef ENTRY
#define ENTRY(table, result, name, type) \
    {#table, #name, #result " (" #type ")", (void (*)(void))table##_##name},
    STRUCTURE_FUNCTIONS(ENTRY)
#undef ENTRY
    {"runtime", "_ensure_context", "PyObject *(void)", (void (*)(void))runtime__ensure_context},
};

static PyObject *
capsules(PyObject *self, PyObject *table)
{
    (void)self;
    PyObject *made = PyDict_New();
    for (size_t i = 0; made != NULL && i < sizeof entries / sizeof *entries; i++) {
        if (PyUnicode_CompareWithASCIIString(table, entries[i].table) != 0)
            continue;
        /* A capsule holds an object pointer; POSIX lets a function pointer travel in one. */
        void *address = (void *)(uintptr_t)entries[i].function;
        PyObject *capsule = PyCapsule_New(address, entries[i].signature, NULL);
        if (capsule == NULL || PyDict_SetItemString(made, entries[i].name, capsule) < 0)
            Py_CLEAR(made);
        Py_XDECREF(capsule);
    }
    return made;
}

static PyObject *
signature(PyObject *self, PyObject *capsule)
{
    (void)self;
    const char *name = PyCapsule_GetName(capsule);
    return name != NULL ? PyUnicode_FromString(name) : NULL;
}

static PyObject *
bind(PyObject *self, PyObject *arguments)
{
    (void)self;
    const char *name;
    PyObject *handler;
    if (!PyArg_ParseTuple(arguments, "sO:bind", &name, &handler))
        return NULL;
    for (size_t slot = 0; slot < SLOTS; slot++) {
        if (strcmp(names[slot], name) == 0) {
            Py_INCREF(handler);
            Py_XSETREF(handlers[slot], handler);
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_KeyError, "%s is not in CuPy's tables", name);
}

/* --- The arguments of a launch ---------------------------------------------------------------- */

/* `cupy.cuda.Function` makes its arguments into pointers before it asks for a launch. What it was
 * called with is kept for as long as the call lasts, so that the launch can be held against it. */
static ternaryfunc call_function;
static _Thread_local PyObject *given; /* borrowed */

static PyObject *
watched_call(PyObject *function, PyObject *arguments, PyObject *named)
{
    PyObject *outer = given;
    if (PyTuple_GET_SIZE(arguments) > 2)
        given = PyTuple_GET_ITEM(arguments, 2);
    else
        given = named != NULL ? PyDict_GetItemString(named, "args") : NULL;
    PyObject *result = call_function(function, arguments, named);
    given = outer;
    return result;
}

static PyObject *
watch_calls(PyObject *self, PyObject *type)
{
    (void)self;
    PyTypeObject *function = (PyTypeObject *)type;
    if (!PyType_Check(type) || function->tp_call == NULL)
        return PyErr_Format(PyExc_TypeError, "%R is no type that can be called", type);
    if (function->tp_call != watched_call) {
        call_function = function->tp_call;
        function->tp_call = watched_call;
    }
    Py_RETURN_NONE;
}

static PyObject *
given_arguments(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    PyObject *arguments = given != NULL ? given : Py_None;
    given = NULL; /* for one launch */
    Py_INCREF(arguments);
    return arguments;
}

/* A kernel has at most 4 KB of arguments, and few have more than this many. */
#define MOST_PIECES 64

typedef struct {
    const void *from;
    void *to;
    size_t size;
} piece;

/* Copies from addresses that may be anything, and returns how many pieces came, all before the
 * first that could not be read. The kernel of the operating system does it where it can, because it
 * answers a bad address with an error instead of a signal; one call for all pieces, since it costs
 * more than the copy. */
static Py_ssize_t
copy_pieces(const piece *pieces, Py_ssize_t count)
{
#ifdef __linux__
    struct iovec local[MOST_PIECES], remote[MOST_PIECES];
    size_t asked = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        local[i] = (struct iovec){pieces[i].to, pieces[i].size};
        remote[i] = (struct iovec){(void *)(uintptr_t)pieces[i].from, pieces[i].size};
        asked += pieces[i].size;
    }
    ssize_t copied = process_vm_readv(getpid(), local, count, remote, count, 0);
    if (copied == (ssize_t)asked)
        return count;
    if (copied >= 0 || errno == EFAULT) {
        Py_ssize_t whole = 0;
        for (ssize_t left = copied; whole < count && left >= (ssize_t)pieces[whole].size; whole++)
            left -= (ssize_t)pieces[whole].size;
        return whole;
    } /* any other error: a sandbox that forbids the call */
#endif
    for (Py_ssize_t i = 0; i < count; i++) {
        if (pieces[i].from == NULL)
            return i;
        memcpy(pieces[i].to, pieces[i].from, pieces[i].size);
    }
    return count;
}

static PyObject *
read_arguments(PyObject *self, PyObject *arguments)
{
    (void)self;
    Py_ssize_t array;
    PyObject *sizes;
    if (!PyArg_ParseTuple(arguments, "nO!:read_arguments", &array, &PyTuple_Type, &sizes))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(sizes);
    PyObject *read = PyList_New(count);
    for (Py_ssize_t i = 0; read != NULL && i < count; i++) {
        Py_ssize_t size = PyLong_AsSsize_t(PyTuple_GET_ITEM(sizes, i));
        PyObject *bytes = size >= 0 ? PyBytes_FromStringAndSize(NULL, size) : NULL;
        if (bytes == NULL) {
            Py_DECREF(read);
            return NULL;
        }
        PyList_SET_ITEM(read, i, bytes);
    }
    Py_ssize_t given = 0;
    while (read != NULL && given < count) {
        const void *pointers[MOST_PIECES];
        piece pieces[MOST_PIECES];
        Py_ssize_t wanted = Py_MIN(count - given, MOST_PIECES);
        for (Py_ssize_t i = 0; i < wanted; i++)
            pieces[i] = (piece){(void **)array + given + i, pointers + i, sizeof pointers[i]};
        wanted = copy_pieces(pieces, wanted);
        for (Py_ssize_t i = 0; i < wanted; i++) {
            PyObject *bytes = PyList_GET_ITEM(read, given + i);
            pieces[i] = (piece){pointers[i], PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes)};
        }
        Py_ssize_t copied = copy_pieces(pieces, wanted);
        given += copied;
        if (copied < MOST_PIECES)
            break;
    }
    for (Py_ssize_t i = given; read != NULL && i < count; i++) {
        Py_INCREF(Py_None);
        PyList_SetItem(read, i, Py_None);
    }
    return read;
}

static PyMethodDef methods[] = {
    {"capsules", capsules, METH_O,
     "capsules(table) -> {name: capsule} of the functions that stand in for `table`'s."},
    {"signature", signature, METH_O,
     "signature(capsule) -> the C signature that the capsule carries as its name."},
    {"bind", bind, METH_VARARGS,
     "bind(\"table.name\", handler): let `handler` answer that function from now on."},
    {"watch_calls", watch_calls, METH_O,
     "watch_calls(Function): keep what its instances are called with, for as long as a call lasts."},
    {"given_arguments", given_arguments, METH_NOARGS,
     "given_arguments() -> what the Function being called was given, once; None where there is "
     "none."},
    {"read_arguments", read_arguments, METH_VARARGS,
     "read_arguments(address, sizes) -> the bytes behind each of an array of pointers; None from "
     "the first that cannot be read."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "cunorm.simgpu._tables",
    "C functions with the signatures of CuPy's tables, answered by Python handlers.",
    -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__tables(void)
{
    return PyModule_Create(&module);
}
