# ruff: noqa: E501 -- texts of code stay whole
"""What the kernels share: arrays, threads, memory, errors, scalar maths."""

from __future__ import annotations

from ..mutant import Mutant

ARRAY, PARALLEL, STATUS = "csrc/array.c", "csrc/parallel.c", "csrc/status.c"
BINDING, HD = "csrc/binding.c", "csrc/hd.h"

A = "tests/test_arrays.py::"
P = "tests/test_parallel.py::"
REFUSALS = (A + "test_fault_27_refusals",)
LAYOUTS = (A + "test_fault_27_layouts_give_the_same_numbers",)
ULP = ("tests/test_csrc.py::test_scalar_maths_is_within_one_ulp",)
STRIDES = ("tests/test_strides.py",)

ARRAYS = (
    Mutant(
        "array-no-memory",
        ARRAY,
        "else if (view->data == NULL) {",
        "else if (false) {",
        (
            A + "test_a_null_pointer_from_dlpack",
            A + "test_a_null_pointer_from_the_buffer_protocol",
        ),
    ),
    Mutant(
        "array-unaligned",
        ARRAY,
        "if ((uintptr_t)view->data % rap_dtype_size(view->dtype) != 0) {",
        "if (false) {",
        (A + "test_fault_27_c_refuses_what_python_copies",),
    ),
    Mutant(
        "array-byte-order",
        ARRAY,
        "if (PyArray_ISBYTESWAPPED(array)) {",
        "if (false) {",
        REFUSALS,
    ),
    Mutant(
        "array-read-only",
        ARRAY,
        "|| view->readonly ||",
        "||",
        (A + "test_private_entry_points_refuse_wrong_outputs",),
    ),
    Mutant(
        "array-out-dtype",
        ARRAY,
        "if (view->dtype != dtype || view->readonly",
        "if (view->readonly",
        (A + "test_private_entry_points_refuse_wrong_outputs",),
    ),
    Mutant(
        "array-out-strides",
        ARRAY,
        "|| (view->shape[view->ndim - 1] > 1 && view->stride[view->ndim - 1] != 1))",
        ")",
        (A + "test_private_entry_points_refuse_wrong_outputs",),
    ),
    Mutant(
        "array-negative-strides",
        ARRAY,
        "if (PyArray_STRIDE(array, i) % itemsize != 0) {",
        "if (false) {",
        (A + "test_fault_27_c_refuses_what_python_copies",),
    ),
    Mutant(
        "array-byte-offset",
        ARRAY,
        "(char *)t->data + t->byte_offset",
        "(char *)t->data",
        ("tests/test_arrays.py::test_a_dlpack_producer_with_an_offset",),
    ),
    Mutant(
        "array-not-held",
        ARRAY,
        "Py_INCREF((PyObject *)array);\n",
        "",
        (A + "test_views_are_released", A + "test_fault_41_no_memory_is_lost"),
    ),
    Mutant(
        "array-not-released",
        ARRAY,
        "if (managed->deleter != NULL) {\n        managed->deleter(managed);\n    }\n}\n\nstatic void\nrelease_dlpack_versioned",
        "}\n\nstatic void\nrelease_dlpack_versioned",
        (A + "test_what_came_through_the_older_dlpack_is_released",),
    ),
    Mutant(
        "array-lanes",
        ARRAY,
        "&& type.lanes == 1",
        "",
        ("tests/test_arrays.py::test_a_dlpack_producer_with_an_offset",),
    ),
    Mutant(
        "array-capsule-used-twice",
        ARRAY,
        'PyCapsule_SetName(capsule, "used_dltensor");\n',
        "",
        ("tests/test_arrays.py::test_a_capsule_is_used_once",),
    ),
    Mutant(
        "parallel-one-task-lost",
        PARALLEL,
        "< j->tasks\n",
        "< j->tasks - 1\n",
        ("tests/test_cde.py::test_same_bits_for_any_number_of_threads",),
    ),
    Mutant(
        "parallel-does-not-wait",
        PARALLEL,
        "while (j->running > 0) {",
        "while (false) {",
        (P + "test_a_call_waits_for_its_workers",),
    ),
    Mutant(
        "parallel-fork",
        PARALLEL,
        "if (owner == me) {\n        return true;",
        "if (owner != 0) {\n        return true;",
        (P + "test_fault_40_a_forked_child_computes_too",),
    ),
    Mutant(
        "parallel-busy-pool-entered",
        PARALLEL,
        "&& pthread_mutex_trylock(&pool->busy) == 0)",
        "&& (pthread_mutex_trylock(&pool->busy), true))",
        (P + "test_fault_28_many_python_threads_at_once",),
        equivalent="a job counts its own workers and waits for those; which call they serve changes no bit",
    ),
    Mutant(
        "parallel-stop-not-told",
        PARALLEL,
        "if (atomic_load(&exec->stop)) {",
        "if (false) {",
        (P + "test_fault_32_ctrl_c_is_obeyed_within_a_second",),
    ),
    Mutant(
        "parallel-flush-to-zero",
        PARALLEL,
        "before & ~0x8040u",
        "before",
        ("tests/test_drm.py::test_fault_29_flushed_subnormals_change_nothing",),
    ),
    Mutant(
        "parallel-mode-not-restored",
        PARALLEL,
        "__builtin_ia32_ldmxcsr((unsigned)before);",
        "(void)before;",
        ("tests/test_drm.py::test_fault_29_flushed_subnormals_change_nothing",),
    ),
    Mutant(
        "parallel-signals-to-workers",
        PARALLEL,
        "pthread_sigmask(SIG_SETMASK, &all, &old);",
        "pthread_sigmask(SIG_SETMASK, NULL, &old);",
        (P + "test_signals_are_the_main_thread_s",),
    ),
    Mutant(
        "status-first-error-lost",
        STATUS,
        "if (err->status == RAP_OK) {",
        "if (true) {",
        (
            "tests/test_limits.py::"
            "test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks",
        ),
        equivalent="no caller goes on after its first error",
    ),
    Mutant(
        "status-negative-size",
        STATUS,
        "bytes < 0 || bytes > INT64_MAX - 64",
        "false",
        (
            "tests/test_limits.py::"
            "test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks",
        ),
        equivalent="the outputs, which the caller has made, bound what is asked for",
    ),
    Mutant(
        "binding-gil-kept",
        BINDING,
        "return small ? NULL : PyEval_SaveThread();",
        "return NULL;",
        (P + "test_the_gil_is_released",),
    ),
    Mutant(
        "binding-error-lost",
        BINDING,
        "bool stop = PyErr_CheckSignals() != 0;",
        "bool stop = false;",
        (P + "test_fault_32_ctrl_c_is_obeyed_within_a_second[cde]",),
    ),
    Mutant(
        "hd-exp-tail",
        HD,
        "float c = z < least ? least : z;",
        "float c = z;",
        ULP,
    ),
    Mutant("hd-exp-coefficient", HD, "0x1.62e430p-1f", "0x1.62e432p-1f", ULP),
    Mutant("hd-log-low-part", HD, "rest = RAP_FMA(e, 0x1.7f7d1cp-20f, rest);\n", "", ULP),
    Mutant(
        "hd-half-subnormal",
        HD,
        "body < 0x00800000u ? rap_bits(small) : normal",
        "normal",
        ("tests/test_cde.py::test_every_dtype_is_its_own_float32",),
    ),
    Mutant(
        "hd-half-special",
        HD,
        "body >= 0x0f800000u ? special : u",
        "u",
        ("tests/test_cde.py::test_every_dtype_is_its_own_float32",),
    ),
    Mutant(
        "hd-half-sign",
        HD,
        "& 0x8000u) << 16",
        "& 0x4000u) << 16",
        ("tests/test_cde.py::test_every_dtype_is_its_own_float32",),
    ),
)
