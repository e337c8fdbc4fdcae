"""Files of tests of which each commit runs a part, since they take long and seldom find anything.

All of a file is run by as many commits as it has shares, by who names the file, and by `--slow`.
What a file marks as slow itself is not taken from here.
"""

PROCESSES = "starts a process each time, for seconds: about the commands, not about the kernels"
CLOSED = "each type, shape and layout of what stands in for a closed library"
COMPILES = "each compiles a kernel or more; KINDS has the ways to keep a row in pairs"

# The files, as tests/ has them: of how many shares a commit runs one, and why.
TURNS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(
        [
            "interop/test_dask.py",
            "project/test_bench.py",
            "project/test_bench_times.py",
            "project/test_examples.py",
            "project/test_main.py",
            "project/test_tune.py",
            "project/test_typing.py",
            "simgpu/test_children.py",
            "simgpu/test_command.py",
            "simgpu/test_plugin.py",
            "simgpu/test_profile_command.py",
        ],
        (4, PROCESSES),
    ),
    "project/test_hardware_kit.py": (2, PROCESSES),
    **dict.fromkeys(
        [
            "simgpu/test_refusals.py",
            "simgpu/test_stand_ins_cub.py",
            "simgpu/test_stand_ins_fourier.py",
            "simgpu/test_stand_ins_linalg.py",
            "simgpu/test_stand_ins_products.py",
            "simgpu/test_stand_ins_random.py",
            "simgpu/test_stand_ins_sorts.py",
            "simgpu/test_stand_ins_sparse.py",
        ],
        (4, CLOSED),
    ),
    **dict.fromkeys(
        [
            "benchmarks/test_kernel_counters.py",
            "interop/test_interop.py",
            "ops/test_backward.py",
            "ops/test_backward_calls.py",
            "ops/test_backward_gradients.py",
            "ops/test_gated.py",
            "ops/test_gated_backward.py",
            "ops/test_layer_norm.py",
            "ops/test_modulated_backward.py",
            "ops/test_properties.py",
            "ops/test_quant.py",
            "ops/test_range.py",
            "ops/test_rms_norm.py",
            "ops/test_rope.py",
            "ops/test_rope_backward.py",
            "ops/test_warm_up.py",
            "simgpu/test_cooperative.py",
            "simgpu/test_ordinary_warps.py",
            "simgpu/test_register_limits.py",
        ],
        (2, COMPILES),
    ),
    "simgpu/test_ordinary_ufuncs.py": (10, "each of CuPy's ufuncs in each dtype"),
}
